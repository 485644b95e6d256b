"""Text to tokens: the protocol, and a deterministic conditioner that needs no weights.

HashedText gives each word a fixed random vector, so a tiny model can learn captions offline; it
knows no meaning. The null prompt "" is all zeros. Letters: B batch, N tokens, D width of tokens.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch

from models import noise


class TextConditioner(Protocol):
    """What a network needs of a text model; its digest names vocabulary, weights and version."""

    @property
    def dim(self) -> int:
        """Width of a token."""
        ...

    def digest(self) -> str:
        """Return an id that changes whenever the tokens of any text would change."""
        ...

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Return tokens_BND, fp32; the null prompt is ""."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class HashedText:
    """Words to fixed unit-variance vectors, by the word; longer texts are cut at `length`."""

    dim: int = 64
    length: int = 16

    def digest(self) -> str:
        """Return the id of this vocabulary."""
        return f"hashed-text/v1/{noise.NOISE_ID}/dim={self.dim}/length={self.length}"

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Return tokens_BND, fp32; unused places are zero."""
        tokens_BND = torch.zeros(len(texts), self.length, self.dim)
        for row, text in enumerate(texts):
            for place, word in enumerate(words(text)[: self.length]):
                tokens_BND[row, place] = _vector(word, self.dim)
        return tokens_BND


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
