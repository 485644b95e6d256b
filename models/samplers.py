"""From text and seed to video: base (all frames in one pass) and SSR (windows, reduced each step).

One solver for both and for every task: predict, reduce, threshold over the whole video, put known
pixels in where asked, one global scheduler step. Tasks differ in arguments only: what is known
(models/known.py), how it is composited, where the run starts (SDEdit).
All noise is addressed by (seed, step, frame), so a sample does not depend on its batch, its worker
or the window plan. Bits still depend on the batch size (kernels differ): keep one size where bits
must agree.
Letters: B batch, C channels, T frames, H height, W width, K windows, N tokens, D width of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch

from models import diffusion, guidance, multidiffusion, noise, ssr, windows
from models.diffusion import Denoise, Schedule
from models.guidance import Guidance
from models.known import Known
from models.sdedit import Start

Composite = Literal["none", "final", "every_step"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a reverse process is solved; guidance 1 means none and half the work.

    `guidance` gives the weight of each step in place of the constant guidance_scale.
    """

    schedule: Schedule = field(default_factory=Schedule)
    sampler: Literal["ddim", "dpm++", "ddpm"] = "ddim"
    steps: int = 10
    guidance_scale: float = 1.0
    threshold: Literal["none", "static", "dynamic"] = "static"  # for pixels; latents have no bounds
    guidance: Guidance | None = None

    def __post_init__(self) -> None:
        diffusion.timesteps(self.schedule, self.steps)
        if self.guidance is not None and self.guidance_scale != 1.0:
            raise ValueError("guidance and guidance_scale both set: leave guidance_scale at 1")

    def weight(self, step: int) -> float:
        """Return the guidance weight of a step, at least 1."""
        chosen = self.guidance or guidance.Constant(scale=self.guidance_scale)
        return guidance.weight(chosen, step, self.steps)


def initial(
    seeds: Sequence[int],
    *,
    frames: int,
    shape: tuple[int, int, int],
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Return the starting noise x_BCTHW; `shape` is (C, H, W)."""
    c, h, w = shape
    return _drawn(seeds, "initial", 0, torch.empty(len(seeds), c, frames, h, w, device=device))


@torch.no_grad()
def solve(
    denoise: Denoise,
    x_BCTHW: torch.Tensor,
    *,
    seeds: Sequence[int],
    settings: Sampling,
    unconditional: Denoise | None = None,
    known: Known | None = None,
    composite: Composite = "none",
    start: Start | None = None,
) -> torch.Tensor:
    """Return x_BCTHW at the end of the reverse process, from pure noise x.

    Guidance above 1 needs `unconditional`, which runs at such steps only. `composite` puts known
    pixels into the result, bit for bit ("final"), and also into the x0 of each step ("every_step"),
    so that the rest is made around them. Raises ValueError when shapes or arguments do not agree.
    """
    _check_task(x_BCTHW, known=known, composite=composite, start=start)
    known = None if known is None else known.to(x_BCTHW)
    schedule = settings.schedule
    times = diffusion.timesteps(schedule, settings.steps)
    scheduler = diffusion.make_scheduler(settings.sampler, schedule, settings.steps)
    first = 0 if start is None else start.first_step(settings.steps)
    if start is not None:
        x_BCTHW = start.noised(x_BCTHW, times[first:], schedule)
    for step in range(first, settings.steps):
        timestep_B = torch.full((len(seeds),), times[step], device=x_BCTHW.device)
        weighed = guidance.guided(denoise, unconditional, settings.weight(step))
        prediction = diffusion.thresholded(
            weighed(x_BCTHW, timestep_B).float(),
            x_BCTHW,
            timestep_B,
            schedule,
            mode=settings.threshold,
        )
        if known is not None and composite == "every_step":
            certain = diffusion.from_x0(known.video_BCTHW, x_BCTHW, timestep_B, schedule)
            prediction = torch.where(known.mask_B1THW == 1, certain, prediction)
        fresh = _drawn(seeds, "step", step, x_BCTHW) if settings.sampler == "ddpm" else None
        x_BCTHW = diffusion.advance(scheduler, prediction, step, x_BCTHW, step_noise=fresh)
    return x_BCTHW if known is None or composite == "none" else known.composite(x_BCTHW)


def _check_task(
    x: torch.Tensor, *, known: Known | None, composite: str, start: Start | None
) -> None:
    if composite not in {"none", "final", "every_step"}:
        raise ValueError(f"unknown composite {composite!r}: use none, final or every_step")
    if known is None and composite != "none":
        raise ValueError(f"composite {composite!r} needs known pixels: give `known`")
    for name, given in (("known", known), ("start", start)):
        if given is not None and given.video_BCTHW.shape != x.shape:
            shape = list(given.video_BCTHW.shape)
            raise ValueError(f"`{name}` has shape {shape}, the video to be made {list(x.shape)}")


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
    if channels != 3 and settings.threshold != "none":
        raise ValueError(f"threshold {settings.threshold!r} is for pixels: latents take 'none'")
    text_BND, null_BND = _beside(model, text_BND), _beside(model, null_BND)
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

    `micro_batch` windows share a forward pass, the last filled up. `known` has the result's size.
    """
    condition, level_B = _condition(model, low_BCTHW, augment_level, seeds=seeds, scale=scale)
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
        _drawn(seeds, "initial", 0, condition),
        seeds=seeds,
        settings=settings,
        unconditional=given(null_BND),
        known=known,
        composite=composite,
    )


def _condition(
    model: torch.nn.Module,
    low_BCTHW: torch.Tensor,
    level: float,
    *,
    seeds: Sequence[int],
    scale: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the enlarged, augmented video and level_B; noise by the frame, not the window: no seams."""
    if not 0.0 <= level < 1.0:
        raise ValueError(f"augment_level {level} must lie in [0, 1): the share that is noise")
    enlarged = ssr.upsample(_beside(model, low_BCTHW), scale)
    level_B = enlarged.new_full((len(enlarged),), level)
    return ssr.augment(enlarged, level_B, _drawn(seeds, "augment", 0, enlarged)), level_B


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
    weights_KT = windows.weights(plan, kind, trim)
    count = len(plan.starts)
    text_BND, videos = text_BND.to(condition_BCTHW.device), (condition_BCTHW,)
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


def _drawn(seeds: Sequence[int], stream: str, step: int, like: torch.Tensor) -> torch.Tensor:
    """Return addressed noise of the shape of `like`, a whole video, drawn where that is."""
    b, c, t, h, w = like.shape
    if b != len(seeds):
        raise ValueError(f"{len(seeds)} seeds for {b} videos: one each")
    drawn = noise.normals(
        seeds,
        stream=stream,
        step=step,
        frames_BT=torch.arange(t).expand(b, t),
        shape=(c, h, w),
        device=like.device,
    )
    return drawn.transpose(1, 2).to(like)


def _beside(model: torch.nn.Module, given: torch.Tensor) -> torch.Tensor:
    """Return a tensor where the model is: there the video is made, and there it stays."""
    first = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    return given if first is None else given.to(first.device)
