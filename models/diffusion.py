"""The diffusion core: schedule, parameterisations, one loss for all roles, diffusers' schedulers.

x_t = alpha x0 + sigma eps, v = alpha eps - sigma x0, alpha = sqrt(abar), sigma = sqrt(1 - abar).
The table of abar is ours and is handed to diffusers, so that training and sampling agree; zero
terminal SNR with trailing steps (Lin et al. 2024), so that the first step starts from pure noise.
Letters: B batch, C channels, T frames, H height, W width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch

from models import noise
from models.schedule import Schedule, alpha_sigma, alphas_cumprod

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    Scheduler = DDIMScheduler | DPMSolverMultistepScheduler

Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# The ancestral sampler is DDIM with eta 1 (the same posterior): diffusers' DDPMScheduler draws its
# own noise, ours must be addressed. A hair below 1 keeps 1 - abar - std^2 from rounding below 0.
ANCESTRAL_ETA = 1.0 - 1e-6


def add_noise(
    x0: torch.Tensor, noise_: torch.Tensor, timestep_B: torch.Tensor, schedule: Schedule
) -> torch.Tensor:
    """Return x_t."""
    alpha, sigma = alpha_sigma(schedule, timestep_B, x0)
    return alpha * x0 + sigma * noise_


def target(
    x0: torch.Tensor, noise_: torch.Tensor, timestep_B: torch.Tensor, schedule: Schedule
) -> torch.Tensor:
    """Return what the network should predict: v, the noise, or x0."""
    if schedule.prediction == "x0":
        return x0
    if schedule.prediction == "epsilon":
        return noise_
    alpha, sigma = alpha_sigma(schedule, timestep_B, x0)
    return alpha * noise_ - sigma * x0


def to_x0(
    prediction: torch.Tensor, x_t: torch.Tensor, timestep_B: torch.Tensor, schedule: Schedule
) -> torch.Tensor:
    """Return the clean video that the prediction stands for."""
    alpha, sigma = alpha_sigma(schedule, timestep_B, x_t)
    if schedule.prediction == "x0":
        return prediction
    if schedule.prediction == "epsilon":
        return (x_t - sigma * prediction) / alpha
    return torch.addcmul(alpha * x_t, sigma, prediction, value=-1.0)


def from_x0(
    x0: torch.Tensor, x_t: torch.Tensor, timestep_B: torch.Tensor, schedule: Schedule
) -> torch.Tensor:
    """Return the prediction that stands for the clean video x0, the inverse of `to_x0`."""
    if schedule.prediction == "x0":
        return x0
    alpha, sigma = alpha_sigma(schedule, timestep_B, x_t)
    if schedule.prediction == "epsilon":
        return (x_t - alpha * x0) / sigma
    return (alpha * x_t - x0) / sigma


def to_eps(
    prediction: torch.Tensor, x_t: torch.Tensor, timestep_B: torch.Tensor, schedule: Schedule
) -> torch.Tensor:
    """Return the noise that the prediction stands for."""
    alpha, sigma = alpha_sigma(schedule, timestep_B, x_t)
    if schedule.prediction == "x0":
        return (x_t - alpha * prediction) / sigma
    if schedule.prediction == "epsilon":
        return prediction
    return sigma * x_t + alpha * prediction


def threshold(x0_BCTHW: torch.Tensor, mode: str, *, quantile: float = 0.995) -> torch.Tensor:
    """Limit x0 to [-1, 1]: "none", "static" (clamp) or "dynamic" (Imagen), by whole videos."""
    if mode == "none":
        return x0_BCTHW
    if mode == "static":
        return x0_BCTHW.clamp(-1.0, 1.0)
    if mode != "dynamic":
        raise ValueError(f"unknown threshold mode {mode!r}: use none, static or dynamic")
    flat = x0_BCTHW.flatten(1).abs()
    # kthvalue, because torch.quantile refuses more than 2^24 values
    limit = flat.kthvalue(max(1, math.ceil(quantile * flat.shape[1])), dim=1).values.clamp(min=1.0)
    limit = limit.reshape(-1, *(1 for _ in x0_BCTHW.shape[1:]))
    return x0_BCTHW.clamp(-limit, limit) / limit


def thresholded(
    prediction: torch.Tensor,
    x_t: torch.Tensor,
    timestep_B: torch.Tensor,
    schedule: Schedule,
    *,
    mode: str,
) -> torch.Tensor:
    """Return the prediction whose x0 is thresholded; bit-equal where x0 was within the limits."""
    if mode == "none":
        return prediction
    x0 = to_x0(prediction, x_t, timestep_B, schedule)
    change = threshold(x0, mode).sub_(x0)  # what threshold returns here is new
    alpha, sigma = alpha_sigma(schedule, timestep_B, x_t)
    if schedule.prediction == "x0":
        return prediction + change
    weight = (alpha if schedule.prediction == "epsilon" else 1.0) / sigma
    return torch.addcmul(prediction, change, weight, value=-1.0)


def loss(
    denoise: Denoise,
    x0_BCTHW: torch.Tensor,
    *,
    schedule: Schedule,
    timestep_B: torch.Tensor,
    noise_BCTHW: torch.Tensor,
    min_snr_gamma: float = math.inf,
) -> torch.Tensor:
    """Return the mean squared error of each item, loss_B; the same for base, motion and SSR.

    `denoise(x_t, timestep_B)` gives the prediction. A finite gamma weighs by min-SNR
    (Hang et al. 2023), infinity leaves the plain error.
    """
    x_t = add_noise(x0_BCTHW, noise_BCTHW, timestep_B, schedule)
    wanted = target(x0_BCTHW, noise_BCTHW, timestep_B, schedule)
    error = (denoise(x_t, timestep_B).float() - wanted.float()) ** 2
    return error.flatten(1).mean(1) * min_snr_weight(schedule, timestep_B, min_snr_gamma).to(error)


def min_snr_weight(schedule: Schedule, timestep_B: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return the min-SNR weight of each item, float64; ones for infinite gamma."""
    abar = alphas_cumprod(schedule)[timestep_B.cpu().long()]
    if math.isinf(gamma):
        return torch.ones_like(abar)
    snr = abar / (1.0 - abar)
    limited = snr.clamp(max=gamma)
    if schedule.prediction == "x0":
        return limited
    return limited / (snr + 1.0) if schedule.prediction == "v" else limited / snr


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """Timesteps and noise of one training batch."""

    timestep_B: torch.Tensor
    noise_BCTHW: torch.Tensor


def draw(
    schedule: Schedule,
    seeds: Sequence[int],
    *,
    step: int,
    frames_BT: torch.Tensor,
    shape: tuple[int, int, int],
) -> Draw:
    """Draw each item by its own address (seed, step, frame).

    Batch and worker do not matter. `seeds` come from noise.seed_for(run_seed, clip_id, ...),
    frames_BT are absolute frame numbers, `shape` is (C, H, W).
    """
    uniforms = [noise.uniform(s, stream="timestep", step=step, count=1) for s in seeds]
    timestep_B = (torch.cat(uniforms) * schedule.num_timesteps).long()
    drawn = noise.normals(seeds, stream="train", step=step, frames_BT=frames_BT, shape=shape)
    return Draw(timestep_B=timestep_B, noise_BCTHW=drawn.transpose(1, 2))


def timesteps(schedule: Schedule, steps: int) -> list[int]:
    """Return the timesteps of `steps` steps from pure noise down, trailing (Lin et al. 2024).

    round(N (n - i) / n) - 1 in exact arithmetic: diffusers counts in floats and adds a timestep -1
    for 61, 103 and 60 other numbers of steps of 1000.
    """
    n = schedule.num_timesteps
    if not 1 <= steps <= n:
        raise ValueError(f"steps {steps} must lie in 1..{n}")
    return [round(Fraction(n * (steps - i), steps)) - 1 for i in range(steps)]


def make_scheduler(name: str, schedule: Schedule, steps: int) -> "Scheduler":
    """Return a diffusers scheduler, "ddim", "dpm++" (2M) or "ddpm" (ancestral), set to `timesteps`.

    Its own `timesteps` name the steps for `advance`. A DDIM scheduler keeps the chosen timesteps of
    its table alone, where the next is one down: on the whole table it goes down by num_timesteps //
    steps, which misses the next timestep, and the clean end too, unless the steps divide.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    chosen = timesteps(schedule, steps)
    abar = alphas_cumprod(schedule)
    betas = 1.0 - abar / torch.cat((torch.ones(1, dtype=torch.float64), abar[:-1]))
    kind = {"v": "v_prediction", "epsilon": "epsilon", "x0": "sample"}[schedule.prediction]
    common: dict[str, Any] = {
        "num_train_timesteps": schedule.num_timesteps,
        "trained_betas": betas.tolist(),
        "prediction_type": kind,
        "timestep_spacing": "trailing",
    }
    if name in {"ddim", "ddpm"}:
        ddim = DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=True)
        ddim.alphas_cumprod = ddim.alphas_cumprod[chosen[::-1]]
        ddim.register_to_config(num_train_timesteps=steps)
        ddim.set_timesteps(steps)
        return ddim
    if name == "dpm++":
        # the flag keeps the first sigma finite; rescaling a rescaled table changes nothing
        solver = DPMSolverMultistepScheduler(
            **common, solver_order=2, rescale_betas_zero_snr=schedule.zero_terminal_snr
        )
        solver.set_timesteps(timesteps=chosen)
        return solver
    raise ValueError(f"unknown sampler {name!r}: use ddim, dpm++ or ddpm")


def advance(
    scheduler: "Scheduler",
    prediction: torch.Tensor,
    step: int,
    x_t: torch.Tensor,
    *,
    step_noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """Take step number `step`, 0 = from pure noise; `step_noise` makes a DDIM scheduler ancestral.

    Any step may be the first (SDEdit), with no history then; the others follow in order.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    timestep: Any = scheduler.timesteps[step]
    if step_noise is None and isinstance(scheduler, DDIMScheduler):
        return _ddim(scheduler, prediction, int(timestep), x_t)
    if step_noise is None:
        return scheduler.step(prediction, timestep, x_t, return_dict=False)[0]
    if not isinstance(scheduler, DDIMScheduler):
        raise TypeError("step noise needs the ddpm sampler")
    return scheduler.step(
        prediction, timestep, x_t, eta=ANCESTRAL_ETA, variance_noise=step_noise, return_dict=False
    )[0]


def _ddim(
    scheduler: "DDIMScheduler", prediction: torch.Tensor, timestep: int, x_t: torch.Tensor
) -> torch.Tensor:
    """Return what the scheduler's own deterministic step returns, by the two weights that are all there is to it.

    x' = alpha' x0 + sigma' eps (Song et al. 2021, eq. 12 with eta 0), both being sums of x_t and the prediction: two passes
    over memory, where diffusers makes a copy of the video for each term in between.
    """
    abar = scheduler.alphas_cumprod[timestep].double()
    after = scheduler.alphas_cumprod[timestep - 1] if timestep else scheduler.final_alpha_cumprod
    (alpha, sigma), (alpha_1, sigma_1) = (
        (float(a.sqrt()), float((1.0 - a).sqrt())) for a in (abar, after.double())
    )
    kind = scheduler.config["prediction_type"]
    if kind == "v_prediction":
        mine, theirs = alpha_1 * alpha + sigma_1 * sigma, sigma_1 * alpha - alpha_1 * sigma
    elif kind == "epsilon":
        mine, theirs = alpha_1 / alpha, sigma_1 - alpha_1 * sigma / alpha
    else:
        mine, theirs = sigma_1 / sigma, alpha_1 - sigma_1 * alpha / sigma
    return torch.add(mine * x_t, prediction, alpha=theirs)
