"""From text and seed to video: base (all frames in one pass) and SSR (windows, reduced each step).

One solver for both: predict, reduce, threshold over the whole video, one global scheduler step.
All noise is addressed by (seed, step, frame), so a sample does not depend on its batch, its worker
or the window plan. Bits still depend on the batch size (kernels differ): keep one size where bits
must agree.
Letters: B batch, C channels, T frames, H height, W width, K windows, N tokens, D width of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from models import diffusion, multidiffusion, noise, ssr, windows
from models.diffusion import Denoise, Schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a reverse process is solved; guidance_scale 1 means no guidance and half the work."""

    schedule: Schedule = field(default_factory=Schedule)
    sampler: Literal["ddim", "dpm++", "ddpm"] = "ddim"
    steps: int = 10
    guidance_scale: float = 1.0
    threshold: Literal["none", "static", "dynamic"] = "static"

    def __post_init__(self) -> None:
        n = self.schedule.num_timesteps
        if not 1 <= self.steps <= n:
            raise ValueError(f"steps {self.steps} must lie in 1..{n}")
        if self.sampler != "dpm++" and n % self.steps:
            # diffusers' DDIM finds the next timestep by a fixed stride: wrong unless it divides
            raise ValueError(
                f"sampler {self.sampler} needs steps that divide {n}, not {self.steps}"
            )


def initial(seeds: Sequence[int], *, frames: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """Return the starting noise x_BCTHW; `shape` is (C, H, W)."""
    frames_BT = torch.arange(frames).expand(len(seeds), frames)
    x = noise.normals(seeds, stream="initial", step=0, frames_BT=frames_BT, shape=shape)
    return x.transpose(1, 2)


@torch.no_grad()
def solve(
    denoise: Denoise, x_BCTHW: torch.Tensor, *, seeds: Sequence[int], settings: Sampling
) -> torch.Tensor:
    """Return x_BCTHW at the end of the reverse process, from pure noise x."""
    schedule = settings.schedule
    scheduler = diffusion.make_scheduler(settings.sampler, schedule)
    scheduler.set_timesteps(settings.steps)
    for step, timestep in enumerate(scheduler.timesteps):
        timestep_B = torch.full((len(seeds),), int(timestep), device=x_BCTHW.device)
        prediction = denoise(x_BCTHW, timestep_B).float()
        prediction = diffusion.thresholded(
            prediction, x_BCTHW, timestep_B, schedule, mode=settings.threshold
        )
        fresh = _drawn(seeds, "step", step, x_BCTHW) if settings.sampler == "ddpm" else None
        x_BCTHW = diffusion.advance(scheduler, prediction, int(timestep), x_BCTHW, step_noise=fresh)
    return x_BCTHW


def guided(conditional: Denoise, unconditional: Denoise, guidance_scale: float) -> Denoise:
    """Return p_u + w (p_c - p_u); with w = 1 it is the conditional model itself."""
    if guidance_scale == 1.0:
        return conditional

    def denoise(x: torch.Tensor, timestep_B: torch.Tensor) -> torch.Tensor:
        base = unconditional(x, timestep_B)
        return base + guidance_scale * (conditional(x, timestep_B) - base)

    return denoise


def sample_base(
    model: torch.nn.Module,
    text_BND: torch.Tensor,
    null_BND: torch.Tensor,
    *,
    seeds: Sequence[int],
    frames: int,
    size_px: tuple[int, int],
    settings: Sampling,
    temporal: bool = True,
) -> torch.Tensor:
    """Return videos_BCTHW, about [-1, 1], one for each text and seed; size_px = (height, width)."""

    def given(text: torch.Tensor) -> Denoise:
        return lambda x, timestep_B: model(x, timestep_B, text, temporal=temporal)

    x = initial(seeds, frames=frames, shape=(3, *size_px)).to(text_BND.device)
    denoise = guided(given(text_BND), given(null_BND), settings.guidance_scale)
    return solve(denoise, x, seeds=seeds, settings=settings)


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
    augment_level: float = 0.2,
    micro_batch: int = 1,
) -> torch.Tensor:
    """Return videos_BCTHW `scale` times as large, by overlapping windows reconciled at every step.

    The condition's augmentation noise is drawn once for each frame, never for each window, since
    that would make seams. `micro_batch` windows share a forward pass; the last is filled up, so that all have the same shape.
    """
    enlarged = ssr.upsample(low_BCTHW, scale)
    b, c, t, h, w = enlarged.shape
    level_B = torch.full((b,), augment_level, device=enlarged.device)
    drawn = _drawn(seeds, "augment", 0, enlarged)
    condition = ssr.augment(enlarged, level_B, drawn)

    def given(text: torch.Tensor) -> Denoise:
        return windowed(
            model,
            condition,
            text,
            level_B=level_B,
            schedule=settings.schedule,
            plan=plan,
            kind=weights,
            micro_batch=micro_batch,
        )

    x = initial(seeds, frames=t, shape=(c, h, w)).to(enlarged.device)
    denoise = guided(given(text_BND), given(null_BND), settings.guidance_scale)
    return solve(denoise, x, seeds=seeds, settings=settings)


def windowed(
    model: torch.nn.Module,
    condition_BCTHW: torch.Tensor,
    text_BND: torch.Tensor,
    *,
    level_B: torch.Tensor,
    schedule: Schedule,
    plan: windows.Plan,
    kind: str = "linear",
    micro_batch: int = 1,
) -> Denoise:
    """Return a denoiser of whole videos that calls the SSR on windows and reduces these."""
    weights_KT = windows.weights(plan, kind)
    count = len(plan.starts)

    def one(x: torch.Tensor, timestep_B: torch.Tensor) -> torch.Tensor:
        jobs = [(b, k) for b in range(x.shape[0]) for k in range(count)]
        parts: list[torch.Tensor] = []
        for first in range(0, len(jobs), micro_batch):
            chosen = jobs[first : first + micro_batch]
            filled = chosen + [chosen[-1]] * (micro_batch - len(chosen))
            rows = [b for b, _ in filled]
            views = [
                torch.stack([v[b, :, plan.slice(k)] for b, k in filled])
                for v in (x, condition_BCTHW)
            ]
            denoise = ssr.denoiser(
                model, views[1], text_BND[rows], level_B[rows], schedule=schedule
            )
            parts.extend(denoise(views[0], timestep_B[rows])[: len(chosen)].unbind(0))
        per_window = [torch.stack(parts[k::count]) for k in range(count)]
        return multidiffusion.reduce(enumerate(per_window), plan, weights_KT)

    return one


def _drawn(seeds: Sequence[int], stream: str, step: int, like: torch.Tensor) -> torch.Tensor:
    """Return addressed noise of the shape of `like`, a whole video."""
    b, c, t, h, w = like.shape
    frames_BT = torch.arange(t).expand(b, t)
    drawn = noise.normals(seeds, stream=stream, step=step, frames_BT=frames_BT, shape=(c, h, w))
    return drawn.transpose(1, 2).to(like)
