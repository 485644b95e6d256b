"""Captions out of a CoCa model (Yu et al., 2022) by beam search, without sampling.

open_clip's own `generate` needs a class that transformers 5 no longer has, and works one way for
every image of a batch; here an image's caption does not depend on its neighbours. Letters: B images,
K beams, L tokens so far, V vocabulary, C channels, H height, W width.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Beams:
    """How to search; tokens are counted with the first and without the last (start and end)."""

    num_beams: int = 4
    min_tokens: int = 5
    max_tokens: int = 30

    def __post_init__(self) -> None:
        """Refuse a search without room."""
        if self.num_beams < 1 or not 1 <= self.min_tokens <= self.max_tokens:
            raise ValueError(f"{self} leaves no room to search")

    def within(self, context_length: int) -> "Beams":
        """Return the same search with no caption longer than the model can read."""
        most = min(self.max_tokens, context_length)
        return replace(self, max_tokens=most, min_tokens=min(self.min_tokens, most))


@dataclass(slots=True)
class _Search:
    """One image's beams: (sum of log probabilities, tokens with the start), best first."""

    live: list[tuple[float, list[int]]]
    ended: list[tuple[float, list[int]]] = field(default_factory=list)

    def step(self, rows: list[tuple[float, list[int]]], end: int, beams: Beams) -> None:
        """Go on with the best of the extended rows; the ended ones are kept by their mean."""
        self.live = []
        for score, tokens in rows:
            if tokens[-1] != end:
                self.live.append((score, tokens))
            elif len(tokens) > beams.min_tokens and len(self.live) < beams.num_beams:
                self.end(score, tokens[1:-1], len(tokens) - 1)
        del self.live[beams.num_beams :]
        if len(self.ended) >= beams.num_beams:
            self.live = []

    def end(self, score: float, tokens: list[int], count: int) -> None:
        self.ended.append((score / count, tokens))

    def best(self) -> list[int]:
        return max(self.ended, key=lambda one: one[0], default=(0.0, []))[1]


def search(
    next_logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    num_images: int,
    *,
    start: int,
    end: int,
    beams: Beams,
    device: torch.device | str = "cpu",
) -> list[list[int]]:
    """Return the likeliest tokens of each image, without start and end.

    `next_logits(image_N, ids_NL)` gives logits_NV of the token after each row, where image_N is the
    number of the row's image. A caption ends with `end` or at `max_tokens`; the winner is that with
    the highest mean log probability; equal ones: the lower token ids of the earlier beam.
    """
    searches = [_Search(live=[(0.0, [start])]) for _ in range(num_images)]
    for _ in range(beams.max_tokens):
        live = {image: one.live for image, one in enumerate(searches) if one.live}
        if not live:
            break
        for image, rows in _extended(next_logits, live, device, 2 * beams.num_beams).items():
            searches[image].step(rows, end, beams)
    for one in searches:
        for score, tokens in one.live:
            one.end(score, tokens[1:], len(tokens) - 1)
    return [one.best() for one in searches]


def _extended(
    next_logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    live: dict[int, list[tuple[float, list[int]]]],
    device: torch.device | str,
    most: int,
) -> dict[int, list[tuple[float, list[int]]]]:
    """Return each image's `most` best continuations by one token, best first."""
    rows = [(image, *beam) for image, kept in live.items() for beam in kept]
    image_N = torch.tensor([image for image, _, _ in rows], device=device)
    ids_NL = torch.tensor([tokens for _, _, tokens in rows], device=device)
    top = next_logits(image_N, ids_NL).double().log_softmax(-1)
    value_NM, token_NM = (x.cpu().tolist() for x in top.topk(min(most, top.shape[-1]), dim=-1))
    extended: dict[int, list[tuple[float, list[int]]]] = {image: [] for image in live}
    for (image, score, tokens), values, ids in zip(rows, value_NM, token_NM, strict=True):
        extended[image] += [(score + v, [*tokens, i]) for v, i in zip(values, ids, strict=True)]
    for kept in extended.values():
        kept.sort(key=lambda one: -one[0])
        del kept[most:]
    return extended


@torch.inference_mode()
def caption_tokens(
    model: Any, images_BCHW: torch.Tensor, *, start: int, end: int, beams: Beams
) -> list[list[int]]:
    """Return the caption of each prepared image as tokens of the model's own vocabulary."""
    _, seen = model.visual(images_BCHW)

    def next_logits(image_N: torch.Tensor, ids_NL: torch.Tensor) -> torch.Tensor:
        _, tokens_NLD = model.text(ids_NL)
        return model.text_decoder(seen[image_N], tokens_NLD)[:, -1].float()

    count = len(images_BCHW)
    return search(next_logits, count, start=start, end=end, beams=beams, device=images_BCHW.device)
