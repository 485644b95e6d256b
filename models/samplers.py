"""From text and seed to video: base (all frames in one pass) and SSR (windows, reduced each step).

Tasks differ in arguments only: what is known (models/known.py), how it is composited, where the run starts (SDEdit). Models
are switched to evaluation while they sample, and back.
Letters: B batch, C channels, T frames, H height, W width, K windows, N tokens, D width of tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any, ParamSpec

import torch

from models import modes, multidiffusion, noise, ssr, windows
from models.diffusion import Denoise, Schedule
from models.known import Known
from models.sdedit import Start
from models.solver import Composite, Sampling, drawn, initial, solve

P = ParamSpec("P")
__all__ = [
    "Composite",
    "Sampling",
    "Start",
    "initial",
    "sample_base",
    "sample_ssr",
    "solve",
    "windowed",
]


def evaluated(sample: Callable[P, torch.Tensor]) -> Callable[P, torch.Tensor]:
    """Run a sampler, whose first argument is the model, in evaluation: dropout would make samples random."""

    @wraps(sample)
    def run(*args: P.args, **kwargs: P.kwargs) -> torch.Tensor:
        with modes.evaluating(args[0] if args else kwargs["model"]):
            return sample(*args, **kwargs)

    return run


@evaluated
def sample_base(  # noqa: PLR0913  every one is said by the recipe
    model: torch.nn.Module,
    text_BND: torch.Tensor,
    null_BND: torch.Tensor,
    *,
    seeds: Sequence[int],
    frames: int,
    size_px: tuple[int, int],
    settings: Sampling,
    temporal: bool = True,
    channels: int = 3,
    known: Known | None = None,
    composite: Composite = "none",
    start: Start | None = None,
) -> torch.Tensor:
    """Return videos_BCTHW, about [-1, 1], one for each text and seed; size_px = (height, width).

    `known` makes it image-to-video, inpainting and so on, `start` video-to-video. Of a learned variance nothing is used.
    """
    if channels not in {1, 3} and settings.threshold != "none":
        raise ValueError(f"threshold {settings.threshold!r} is for pixels: latents take 'none'")
    if frames < 1 or not seeds:
        raise ValueError(f"{len(seeds)} seeds and {frames} frames: at least 1 of each")
    text, null = (_rows(_beside(model, t), len(seeds), "text") for t in (text_BND, null_BND))
    x = initial(seeds, frames=frames, shape=(channels, *size_px), device=text.device)

    def given(text: torch.Tensor) -> Denoise:
        times = (len(text) // len(seeds), 1, 1, 1, 1)
        more = {} if known is None else {"known_BCTHW": known.channels.to(x).repeat(times)}

        def denoise(x: torch.Tensor, timestep_B: torch.Tensor) -> torch.Tensor:
            return model(x, timestep_B, text, temporal=temporal, **more)[:, :channels]

        return denoise

    return solve(
        given(text),
        x,
        seeds=seeds,
        settings=settings,
        both=given(torch.cat((text, null))) if settings.guided else None,
        known=known,
        composite=composite,
        start=start,
    )


@evaluated
def sample_ssr(  # noqa: PLR0913  every one is said by the recipe
    model: torch.nn.Module,
    low_BCTHW: torch.Tensor,
    text_BND: torch.Tensor,
    null_BND: torch.Tensor,
    *,
    seeds: Sequence[int],
    scale: int,
    plan: windows.Plan,
    settings: Sampling,
    weights: str = "linear",
    trim: int = 0,
    augment_level: float = 0.2,
    micro_batch: int = 1,
    precondition: bool = True,
    known: Known | None = None,
    composite: Composite = "none",
) -> torch.Tensor:
    """Return videos_BCTHW `scale` times as large, by overlapping windows reconciled at every step.

    `micro_batch` windows share a forward pass, the last filled up. `known` has the result's size. Noise is not a base's.
    """
    condition, level_B, seeds = shown(model, low_BCTHW, augment_level, seeds=seeds, scale=scale)
    given = partial(
        windowed,
        model,
        schedule=settings.schedule,
        plan=plan,
        kind=weights,
        trim=trim,
        micro_batch=micro_batch,
        precondition=precondition,
    )
    more: dict[str, Any] = {"level_B": level_B, "known": known}
    told, both = branches(given, condition, text_BND, null_BND, settings=settings, **more)
    return solve(
        told,
        drawn(seeds, "initial", 0, condition),
        seeds=seeds,
        settings=settings,
        both=both,
        known=known,
        composite=composite,
    )


def branches(
    given: Callable[..., Denoise],
    condition_BCTHW: torch.Tensor,
    text_BND: torch.Tensor,
    null_BND: torch.Tensor,
    *,
    level_B: torch.Tensor,
    known: Known | None,
    settings: Sampling,
) -> tuple[Denoise, Denoise | None]:
    """Return `given` for the text and, where any step is guided, for each video with its text and again without."""
    told = given(condition_BCTHW=condition_BCTHW, text_BND=text_BND, level_B=level_B, known=known)
    if not settings.guided:
        return told, None
    count = len(condition_BCTHW)
    texts = [_rows(t.to(condition_BCTHW), count, "text") for t in (text_BND, null_BND)]
    doubled = None
    if known is not None:
        video, mask = (torch.cat((v, v)) for v in (known.video_BCTHW, known.mask_B1THW))
        doubled = Known(video, mask)
    return told, given(
        condition_BCTHW=torch.cat((condition_BCTHW, condition_BCTHW)),
        text_BND=torch.cat(texts),
        level_B=torch.cat((level_B, level_B)),
        known=doubled,
    )


def shown(
    model: torch.nn.Module,
    low_BCTHW: torch.Tensor,
    level: float,
    *,
    seeds: Sequence[int],
    scale: int,
    frames: slice = slice(None),
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return `frames` of the enlarged, augmented video, level_B and the SSR's own seeds.

    Noise is drawn by the frame, not by the window: no seams. Under a base's seed it would be the base's noise again.
    """
    seeds = [noise.seed_for("ssr", scale, seed) for seed in seeds]
    if not 0.0 <= level < 1.0:
        raise ValueError(f"augment_level {level} must lie in [0, 1): the share that is noise")
    if not low_BCTHW.is_floating_point():
        raise ValueError(f"low_BCTHW is {low_BCTHW.dtype}: it must be floating, in [-1, 1]")
    enlarged = ssr.upsample(_beside(model, low_BCTHW[:, :, frames]).float(), scale)
    level_B = enlarged.new_full((len(enlarged),), level)
    fresh = drawn(seeds, "augment", 0, enlarged, first_frame=frames.start or 0)
    return ssr.augment(enlarged, level_B, fresh), level_B, seeds


def windowed(  # noqa: PLR0913  as sample_ssr
    model: torch.nn.Module,
    condition_BCTHW: torch.Tensor,
    text_BND: torch.Tensor,
    *,
    level_B: torch.Tensor,
    schedule: Schedule,
    plan: windows.Plan,
    kind: str = "linear",
    trim: int = 0,
    micro_batch: int = 1,
    precondition: bool = True,
    known: Known | None = None,
) -> Denoise:
    """Return a denoiser of whole videos that calls the SSR on windows and reduces these."""
    if plan.frames != condition_BCTHW.shape[2]:
        raise ValueError(
            f"a plan for {plan.frames} frames: the video has {condition_BCTHW.shape[2]} frames"
        )
    weights_KT = windows.weights(plan, kind, trim)
    predicted = predictions(
        model,
        condition_BCTHW,
        text_BND,
        level_B=level_B,
        schedule=schedule,
        views={k: plan.slice(k) for k in range(len(plan.starts))},
        micro_batch=micro_batch,
        precondition=precondition,
        known=known,
    )

    def one(x: torch.Tensor, timestep_B: torch.Tensor) -> torch.Tensor:
        return multidiffusion.reduce(predicted(x, timestep_B).items(), plan, weights_KT)

    return one


def predictions(
    model: torch.nn.Module,
    condition_BCTHW: torch.Tensor,
    text_BND: torch.Tensor,
    *,
    level_B: torch.Tensor,
    schedule: Schedule,
    views: Mapping[int, slice],
    micro_batch: int = 1,
    precondition: bool = True,
    known: Known | None = None,
) -> Callable[[torch.Tensor, torch.Tensor], dict[int, torch.Tensor]]:
    """Return what calls the SSR on windows of (x, timestep_B): prediction_BCTHW by window.

    `views` are the windows by number and the frames of x that each one shows. Every pass has
    `micro_batch` of them, the last filled up, because bits depend on how many share a pass.
    """
    if micro_batch < 1:
        raise ValueError(f"micro_batch {micro_batch}: at least 1")
    text_BND = _rows(text_BND.to(condition_BCTHW.device), len(condition_BCTHW), "text")
    videos = (condition_BCTHW,)
    if known is not None:
        videos = (condition_BCTHW, known.channels.to(condition_BCTHW))
    form: dict[str, Any] = {} if precondition else {"precondition": False}

    def all_of(x: torch.Tensor, timestep_B: torch.Tensor) -> dict[int, torch.Tensor]:
        jobs = [(b, frames) for b in range(x.shape[0]) for frames in views.values()]
        parts: list[torch.Tensor] = []
        for first in range(0, len(jobs), micro_batch):
            chosen = jobs[first : first + micro_batch]
            filled = chosen + [chosen[-1]] * (micro_batch - len(chosen))
            rows = [b for b, _ in filled]
            seen = [_stacked([v[b, :, frames] for b, frames in filled]) for v in (x, *videos)]
            more = form if known is None else {**form, "known_BCTHW": seen[2]}
            denoise = ssr.denoiser(
                model, seen[1], text_BND[rows], level_B[rows], schedule=schedule, **more
            )
            parts.extend(denoise(seen[0], timestep_B[rows])[: len(chosen)].unbind(0))
        return {k: torch.stack(parts[i :: len(views)]) for i, k in enumerate(views)}

    return all_of


def _stacked(parts_CTHW: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return a batch; of one, a view, because a copy of every window at every step is dear."""
    return parts_CTHW[0][None] if len(parts_CTHW) == 1 else torch.stack(list(parts_CTHW))


def _rows(text_BND: torch.Tensor, count: int, name: str) -> torch.Tensor:
    """Return tokens for `count` videos; one row, as of the null prompt, stands for all."""
    if text_BND.ndim == 3 and text_BND.shape[0] == 1:
        text_BND = text_BND.expand(count, -1, -1)
    if text_BND.ndim != 3 or text_BND.shape[0] != count:
        raise ValueError(f"{name} must be (1 or {count}, N, D), not {(*text_BND.shape,)}")
    return text_BND


def _beside(model: torch.nn.Module, given: torch.Tensor) -> torch.Tensor:
    """Return a tensor where the model is: there the video is made, and there it stays."""
    first = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    return given if first is None else given.to(first.device)
