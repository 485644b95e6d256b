"""Overlapping temporal windows: where they lie, how much each counts.

A plan is valid only if it covers every frame; weights are normalised: they sum to 1 on each frame.
Linear fades are the default: a disagreement of delta between two windows then shows as steps of
delta / (overlap + 1), the smallest possible; uniform is the paper's average (Lumiere, App. C).
Letters: K windows, T frames.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Windows of `window` frames at ascending `starts` that together cover `frames` frames."""

    frames: int
    window: int
    starts: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.frames < 1 or not 1 <= self.window <= self.frames:
            raise ValueError(f"window {self.window} must lie in 1..{self.frames} frames")
        if list(self.starts) != sorted(set(self.starts)):
            raise ValueError(f"window starts {self.starts} must ascend without repetition")
        if not self.starts or self.starts[0] != 0:
            raise ValueError("the first window must start at frame 0")
        if self.starts[-1] + self.window != self.frames:
            raise ValueError(f"the last window must end at frame {self.frames}")
        for before, after in zip(self.starts, self.starts[1:], strict=False):
            if after > before + self.window:
                raise ValueError(f"frames {before + self.window}..{after - 1} are in no window")

    @property
    def overlaps(self) -> tuple[int, ...]:
        """Shared frames of each window with the next."""
        pairs = zip(self.starts, self.starts[1:], strict=False)
        return tuple(before + self.window - after for before, after in pairs)

    def slice(self, index: int) -> slice:
        """Return the frames of window `index`."""
        return slice(self.starts[index], self.starts[index] + self.window)


def even(frames: int, window: int, overlap: int) -> Plan:
    """Spread the fewest windows evenly; every overlap is at least `overlap`, most are larger.

    A video no longer than a window is one window, here as in the other plans.
    """
    count = _count(frames, window, overlap)
    window = min(window, frames)
    if count == 1:
        return Plan(frames=frames, window=window, starts=(0,))
    # integer rounding to nearest of i * (frames - window) / (count - 1)
    room, gaps = frames - window, count - 1
    starts = tuple((2 * i * room + gaps) // (2 * gaps) for i in range(count))
    return Plan(frames=frames, window=window, starts=starts)


def clamped(frames: int, window: int, overlap: int) -> Plan:
    """Lay windows at equal strides and move the last one back to end at the last frame."""
    count = _count(frames, window, overlap)
    if count == 1:
        return Plan(frames=frames, window=min(window, frames), starts=(0,))
    starts = tuple(min(i * (window - overlap), frames - window) for i in range(count))
    return Plan(frames=frames, window=window, starts=starts)


def exact(frames: int, window: int, overlap: int) -> Plan:
    """Lay windows at equal strides; ValueError unless they end exactly at the last frame."""
    plan = clamped(frames, window, overlap)
    if any(size != overlap for size in plan.overlaps):
        stride = window - overlap
        raise ValueError(
            f"{frames} frames are no exact tiling: {frames} - {overlap} must divide by {stride}"
        )
    return plan


def boundaries(plan: Plan) -> tuple[int, ...]:
    """Return every t where the windows covering frame t differ from those covering t + 1."""
    edges = {start - 1 for start in plan.starts if start > 0}
    edges |= {start + plan.window - 1 for start in plan.starts if start + plan.window < plan.frames}
    return tuple(sorted(edges))


def weights(plan: Plan, kind: str = "linear", trim: int = 0) -> torch.Tensor:
    """Return weights_KT, float64, zero outside a window, summing to 1 on every frame.

    Kinds: "linear" and "hann" fade over each overlap, "uniform" averages. The `trim` frames next to
    a cut (a window's end that is not the video's) weigh 0: a network that sees that far in time is
    wrong there. ValueError unless every overlap has twice as many frames.
    """
    if kind not in {"linear", "hann", "uniform"}:
        raise ValueError(f"unknown window weights {kind!r}: use linear, uniform or hann")
    check_trim(plan, trim)
    table = torch.zeros(len(plan.starts), plan.frames, dtype=torch.float64)
    for k in range(len(plan.starts)):
        table[k, plan.slice(k)] = _profile(plan, k, kind, trim)
    return table / table.sum(0)


def check_trim(plan: Plan, trim: int) -> None:
    """Raise ValueError unless trimmed windows still cover every frame: overlap >= 2 * trim."""
    if trim < 0:
        raise ValueError(f"trim {trim} must be >= 0 frames")
    for k, overlap in enumerate(plan.overlaps):
        if overlap < 2 * trim:
            raise ValueError(
                f"trim {trim} needs overlaps of {2 * trim} frames, but windows {k} and {k + 1} "
                f"share {overlap}: plan an overlap of at least {2 * trim}"
            )


def trimmed(plan: Plan, index: int, trim: int) -> slice:
    """Return the frames of window `index` without the `trim` ones next to its cuts."""
    whole = plan.slice(index)
    start = whole.start + (trim if index > 0 else 0)
    return slice(start, whole.stop - (trim if index < len(plan.starts) - 1 else 0))


def _profile(plan: Plan, k: int, kind: str, trim: int) -> torch.Tensor:
    """Return the unnormalised weights of one window: 1 inside, fading over both overlaps."""
    place = torch.arange(plan.window, dtype=torch.float64)
    profile = torch.ones_like(place)
    if k > 0:
        fade = (place + 1 - trim) / (plan.overlaps[k - 1] - 2 * trim + 1)
        profile = torch.minimum(profile, fade.clamp(min=0.0))
    if k < len(plan.starts) - 1:
        fade = (plan.window - place - trim) / (plan.overlaps[k] - 2 * trim + 1)
        profile = torch.minimum(profile, fade.clamp(min=0.0))
    if kind == "uniform":
        return (profile > 0).double()
    return torch.sin(profile * (torch.pi / 2)) ** 2 if kind == "hann" else profile


def _count(frames: int, window: int, overlap: int) -> int:
    if not 0 <= overlap < window:
        raise ValueError(f"overlap {overlap} must lie in 0..{window - 1} for windows of {window}")
    return 1 if frames <= window else -(-(frames - overlap) // (window - overlap))
