"""From text and seed to video: base (all frames in one pass) and SSR (windows, reduced each step).

Tasks differ in arguments only: what is known (models/known.py), how it is composited, where the run starts (SDEdit). Models
are switched to evaluation while they sample, and back.
Letters: B batch, C channels, T frames, H height, W width, K windows, N tokens, D width of tokens.
"""

from collections.abc import Callable, Sequence
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


def _evaluated(sample: Callable[P, torch.Tensor]) -> Callable[P, torch.Tensor]:
    """Run a sampler, whose first argument is the model, in evaluation: dropout would make samples random."""

    @wraps(sample)
    def run(*args: P.args, **kwargs: P.kwargs) -> torch.Tensor:
        with modes.evaluating(args[0] if args else kwargs["model"]):
            return sample(*args, **kwargs)

    return run


@_evaluated
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

    `known` makes it image-to-video, in- or outpainting and so on, `start` video-to-video; a network
    without known channels is never given any. Of a learned variance nothing is used.
    """
    if channels not in {1, 3} and settings.threshold != "none":
        raise ValueError(f"threshold {settings.threshold!r} is for pixels: latents take 'none'")
    if frames < 1 or not seeds:
        raise ValueError(f"{len(seeds)} seeds and {frames} frames: at least 1 of each")
    text_BND = _rows(_beside(model, text_BND), len(seeds), "text_BND")
    null_BND = _rows(_beside(model, null_BND), len(seeds), "null_BND")
    x = initial(seeds, frames=frames, shape=(channels, *size_px), device=text_BND.device)
    more = {} if known is None else {"known_BCTHW": known.channels.to(x)}

    def given(text: torch.Tensor) -> Denoise:
        def denoise(x: torch.Tensor, timestep_B: torch.Tensor) -> torch.Tensor:
            return model(x, timestep_B, text, temporal=temporal, **more)[:, :channels]

        return denoise

    return solve(
        given(text_BND),
        x,
        seeds=seeds,
        settings=settings,
        unconditional=given(null_BND),
        known=known,
        composite=composite,
        start=start,
    )


@_evaluated
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
    condition, level_B, seeds = _shown(model, low_BCTHW, augment_level, seeds=seeds, scale=scale)
    given = partial(
        windowed,
        model,
        condition,
        level_B=level_B,
        schedule=settings.schedule,
        plan=plan,
        kind=weights,
        trim=trim,
        micro_batch=micro_batch,
        precondition=precondition,
        known=known,
    )
    return solve(
        given(text_BND),
        drawn(seeds, "initial", 0, condition),
        seeds=seeds,
        settings=settings,
        unconditional=given(null_BND),
        known=known,
        composite=composite,
    )


def _shown(
    model: torch.nn.Module,
    low_BCTHW: torch.Tensor,
    level: float,
    *,
    seeds: Sequence[int],
    scale: int,
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return the enlarged, augmented video, level_B and the SSR's own seeds.

    Noise is drawn by the frame, not by the window: no seams. Under a base's seed it would be the base's noise again.
    """
    seeds = [noise.seed_for("ssr", scale, seed) for seed in seeds]
    if not 0.0 <= level < 1.0:
        raise ValueError(f"augment_level {level} must lie in [0, 1): the share that is noise")
    if not low_BCTHW.is_floating_point():
        raise ValueError(f"low_BCTHW is {low_BCTHW.dtype}: it must be floating, in [-1, 1]")
    enlarged = ssr.upsample(_beside(model, low_BCTHW).float(), scale)
    level_B = enlarged.new_full((len(enlarged),), level)
    return ssr.augment(enlarged, level_B, drawn(seeds, "augment", 0, enlarged)), level_B, seeds


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
    if plan.frames != condition_BCTHW.shape[2] or micro_batch < 1:
        raise ValueError(
            f"a plan for {plan.frames} frames and micro_batch {micro_batch}: the video has "
            f"{condition_BCTHW.shape[2]} frames, and micro_batch is at least 1"
        )
    weights_KT = windows.weights(plan, kind, trim)
    count = len(plan.starts)
    text_BND = _rows(text_BND.to(condition_BCTHW.device), len(condition_BCTHW), "text")
    videos = (condition_BCTHW,)
    if known is not None:
        videos = (condition_BCTHW, known.channels.to(condition_BCTHW))
    form: dict[str, Any] = {} if precondition else {"precondition": False}

    def one(x: torch.Tensor, timestep_B: torch.Tensor) -> torch.Tensor:
        jobs = [(b, k) for b in range(x.shape[0]) for k in range(count)]
        parts: list[torch.Tensor] = []
        for first in range(0, len(jobs), micro_batch):
            chosen = jobs[first : first + micro_batch]
            filled = chosen + [chosen[-1]] * (micro_batch - len(chosen))
            rows = [b for b, _ in filled]
            views = [torch.stack([v[b, :, plan.slice(k)] for b, k in filled]) for v in (x, *videos)]
            more = form if known is None else {**form, "known_BCTHW": views[2]}
            denoise = ssr.denoiser(
                model, views[1], text_BND[rows], level_B[rows], schedule=schedule, **more
            )
            parts.extend(denoise(views[0], timestep_B[rows])[: len(chosen)].unbind(0))
        per_window = [torch.stack(parts[k::count]) for k in range(count)]
        return multidiffusion.reduce(enumerate(per_window), plan, weights_KT)

    return one


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
