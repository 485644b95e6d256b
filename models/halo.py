"""Windows spread over parts (actors, devices): who owns what, and what neighbours exchange.

Each part owns consecutive windows and keeps the video's state on all frames these cover. At every
step it sends its predictions on the frames that another part covers too, receives theirs, and both
sides take the same weighted mean in window order in fp32: to the bit what one process gets from
multidiffusion.reduce. The scheduler step is each part's own then, because noise is addressed by
frame (models/noise.py); only a dynamic threshold still needs a quantile over the whole video.
Pure tensors: whoever runs this carries the pieces.
Letters: P parts, K windows, B batch, C channels, T frames, H height, W width.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from models import multidiffusion, windows
from models.windows import Plan

Piece = tuple["Exchange", torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """At each step `sender` tells `receiver` what its window says of frames start..stop-1."""

    sender: int
    receiver: int
    window: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class HaloPlan:
    """Part p owns the windows bounds[p]..bounds[p + 1] - 1, at least one; trimmed frames stay home."""

    plan: Plan
    bounds: tuple[int, ...]
    trim: int = 0

    def __post_init__(self) -> None:
        count = len(self.plan.starts)
        if self.bounds[:1] != (0,) or self.bounds[-1] != count:
            raise ValueError(f"bounds {self.bounds} must run from 0 to the {count} windows")
        if list(self.bounds) != sorted(set(self.bounds)):
            raise ValueError(f"bounds {self.bounds} must ascend: every part owns a window")
        windows.check_trim(self.plan, self.trim)

    @property
    def num_parts(self) -> int:
        """How many parts share the windows."""
        return len(self.bounds) - 1

    def windows(self, part: int) -> range:
        """Return the windows a part owns."""
        return range(self.bounds[part], self.bounds[part + 1])

    def frames(self, part: int) -> slice:
        """Return the frames a part keeps the state of: all that its windows cover."""
        owned = self.windows(part)
        return slice(self.plan.slice(owned[0]).start, self.plan.slice(owned[-1]).stop)

    def own_frames(self, part: int) -> slice:
        """Return the frames a part answers for in the finished video; disjoint, together all."""
        last = part == self.num_parts - 1
        stop = self.plan.frames if last else self.frames(part + 1).start
        return slice(self.frames(part).start, stop)

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """All that is sent at a step, by sender, then receiver, then window."""
        pairs = [(a, b) for a in range(self.num_parts) for b in range(self.num_parts) if a != b]
        return tuple(found for a, b in pairs for found in self.between(a, b))

    def between(self, sender: int, receiver: int) -> tuple[Exchange, ...]:
        """Return what one part sends another: its windows where they reach the other's frames."""
        theirs = self.frames(receiver)
        found = []
        for k in self.windows(sender):
            said = windows.trimmed(self.plan, k, self.trim)
            start, stop = max(said.start, theirs.start), min(said.stop, theirs.stop)
            if start < stop:
                found.append(
                    Exchange(sender=sender, receiver=receiver, window=k, start=start, stop=stop)
                )
        return tuple(found)

    def bytes_per_step(self, shape: tuple[int, int, int, int], itemsize: int = 4) -> int:
        """Return what all parts together send at a step; shape is (B, C, H, W) of a frame."""
        b, c, h, w = shape
        frames = sum(exchange.stop - exchange.start for exchange in self.exchanges)
        return frames * b * c * h * w * itemsize


def plan(plan: Plan, num_parts: int, *, trim: int = 0) -> HaloPlan:
    """Return an even split of the windows; more parts than windows get one window each.

    `trim` as in windows.weights: what weighs nothing is not sent. ValueError below one part.
    """
    if num_parts < 1:
        raise ValueError(f"num_parts {num_parts} must be >= 1")
    count = len(plan.starts)
    parts = min(num_parts, count)
    bounds = tuple(part * count // parts for part in range(parts + 1))
    return HaloPlan(plan=plan, bounds=bounds, trim=trim)


def outgoing(halo: HaloPlan, part: int, own: Mapping[int, torch.Tensor]) -> list[Piece]:
    """Return the pieces a part sends at this step, from its windows' prediction_BCTHW."""
    pieces = []
    for receiver in range(halo.num_parts):
        for exchange in halo.between(part, receiver) if receiver != part else ():
            first = halo.plan.starts[exchange.window]
            inside = slice(exchange.start - first, exchange.stop - first)
            pieces.append((exchange, own[exchange.window][:, :, inside]))
    return pieces


def reduce(
    halo: HaloPlan,
    part: int,
    own: Mapping[int, torch.Tensor],
    received: Iterable[Piece],
    weights_KT: torch.Tensor,
) -> torch.Tensor:
    """Return the reconciled frames of one part, fp32 BCTHW over `halo.frames(part)`.

    Bit-equal to those frames of multidiffusion.reduce for every split, order of arrival and
    repetition. weights_KT are those of the whole plan. Raises ValueError on a missing,
    contradicting or misshapen window or piece, on one that is not finite where it has weight, or
    when weights and trim disagree.
    """
    _check_weights(halo, weights_KT)
    said = {**_owned(halo, part, own), **_told(halo, part, received)}
    first = next(iter(own.values()))
    for k, (_, value) in said.items():
        multidiffusion.same_video(f"window {k}", value, first)
    b, c, _, h, w = first.shape
    held = halo.frames(part)
    video = torch.zeros(b, c, held.stop - held.start, h, w, device=first.device)
    shares_KT = multidiffusion.shares(weights_KT).float().cpu()
    for k in sorted(said):
        start, value = said[k]
        stop = start + value.shape[2]
        mean = video[:, :, start - held.start : stop - held.start]
        multidiffusion.blend(mean, value, shares_KT[k, start:stop])
    multidiffusion.check_finite(video, ((k, value) for k, (_, value) in said.items()))
    return video


def _owned(
    halo: HaloPlan, part: int, own: Mapping[int, torch.Tensor]
) -> dict[int, tuple[int, torch.Tensor]]:
    if sorted(own) != list(halo.windows(part)):
        raise ValueError(f"part {part} owns windows {list(halo.windows(part))}, not {sorted(own)}")
    found: dict[int, torch.Tensor] = {}
    for k, prediction in own.items():
        multidiffusion.accept(found, k, prediction, halo.plan)
    return {k: (halo.plan.starts[k], prediction) for k, prediction in found.items()}


def _told(
    halo: HaloPlan, part: int, received: Iterable[Piece]
) -> dict[int, tuple[int, torch.Tensor]]:
    """Return the others' windows by number, each with its first frame, checked against the plan."""
    expected = {e.window: e for e in halo.exchanges if e.receiver == part}
    found: dict[int, tuple[int, torch.Tensor]] = {}
    for exchange, value in received:
        k = exchange.window
        if expected.get(k) != exchange:
            raise ValueError(f"part {part} expects nothing like {exchange}")
        if value.shape[2] != exchange.stop - exchange.start:
            raise ValueError(f"{exchange} came with {value.shape[2]} frames")
        if k in found and not torch.equal(found[k][1], value):
            raise ValueError(f"window {k} arrived twice, with different values")
        found[k] = (exchange.start, value)
    missing = sorted(set(expected) - set(found))
    if missing:
        raise ValueError(f"pieces of windows {missing} are missing at part {part}")
    return found


def _check_weights(halo: HaloPlan, weights_KT: torch.Tensor) -> None:
    multidiffusion.check_weights(weights_KT, halo.plan)
    for k in range(len(halo.plan.starts)):
        said = windows.trimmed(halo.plan, k, halo.trim)
        if bool(weights_KT[k, : said.start].any()) or bool(weights_KT[k, said.stop :].any()):
            raise ValueError(f"window {k} has weight on frames that trim {halo.trim} keeps at home")
