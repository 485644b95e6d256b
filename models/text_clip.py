"""Text tokens of an open_clip text tower: its sequence after the final norm, before pooling.

That is what Stable Diffusion's cross-attention takes: version 1 with pad "end" (its tokenizer
repeats the end token), version 2 with skip 1 (the last but one block). Weights are verified and
never fetched (models/clip_weights.py). Letters: B batch, N tokens, D width of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch

from models import clip, texts
from models.clip_weights import Weights

_VERSION = "open-clip-text/v1"  # raise it when the same weights would give other tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipText:
    """Texts to the tokens of `weights`; cheap to make and to send, the model is loaded when used.

    `pad` fills the places after a text: "zero" as open_clip trains, "end" as OpenAI's pipelines do.
    `skip` leaves out that many last blocks. `precision` None is fp32 on CPUs, bf16 or fp16 on GPUs.
    """

    weights: Weights
    pad: Literal["zero", "end"] = "zero"
    skip: int = 0
    device: str = "cpu"
    precision: clip.Precision | None = None

    def __post_init__(self) -> None:
        if self.pad not in {"zero", "end"}:
            raise ValueError(f"pad {self.pad!r} of a text tower must be zero or end")
        if self.skip < 0:
            raise ValueError(f"skip {self.skip} must be >= 0 blocks")

    @property
    def dim(self) -> int:
        """Width of a token."""
        return _tower(self).dim

    def digest(self) -> str:
        """Return the id of weights, architecture and the way tokens are made."""
        return f"{_VERSION}/{clip.identity(self.weights)}/pad={self.pad}/skip={self.skip}"

    def settings(self) -> dict[str, Any]:
        """Return what conditioning.text_conditioner makes this of, as JSON."""
        return {
            "kind": "open_clip",
            "model": self.weights.model,
            "path": str(self.weights.path or ""),
            "sha256": self.weights.sha256,
            "tag": self.weights.tag,
            "pad": self.pad,
            "skip": self.skip,
        }

    def __call__(self, texts_: Sequence[str]) -> torch.Tensor:
        """Return tokens_BND, fp32; longer texts are cut, "" is the empty text's own sequence."""
        tower = _tower(self)
        shape = (tower.length, tower.dim)
        return texts.encoded(texts_, tower.encode, device=self.device, shape=shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tower:
    """A loaded text tower; `model` is a whole CLIP without its image side, or a tower of its own."""

    model: Any
    tokenizer: Any
    block: int
    length: int
    dim: int
    end: int | None
    device: str

    def encode(self, texts_: list[str]) -> torch.Tensor:
        """Return tokens_BND of the block, normalised as the last one is."""
        ids_BN = self.tokenizer(texts_)
        if self.end is not None:
            # what follows the first end token
            after = (ids_BN == self.end).cumsum(1) > 0
            ids_BN = torch.where(after, self.end, ids_BN)
        told = {"normalize_intermediates": True, "intermediates_only": True}
        ids_BN = ids_BN.to(self.device)
        if hasattr(self.model, "text_projection") and hasattr(self.model, "logit_scale"):
            found = self.model.forward_intermediates(text=ids_BN, text_indices=[self.block], **told)
        else:
            found = self.model.forward_intermediates(
                ids_BN, indices=[self.block], output_fmt="NLC", **told
            )
        return found["text_intermediates"][0]


@lru_cache(maxsize=2)
def _tower(text: ClipText) -> _Tower:
    loaded = clip.load(text.weights, device=text.device, precision=text.precision)
    model, name = loaded.model, text.weights.model
    tower = getattr(model, "text", model)
    if not hasattr(tower, "ln_final") or not hasattr(tower, "forward_intermediates"):
        raise ValueError(f"{name} has no text tower of open_clip's own: name another model, or t5")
    for other in ("visual", "text_decoder"):  # the memory of what is not needed
        if hasattr(model, other):
            delattr(model, other)
    blocks = len(tower.transformer.resblocks)
    if text.skip >= blocks:
        raise ValueError(f"skip {text.skip} must be less than the {blocks} blocks of {name}")
    end = getattr(loaded.tokenizer, "eot_token_id", None)
    if text.pad == "end" and end is None:
        raise ValueError(f"the tokenizer of {name} has no end token: use pad zero")
    return _Tower(
        model=tower,
        tokenizer=loaded.tokenizer,
        block=blocks - 1 - text.skip,
        length=loaded.tokenizer.context_length,
        dim=tower.ln_final.weight.shape[0],
        end=end if text.pad == "end" else None,
        device=text.device,
    )
