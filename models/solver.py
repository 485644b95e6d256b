"""One solver of the reverse process for every model and task.

Predict, reduce, threshold over the whole video, put known pixels in where asked, one global scheduler step. All noise is
addressed by (seed, step, frame), so a sample does not depend on its batch, its worker or the window plan. Bits still
depend on the batch size (kernels differ): keep one size where bits must agree.
Letters: B batch, C channels, T frames, H height, W width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from models import diffusion, guidance, noise
from models.diffusion import Denoise, Schedule
from models.guidance import Guidance
from models.known import Known
from models.sdedit import Start

Composite = Literal["none", "final", "every_step"]
Sampler = Literal["ddim", "dpm++", "ddpm"]
Threshold = Literal["none", "static", "dynamic"]
Draw = Callable[[Sequence[int], str, int, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a reverse process is solved; guidance 1 means none and half the work.

    `guidance` gives the weight of each step in place of the constant guidance_scale.
    """

    schedule: Schedule = field(default_factory=Schedule)
    sampler: Sampler = "ddim"
    steps: int = 10
    guidance_scale: float = 1.0
    threshold: Threshold = "static"  # for pixels; latents have no bounds
    guidance: Guidance | None = None

    def __post_init__(self) -> None:
        diffusion.timesteps(self.schedule, self.steps)
        for name, value, known in (
            ("sampler", self.sampler, get_args(Sampler)),
            ("threshold", self.threshold, get_args(Threshold)),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}: use one of {', '.join(known)}")
        if self.guidance is not None and self.guidance_scale != 1.0:
            raise ValueError("guidance and guidance_scale both set: leave guidance_scale at 1")
        for step in range(self.steps):  # now, not after hours
            self.weight(step)

    @property
    def guided(self) -> bool:
        """Whether any step is."""
        return any(self.weight(step) != 1.0 for step in range(self.steps))

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
    return drawn(seeds, "initial", 0, torch.empty(len(seeds), c, frames, h, w, device=device))


@torch.no_grad()
def solve(
    denoise: Denoise,
    x_BCTHW: torch.Tensor,
    *,
    seeds: Sequence[int],
    settings: Sampling,
    unconditional: Denoise | None = None,
    both: Denoise | None = None,
    known: Known | None = None,
    composite: Composite = "none",
    start: Start | None = None,
    draw: Draw | None = None,
) -> torch.Tensor:
    """Return x_BCTHW at the end of the reverse process, from pure noise x.

    Guidance above 1 needs `unconditional` or `both` (guidance.guided), which run at such steps only. `composite` puts known
    pixels into the result, bit for bit ("final"), and also into the x0 of each step ("every_step"), so that the rest is made
    around them. Where x is a part of a video, `draw` gives its frames' noise. Raises ValueError when arguments do not agree.
    """
    _check_task(x_BCTHW, known=known, composite=composite, start=start)
    known = None if known is None else known.to(x_BCTHW)
    draw = draw or drawn
    schedule = settings.schedule
    times = diffusion.timesteps(schedule, settings.steps)
    scheduler = diffusion.make_scheduler(settings.sampler, schedule, settings.steps)
    first = 0 if start is None else start.first_step(settings.steps)
    if start is not None:
        x_BCTHW = start.noised(x_BCTHW, times[first:], schedule)
    for step in range(first, settings.steps):
        timestep_B = torch.full((len(seeds),), times[step], device=x_BCTHW.device)
        weighed = guidance.guided(denoise, unconditional, settings.weight(step), both=both)
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
        fresh = draw(seeds, "step", step, x_BCTHW) if settings.sampler == "ddpm" else None
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


def drawn(
    seeds: Sequence[int], stream: str, step: int, like: torch.Tensor, *, first_frame: int = 0
) -> torch.Tensor:
    """Return addressed noise of the shape of `like`, a video from `first_frame` on, drawn where that is."""
    b, c, t, h, w = like.shape
    if b != len(seeds):
        raise ValueError(f"{len(seeds)} seeds for {b} videos: one each")
    found = noise.normals(
        seeds,
        stream=stream,
        step=step,
        frames_BT=torch.arange(first_frame, first_frame + t).expand(b, t),
        shape=(c, h, w),
        device=like.device,
    )
    return found.transpose(1, 2).to(like)
