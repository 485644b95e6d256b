"""One video's SSR windows shared by several processes: each makes its frames, to the bit those of sample_ssr.

A part keeps the state of the frames that its windows cover, tells the others what its windows say of theirs, and
takes its own scheduler step (models/halo.py). Whoever runs this carries the pieces: nothing here knows of processes.
Letters: B batch, C channels, T frames, H height, W width, N tokens, D width of tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any, Protocol

import torch

from models import samplers, windows
from models.diffusion import Denoise
from models.halo import HaloPlan, Piece, outgoing, reduce
from models.known import Known
from models.solver import Composite, Sampling, drawn, solve


class Carry(Protocol):
    """Carries one part's pieces out and brings the others' pieces in."""

    def __call__(self, turn: int, outgoing: list[Piece], /) -> list[Piece]:
        """Return the pieces meant for this part; its own are all that `halo.outgoing` says.

        Turns count from 0, one a step; where it is guided, pieces are of both branches. Every part has the same turns.
        """
        ...


@samplers.evaluated
def sample_ssr_part(  # noqa: PLR0913  as sample_ssr
    model: torch.nn.Module,
    low_BCTHW: torch.Tensor,
    text_BND: torch.Tensor,
    null_BND: torch.Tensor,
    *,
    part: int,
    halo: HaloPlan,
    exchange: Carry,
    seeds: Sequence[int],
    scale: int,
    settings: Sampling,
    weights: str = "linear",
    augment_level: float = 0.2,
    micro_batch: int = 1,
    precondition: bool = True,
    known: Known | None = None,
    composite: Composite = "none",
) -> torch.Tensor:
    """Return the frames `halo.own_frames(part)` of sample_ssr's videos_BCTHW, bit-equal where micro_batch and machine are.

    `low_BCTHW` and `known` are of the whole video; `trim` is the halo's. A part with fewer windows than micro_batch fills its
    pass up. Raises ValueError for a dynamic threshold and as sample_ssr; what `exchange` raises ends the part.
    """
    near = _checked(low_BCTHW, known, part=part, halo=halo, settings=settings)
    held = halo.frames(part)
    condition, level_B, seeds = samplers.shown(
        model, low_BCTHW, augment_level, seeds=seeds, scale=scale, frames=held
    )
    form: dict[str, Any] = {"micro_batch": micro_batch, "precondition": precondition}
    predicted = partial(samplers.predictions, model, schedule=settings.schedule, **form)
    given = _given(predicted, exchange, part=part, halo=halo, weights=weights)
    draw = partial(drawn, first_frame=held.start)
    more: dict[str, Any] = {"level_B": level_B, "known": near, "settings": settings}
    told, both = samplers.branches(given, condition, text_BND, null_BND, **more)
    return solve(
        told,
        draw(seeds, "initial", 0, condition),
        seeds=seeds,
        settings=settings,
        both=both,
        known=near,
        composite=composite,
        draw=draw,
    )[:, :, _inside(halo.own_frames(part), held)]


def _given(
    predicted: Callable[..., Callable[..., dict[int, torch.Tensor]]],
    exchange: Carry,
    *,
    part: int,
    halo: HaloPlan,
    weights: str,
) -> Callable[..., Denoise]:
    """Return what makes a denoiser of the part's frames for a text; all of one video count the same turns."""
    weights_KT = windows.weights(halo.plan, weights, halo.trim)
    held, turns = halo.frames(part), count()
    views = {k: _inside(halo.plan.slice(k), held) for k in halo.windows(part)}

    def given(**told: Any) -> Denoise:
        say = predicted(views=views, **told)

        def denoise(x_BCTHW: torch.Tensor, timestep_B: torch.Tensor) -> torch.Tensor:
            own = say(x_BCTHW, timestep_B)
            received = exchange(next(turns), outgoing(halo, part, own))
            return reduce(halo, part, own, received, weights_KT)

        return denoise

    return given


def _checked(
    low: torch.Tensor, known: Known | None, *, part: int, halo: HaloPlan, settings: Sampling
) -> Known | None:
    """Return what is known of the part's frames; ValueError for what no part can make."""
    if not 0 <= part < halo.num_parts:
        raise ValueError(f"part {part} must lie in 0..{halo.num_parts - 1}")
    if settings.threshold == "dynamic":
        raise ValueError(
            "a dynamic threshold is a quantile of the whole video, which no part has: "
            "share videos with threshold 'static' or 'none', or make this one in one process"
        )
    videos = {"low_BCTHW": low} if known is None else {"low_BCTHW": low, "known": known.video_BCTHW}
    for name, video in videos.items():
        if video.shape[2] != halo.plan.frames:
            raise ValueError(
                f"a plan for {halo.plan.frames} frames: {name} has {video.shape[2]} frames"
            )
    if known is None:
        return None
    held = halo.frames(part)
    return Known(known.video_BCTHW[:, :, held], known.mask_B1THW[:, :, held])


def _inside(frames: slice, held: slice) -> slice:
    """Return frames of the video as places in what is held of it."""
    return slice(frames.start - held.start, frames.stop - held.start)
