"""Reconcile overlapping windows: the weighted mean that solves MultiDiffusion's least squares.

argmin_J sum_k w_k |J - Phi_k|^2 is, frame by frame, sum_k w_k Phi_k / sum_k w_k (Bar-Tal et al.
2023, eq. 5). Predictions are reduced, not states, and one global scheduler step follows, so that
multistep solvers and step noise stay correct. Sums run in window order in fp32: who came first
does not show.
Letters: K windows, B batch, C channels, T frames, H height, W width.
"""

import itertools
from collections.abc import Iterable

import torch

from models.windows import Plan


def reduce(
    windows: Iterable[tuple[int, torch.Tensor]], plan: Plan, weights_KT: torch.Tensor
) -> torch.Tensor:
    """Return the reconciled video_BCTHW, fp32, from (window index, prediction_BCTHW) in any order.

    Windows that agree on a frame leave it bit-equal, whatever the weights. A window that arrives
    again with the same values (one that was thought lost) changes nothing. Raises ValueError on a
    missing, contradicting or misshapen window, and on one that is not finite where it has weight.
    """
    ordered = _ordered(windows, plan)
    check_weights(weights_KT, plan)
    b, c, _, h, w = ordered[0].shape
    video = torch.empty(b, c, plan.frames, h, w, device=ordered[0].device)
    shares_TK = shares(weights_KT).float().T.tolist()
    heard = [tuple(k for k, share in enumerate(told) if share) for told in shares_TK]
    for said, run in itertools.groupby(range(plan.frames), key=heard.__getitem__):
        frames = list(run)
        parts = [_frames(ordered[k], frames, plan.starts[k]) for k in said]
        mean = _frames(video, frames, 0)
        if len(said) == 1:
            mean.copy_(parts[0])
        else:
            _average(mean, parts, [[shares_TK[t][k] for k in said] for t in frames])
        # now, while it is in the cache
        check_finite(mean, enumerate(ordered))
    return video


def _average(
    mean_BCTHW: torch.Tensor, parts_BCTHW: list[torch.Tensor], shares_TK: list[list[float]]
) -> None:
    """Write the mean of several parts: as `blend` takes them in, without a copy of the first."""
    for t, told in enumerate(shares_TK):
        so_far = parts_BCTHW[0][:, :, t].float()
        for part, share in zip(parts_BCTHW[1:], told[1:], strict=True):
            so_far = torch.lerp(so_far, part[:, :, t].float(), share, out=mean_BCTHW[:, :, t])


def _frames(x_BCTHW: torch.Tensor, frames: list[int], start: int) -> torch.Tensor:
    """Return a view of these frames, one behind the other, of a part of a video that begins at `start`."""
    return x_BCTHW[:, :, frames[0] - start : frames[-1] + 1 - start]


def check_finite(mean_BCTHW: torch.Tensor, said: Iterable[tuple[int, torch.Tensor]]) -> None:
    """Raise ValueError, which names the window, unless a mean of what was `said` is finite.

    A frame on which a window has no weight does not count: nothing of it is in the mean.
    """
    if finite(mean_BCTHW):
        return
    for k, value in said:
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"window {k} holds NaN or infinite values")
    raise ValueError("the mean of the windows is too large for fp32")


def check_weights(weights_KT: torch.Tensor, plan: Plan) -> None:
    """Raise ValueError unless the table is one of this plan."""
    wanted = (len(plan.starts), plan.frames)
    if tuple(weights_KT.shape) != wanted:
        raise ValueError(f"window weights are {(*weights_KT.shape,)}, the plan's are {wanted}")


def shares(weights_KT: torch.Tensor) -> torch.Tensor:
    """Return each weight's share of the weights up to it, so that means can be taken one by one."""
    weights = weights_KT.double()
    if not bool((weights >= 0).all()) or not bool((weights.sum(0) > 0).all()):
        raise ValueError("window weights must be >= 0 and positive somewhere on every frame")
    ratios = weights / weights.cumsum(0).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(weights > 0, ratios, 0.0)


def blend(mean_BCTHW: torch.Tensor, value_BCTHW: torch.Tensor, share_T: torch.Tensor) -> None:
    """Take the next value into a running mean, in place; an equal value adds exactly zero.

    Where the share is 1 the value is the first one and is copied, so that a frame in one window only is read and written
    once; where it is 0 nothing is touched. `share_T` is best on the CPU.
    """
    told = share_T.tolist()
    start = 0
    for share, run in itertools.groupby(told, key=lambda s: s if s in {0.0, 1.0} else 0.5):
        stop = start + len(list(run))
        mean, value = mean_BCTHW[:, :, start:stop], value_BCTHW[:, :, start:stop]
        if share == 1.0:
            mean.copy_(value)
        elif share:
            for t, weight in enumerate(told[start:stop]):
                mean[:, :, t].lerp_(value[:, :, t].float(), weight)
        start = stop


def finite(x: torch.Tensor) -> bool:
    """Return whether all values are finite: a finite sum has no other summands, and costs a third of looking at each."""
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


def same_video(name: str, part_BCTHW: torch.Tensor, other_BCTHW: torch.Tensor) -> None:
    """Raise ValueError unless two parts agree in all but their frames: nothing is broadcast."""
    shapes = [(*part.shape[:2], *part.shape[3:]) for part in (part_BCTHW, other_BCTHW)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{name} has (B, C, H, W) = {shapes[0]} where another has {shapes[1]}")


def accept(
    found: dict[int, torch.Tensor], index: int, prediction: torch.Tensor, plan: Plan
) -> None:
    """Put an arrived window among those `found`; ValueError names one that cannot be right."""
    if not 0 <= index < len(plan.starts):
        raise ValueError(f"window {index} is not in the plan of {len(plan.starts)}")
    if prediction.shape[2] != plan.window:
        raise ValueError(f"window {index} has {prediction.shape[2]} frames, not {plan.window}")
    for other in found.values():
        same_video(f"window {index}", prediction, other)
    if index in found and not torch.equal(found[index], prediction):
        # which of the two is right cannot be told, and taking either would depend on their order
        raise ValueError(f"window {index} arrived twice, with different values")
    found[index] = prediction


def _ordered(windows: Iterable[tuple[int, torch.Tensor]], plan: Plan) -> list[torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    for index, prediction in windows:
        accept(found, index, prediction, plan)
    missing = [k for k in range(len(plan.starts)) if k not in found]
    if missing:
        raise ValueError(f"windows {missing} are missing")
    return [found[k] for k in range(len(plan.starts))]
