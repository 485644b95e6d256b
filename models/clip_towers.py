"""A loaded CLIP or CoCa model at work: embeddings of clips and texts, tags, captions.

Letters: N clips or texts, T frames, H height, W width, C channels, D width of an embedding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from models.clip_generate import Beams, caption_tokens
from models.clip_pixels import Pixels, picked


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A loaded model; `digest` changes whenever its embeddings would, rounding of a device aside.

    `batch` is how many images or texts go through it at once; with 1 (as on CPUs) a clip or text is
    computed by itself, to the bit the same whatever else is asked.
    """

    model: Any
    tokenizer: Any
    pixels: Pixels
    name: str
    digest: str
    device: torch.device
    dtype: torch.dtype
    batch: int
    _vocabularies: dict[tuple[str, ...], np.ndarray] = field(default_factory=dict, init=False)

    def embed_frames(self, frames_THWC: np.ndarray, num_frames: int = 8) -> np.ndarray:
        """Return float32 (D,) of a clip: the normalised mean of its frames' normalised embeddings."""
        return self.embed_clips([frames_THWC], num_frames)[0]

    def embed_clips(self, clips: Sequence[np.ndarray], num_frames: int = 8) -> np.ndarray:
        """Return float32 (N, D), L2-normalised, of clips (uint8 THWC each, any sizes).

        Raises ValueError for other frames, ArithmeticError when an embedding is not finite.
        """
        means = [frames_TD.mean(0) for frames_TD in self._frame_embeddings(clips, num_frames)]
        return _unit(torch.stack(means)).cpu().numpy() if means else self._none()

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 (N, D), L2-normalised; a text is cut at the model's context length."""
        parts = [
            _unit(self.model.encode_text(self.tokenizer(list(part)).to(self.device)).float()).cpu()
            for part in _batches(texts, self.batch)
        ]
        return torch.cat(parts).numpy() if parts else self._none()

    def tags(
        self,
        embedding: np.ndarray,
        vocabulary: Sequence[str],
        k: int = 5,
        template: str = "a video of {}",
    ) -> list[tuple[str, float]]:
        """Return the k nearest words and their cosines, best first; equal ones by their place.

        `template` holds {} for the word. Raises ValueError without it, or for no or doubled words.
        """
        words = tuple(vocabulary)
        if "{}" not in template:
            raise ValueError(f"the template {template!r} must hold {{}} for the tag")
        if not words or len(set(words)) < len(words):
            raise ValueError("the vocabulary must hold at least one tag, each once")
        if (template, *words) not in self._vocabularies:
            texts = [template.replace("{}", word) for word in words]
            self._vocabularies[template, *words] = self.embed_texts(texts)
        cosines = self._vocabularies[template, *words] @ embedding
        order = np.argsort(-cosines, kind="stable")[:k]
        return [(words[i], float(cosines[i])) for i in order]

    @property
    def captions(self) -> bool:
        """Whether this is a model that can caption."""
        return hasattr(self.model, "text_decoder")

    def caption(
        self, clips: Sequence[np.ndarray], num_frames: int = 1, beams: Beams | None = None
    ) -> list[str]:
        """Return one caption for each clip: of its frames' captions, the nearest to the whole clip.

        One frame means the middle one. Raises ValueError when the model cannot caption.
        """
        if not self.captions or not hasattr(self.tokenizer, "sot_token_id"):
            raise ValueError(
                f"{self.name} cannot caption: name a CoCa model, such as coca_ViT-B-32"
            )
        beams = (beams or Beams()).within(self.model.context_length)
        spoken = [
            captions
            for part in _batches(clips, self.batch // max(1, num_frames))
            for captions in self._spoken(part, num_frames, beams)
        ]
        return [self._nearest(f, s) for f, s in zip(clips, spoken, strict=True)]

    @torch.inference_mode()
    def _spoken(
        self, clips: Sequence[np.ndarray], num_frames: int, beams: Beams
    ) -> Iterator[list[str]]:
        """Yield the captions of each clip's frames."""
        start, end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        images = [self._prepared(frames, num_frames) for frames in clips]
        found = caption_tokens(self.model, torch.cat(images), start=start, end=end, beams=beams)
        said = iter(" ".join(self.tokenizer.decode(tokens).split()) for tokens in found)
        for frames in images:
            yield [next(said) for _ in frames]

    def _nearest(self, frames_THWC: np.ndarray, captions: list[str]) -> str:
        different = list(dict.fromkeys(captions))
        if len(different) == 1:
            return different[0]
        cosines = self.embed_texts(different) @ self.embed_frames(frames_THWC)
        return different[int(cosines.argmax())]

    @torch.inference_mode()
    def _frame_embeddings(
        self, clips: Sequence[np.ndarray], num_frames: int
    ) -> Iterator[torch.Tensor]:
        for part in _batches(clips, self.batch // max(1, num_frames)):
            images = [self._prepared(frames, num_frames) for frames in part]
            found = _unit(self.model.encode_image(torch.cat(images)).float())
            yield from found.split([len(frames) for frames in images])

    def _prepared(self, frames_THWC: np.ndarray, num_frames: int) -> torch.Tensor:
        chosen = torch.from_numpy(picked(frames_THWC, num_frames)).to(self.device)
        return self.pixels(chosen.permute(0, 3, 1, 2)).to(self.dtype)

    def _none(self) -> np.ndarray:
        return np.zeros((0, self.embed_texts(["a"]).shape[1]), np.float32)


def _unit(x_ND: torch.Tensor) -> torch.Tensor:
    if not x_ND.isfinite().all():
        raise ArithmeticError(
            "an embedding is not finite: damaged weights, or load with bf16 or fp32"
        )
    return functional.normalize(x_ND, dim=-1)


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), max(1, size)):
        yield items[start : start + max(1, size)]
