"""Text to tokens: the protocol, its kinds by name, and one of them that needs no weights.

HashedText gives each word a fixed random vector, so a tiny model can learn captions offline; it
knows no meaning. The null prompt is "" for every kind: all zeros here, the empty text's own
sequence for a trained tower (what guidance was trained with). One text gives the same bits on a
CPU whatever else is asked. Letters: B batch, N tokens, D width of tokens.
"""

import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch

from models import noise, texts


class TextConditioner(Protocol):
    """What a network needs of a text model; its digest names vocabulary, weights and version."""

    @property
    def dim(self) -> int:
        """Width of a token."""
        ...

    def digest(self) -> str:
        """Return an id that changes whenever the tokens of any text would change."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return what `text_conditioner` makes it of, as JSON; device and precision are not in it."""
        ...

    def __call__(self, texts_: Sequence[str], /) -> torch.Tensor:
        """Return tokens_BND, fp32 on the CPU; the null prompt is ""; longer texts are cut."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class HashedText:
    """Words to fixed unit-variance vectors, by the word; longer texts are cut at `length`."""

    dim: int = 64
    length: int = 16

    def __post_init__(self) -> None:
        if self.dim < 1 or self.length < 1:
            raise ValueError(f"dim {self.dim} and length {self.length} of texts must be >= 1")

    def digest(self) -> str:
        """Return the id of this vocabulary."""
        return f"hashed-text/v1/{noise.NOISE_ID}/dim={self.dim}/length={self.length}"

    def settings(self) -> dict[str, Any]:
        """Return what `text_conditioner` makes this of, as JSON."""
        return {"kind": "hashed", "dim": self.dim, "length": self.length}

    def __call__(self, texts_: Sequence[str]) -> torch.Tensor:
        """Return tokens_BND, fp32; unused places are zero."""
        tokens_BND = torch.zeros(len(texts_), self.length, self.dim)
        for row, text in enumerate(texts.checked(texts_)):
            for place, word in enumerate(words(text)[: self.length]):
                tokens_BND[row, place] = _vector(word, self.dim)
        return tokens_BND


# The kinds of conditioner, what each is told, and of which type; those in _REQUIRED have no default.
KINDS: dict[str, dict[str, type]] = {
    "hashed": {"dim": int, "length": int},
    "open_clip": {"model": str, "path": str, "sha256": str, "tag": str, "pad": str, "skip": int},
    "t5": {"folder": str, "length": int},
}
_REQUIRED = {"hashed": (), "open_clip": ("model",), "t5": ("folder",)}


def text_conditioner(
    settings: Mapping[str, Any], *, device: str = "cpu", precision: Any = None
) -> TextConditioner:
    """Return the conditioner of {"kind": ..., its own keys}, the inverse of its `settings()`.

    Without "kind" it is "hashed", as in older checkpoints. Models are loaded when first used, on
    `device`. ValueError names a wrong kind, key or value.
    """
    told = dict(settings)
    kind = told.pop("kind", "hashed")
    _check_settings(kind, told)
    if kind == "hashed":
        return HashedText(**told)
    # open_clip and transformers take seconds to import: only for those who name them
    if kind == "t5":
        from models.text_t5 import T5Text  # noqa: PLC0415

        told["folder"] = Path(told["folder"])
        return T5Text(**told, device=device, precision=precision)
    from models.clip_weights import Weights  # noqa: PLC0415
    from models.text_clip import ClipText  # noqa: PLC0415

    own = {key: told.pop(key) for key in ("pad", "skip") if key in told}
    told["path"] = Path(told["path"]) if told.get("path") else None
    return ClipText(weights=Weights(**told), **own, device=device, precision=precision)


def _check_settings(kind: Any, told: Mapping[str, Any]) -> None:
    if kind not in KINDS:
        raise ValueError(f"unknown text conditioner {kind!r}: use one of {', '.join(KINDS)}")
    known = KINDS[kind]
    for key, value in told.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"
            raise ValueError(f"text conditioner {kind}: unknown key {key!r}: {hint}")
        if type(value) is not known[key]:
            raise ValueError(
                f"text conditioner {kind}: {key} must be {known[key].__name__}, not {value!r}"
            )
    missing = [key for key in _REQUIRED[kind] if not told.get(key)]
    if missing:
        raise ValueError(f"text conditioner {kind}: {missing[0]} is missing")


def words(text: str) -> list[str]:
    """Return the words of a text in order: NFC, case folded, punctuation dropped."""
    return re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold())


def drop_text(
    text_BND: torch.Tensor, null_BND: torch.Tensor, *, seeds: Sequence[int], step: int, share: float
) -> torch.Tensor:
    """Return text with about `share` of the items replaced by the null, each by its own address."""
    draws = [noise.uniform(seed, stream="dropout", step=step, count=1) for seed in seeds]
    drop_B = (torch.cat(draws) < share).to(text_BND.device)
    return torch.where(drop_B[:, None, None], null_BND, text_BND)


@lru_cache(maxsize=65536)
def _vector(word: str, dim: int) -> torch.Tensor:
    seed = noise.seed_for("kinoray/hashed-text/v1", word)
    return noise.normal(seed, stream="text", step=0, frames=[0], shape=(dim,))[0]
