"""Seams: do frame differences stand out where windows begin and end?

d_t = mean |x_{t+1} - x_t|, boundaries B = every t where the set of windows covering t differs from
that of t + 1. The null hypothesis "the place of the boundaries does not matter" is tested exactly,
by shifting the whole comb of boundaries. Needs no weights. Letters: C channels, T frames.
"""

from collections.abc import Sequence

import torch

from models.metrics.motion import differences

_REACH = 3


def seam_ratio(x_CTHW: torch.Tensor, boundaries: Sequence[int]) -> float:
    """Return median over B of d_t / median of d at the non-boundary steps within 3; 1 is invisible.

    A frozen video has ratio 1. Raises ValueError without boundaries, or where none has a neighbour.
    """
    return _ratio(differences(x_CTHW), boundaries)


def seam_excess(x_CTHW: torch.Tensor, boundaries: Sequence[int]) -> float:
    """Return mean |second difference| at the boundaries less that elsewhere, on a [0, 1] scale.

    The second difference belonging to step t is the larger of those that touch it, at t - 1 and t.
    """
    x = x_CTHW.double()
    second = (x[:, 2:] - 2.0 * x[:, 1:-1] + x[:, :-2]).abs().mean(dim=(0, 2, 3)) / 2.0
    steps = x_CTHW.shape[1] - 1
    at_step = [second[max(0, t - 1) : t + 1].max() for t in range(steps)]
    inside = set(_checked(boundaries, steps))
    here = torch.stack([a for t, a in enumerate(at_step) if t in inside])
    elsewhere = torch.stack([a for t, a in enumerate(at_step) if t not in inside])
    return float(here.mean() - elsewhere.mean())


def seam_p_value(
    videos: Sequence[torch.Tensor], boundaries: Sequence[int], *, stride: int
) -> float:
    """Return the share of comb shifts 0..stride-1 whose mean ratio reaches the true one's.

    Over an evaluation set of one plan; the smallest possible value is 1 / stride.
    """
    return p_value([differences(video) for video in videos], boundaries, stride=stride)


def p_value(curves: Sequence[torch.Tensor], boundaries: Sequence[int], *, stride: int) -> float:
    """Return `seam_p_value` from frame differences d_t that were measured before, one curve a video."""
    if stride < 2:
        raise ValueError("a permutation test needs a stride of at least 2")
    steps = len(curves[0])
    statistics = []
    for shift in range(stride):
        moved = sorted({(t + shift) % steps for t in boundaries})
        statistics.append(sum(_ratio(curve, moved) for curve in curves) / len(curves))
    return sum(s >= statistics[0] for s in statistics) / stride


def _ratio(d: torch.Tensor, boundaries: Sequence[int]) -> float:
    inside = set(_checked(boundaries, len(d)))
    around = [
        s for s in range(len(d)) if s not in inside and any(abs(s - t) <= _REACH for t in inside)
    ]
    if not around:
        raise ValueError("no frame step within 3 of a boundary is free of boundaries")
    here, beside = d[sorted(inside)].median(), d[around].median()
    if float(beside) == 0.0:
        return 1.0 if float(here) == 0.0 else float("inf")
    return float(here / beside)


def _checked(boundaries: Sequence[int], steps: int) -> Sequence[int]:
    if not boundaries or not all(0 <= t < steps for t in boundaries):
        raise ValueError(f"boundaries {list(boundaries)} must be frame steps in 0..{steps - 1}")
    return boundaries
