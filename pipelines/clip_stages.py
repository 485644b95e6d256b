"""open_clip at work on stored clips: embeddings, and what is made of them; CoCa's captions.

A model is loaded once a process, with the first clip; one that cannot be loaded there ends the pass. The embeddings are the
only ones that look at frames: tags, text match and aesthetic score read the stored vectors. A stage that asks for no GPU uses
none, even where it could see one: others were given those.
"""

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ingest import caption, scorers
from ingest.clip import digest_of
from ingest.stage import Failure, Needs, ScoreFact, Seen
from models import clip

MODEL_BYTES = 1 << 30
VERSION = "v1"


class NotLoaded(RuntimeError):
    """A model cannot be loaded where a worker runs, so that each clip would fail there."""

    retryable = False
    fatal = True


class _OfModel:
    """A stage over one open_clip model; `settings` hold the digest of its weights and configuration."""

    version = VERSION
    needs = Needs()

    def __init__(self, weights: scorers.ClipWeights) -> None:
        self._weights = clip.Weights(**asdict(weights))
        self._digest = ""

    @property
    def model(self) -> clip.Clip:
        """The model, loaded when it is first asked for."""
        return _loaded(self._weights, device_of(self.needs))

    def settings(self) -> Mapping[str, Any]:
        """Return what decides the answers beside the clip; raises what loading weights raises."""
        self._digest = self._digest or clip.identity(self._weights)
        return {"model": self._digest}


class Embeddings(_OfModel):
    """Embeds clips: the mean of their frames' embeddings, of length 1."""

    name = "open_clip"

    def __init__(self, weights: scorers.ClipWeights, frames: int = 8) -> None:
        super().__init__(weights)
        self.needs = _looking(frames)

    def __call__(self, clips: Sequence[Seen]) -> list[np.ndarray]:
        """Return float32 (D,) for each clip."""
        frames = [seen.frames_THWC for seen in clips]
        return list(self.model.embed_clips(frames, num_frames=int(self.needs.frames)))


class TextMatch(_OfModel):
    """The cosine of a clip's embedding and its caption's; a clip without a caption has none."""

    name = "text_match"
    needs = Needs(frames=0, batch_clips=64, costly=True, embedding=True, memory_bytes=MODEL_BYTES)
    scores = (ScoreFact(name="text_match", unit="cosine", range="[-1, 1]", direction="higher"),)

    def __init__(self, weights: scorers.ClipWeights, frames: int = 8) -> None:
        super().__init__(weights)
        self._frames = frames

    def settings(self) -> Mapping[str, Any]:
        """Return the model, and how many frames its embeddings are of."""
        return {**super().settings(), "frames": self._frames}

    def decides(self, facts: Mapping[str, Any]) -> str | None:
        """Return the caption, None where there is none."""
        return facts["caption"] or None

    def __call__(self, clips: Sequence[Seen]) -> list[dict[str, float | None]]:
        """Return the cosine for each clip."""
        texts_ND = self.model.embed_texts([seen.facts["caption"] for seen in clips])
        return [
            {"text_match": float(text_D @ seen.facts["embedding"])}
            for text_D, seen in zip(texts_ND, clips, strict=True)
        ]


class Aesthetic:
    """LAION's aesthetic head over the embeddings, about 1 (poor) to 10 (good)."""

    name, version = "aesthetic", VERSION
    needs = Needs(frames=0, batch_clips=256, embedding=True)
    scores = (
        ScoreFact(name="aesthetic", unit="points", range="about [1, 10]", direction="higher"),
    )

    def __init__(
        self, weights: scorers.ClipWeights, head: scorers.Aesthetic, frames: int = 8
    ) -> None:
        if head.path is None:
            raise ValueError("aesthetic: needs the head's path and sha256")
        self._made_for = _OfModel(weights)
        self._head, self._path, self._frames = head, head.path, frames

    def settings(self) -> Mapping[str, Any]:
        """Return the head, the model it looks through, and how many frames its embeddings are of."""
        return {**self._made_for.settings(), "head": self._head.sha256, "frames": self._frames}

    def __call__(self, clips: Sequence[Seen]) -> list[dict[str, float | None]]:
        """Return the score of each clip."""
        head = _head(self._path, self._head.sha256)
        found = (head(seen.facts["embedding"][None])[0] for seen in clips)
        return [{"aesthetic": float(score)} for score in found]


class Tags(_OfModel):
    """The words of a vocabulary that are nearest to a clip's embedding, as a caption."""

    name = "tags"
    needs = Needs(frames=0, batch_clips=256, costly=True, embedding=True, memory_bytes=MODEL_BYTES)

    def __init__(
        self, weights: scorers.ClipWeights, config: caption.Tags, words: Sequence[str]
    ) -> None:
        super().__init__(weights)
        self._config, self._words = config, tuple(words)
        if not words or len(set(words)) < len(words):
            raise ValueError("tags: the vocabulary must hold at least one word, each once")

    def settings(self) -> Mapping[str, Any]:
        """Return the model, the words and the texts around them."""
        config = self._config
        told = {"words": digest_of(list(self._words)), "count": config.count, "form": config.form}
        told |= {"template": config.template, "min_cosine": config.min_cosine}
        return {**super().settings(), **told}

    def __call__(self, clips: Sequence[Seen]) -> list[str | Failure]:
        """Return the nearest words of each clip; a Failure where none is near enough."""
        return [self._said(seen.facts["embedding"]) for seen in clips]

    def _said(self, embedding_D: np.ndarray) -> str | Failure:
        config = self._config
        found = self.model.tags(embedding_D, self._words, k=config.count, template=config.template)
        near = [word for word, cosine in found if cosine >= config.min_cosine]
        if not near:
            message = f"no word is nearer than min_cosine={config.min_cosine:g}"
            return Failure(error_class="NothingNear", message=message, final=True)
        return config.form.replace("{}", ", ".join(near))


class Coca(_OfModel):
    """Captions of a CoCa model."""

    name = "coca"

    def __init__(self, config: caption.Coca) -> None:
        if not config.weights.model:
            raise ValueError("coca: needs weights of a CoCa model, such as coca_ViT-B-32")
        super().__init__(config.weights)
        self._frames = config.frames
        self._beams = clip.Beams(
            num_beams=config.num_beams, min_tokens=config.min_tokens, max_tokens=config.max_tokens
        )
        self.needs = _looking(config.frames)

    def settings(self) -> Mapping[str, Any]:
        """Return the model and how it searches for words."""
        return {**super().settings(), "beams": asdict(self._beams)}

    def __call__(self, clips: Sequence[Seen]) -> list[str]:
        """Return a caption for each clip."""
        frames = [seen.frames_THWC for seen in clips]
        return self.model.caption(frames, num_frames=self._frames, beams=self._beams)


def _looking(frames: int) -> Needs:
    return Needs(frames=frames, batch_clips=16, costly=True, num_gpus=1.0, memory_bytes=MODEL_BYTES)


def device_of(needs: Needs) -> str:
    """Return where a stage that was given what it needs computes."""
    return "cuda" if needs.num_gpus and torch.cuda.is_available() else "cpu"


@lru_cache(maxsize=2)
def _loaded(weights: clip.Weights, device: str) -> clip.Clip:
    with _or_end(weights.model):
        return clip.load(weights, device=device)


@lru_cache(maxsize=2)
def _head(path: Path, sha256: str) -> clip.AestheticHead:
    with _or_end("the aesthetic head"):
        return clip.AestheticHead.load(path, sha256)


@contextmanager
def _or_end(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise NotLoaded(f"{what} cannot be loaded on {socket.gethostname()}: {why}") from error
