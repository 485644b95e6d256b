"""The noise schedule: how much of the video is left at each timestep, and what the network predicts of it.

x_t = alpha x0 + sigma eps, alpha = sqrt(abar), sigma = sqrt(1 - abar). Zero terminal SNR rescales the table
so that the last timestep is pure noise (Lin et al. 2024).
"""

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch

_ENDS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}
ScheduleName = Literal["cosine", "linear", "scaled_linear"]
PREDICTIONS = ("v", "epsilon", "x0")
# diffusers' words for the same, in scheduler_config.json
_DIFFUSERS = {
    "squaredcos_cap_v2": "cosine", "linear": "linear", "scaled_linear": "scaled_linear",
    "v_prediction": "v", "epsilon": "epsilon", "sample": "x0",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Noise schedule and what the network predicts.

    "linear" rises in beta from 1e-4 to 0.02 (DDPM), "scaled_linear" in its root from 0.00085 to 0.012 (latent
    diffusion), both as of 1000 timesteps; "cosine" is that of Nichol and Dhariwal 2021.
    """

    name: ScheduleName = "cosine"
    num_timesteps: int = 1000
    prediction: Literal["v", "epsilon", "x0"] = "v"
    zero_terminal_snr: bool = True

    def __post_init__(self) -> None:
        if self.name not in get_args(ScheduleName) or self.prediction not in PREDICTIONS:
            raise ValueError(
                f"unknown schedule {self.name!r} or prediction {self.prediction!r}: use one of "
                f"{', '.join(get_args(ScheduleName))} and of {', '.join(PREDICTIONS)}"
            )
        if self.num_timesteps < 2:
            raise ValueError(f"num_timesteps {self.num_timesteps} must be at least 2")
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError("prediction 'epsilon' carries nothing at zero terminal SNR: use 'v'")

    @classmethod
    def of_diffusers(cls, folder: Path) -> "Schedule":
        """Return the schedule that the weights of a diffusers pipeline folder were trained with.

        Raises FileNotFoundError without scheduler/scheduler_config.json, ValueError for a schedule
        that is none of ours.
        """
        path = folder / "scheduler" / "scheduler_config.json"
        told = _object(path)
        words = told.get("beta_schedule", "linear"), told.get("prediction_type", "epsilon")
        if any(word not in _DIFFUSERS for word in words):
            raise ValueError(
                f"{path}: {words[0]} and {words[1]} are no schedule that is known here"
            )
        found = cls(
            name=cast("ScheduleName", _DIFFUSERS[words[0]]),
            num_timesteps=told.get("num_train_timesteps", 1000),
            prediction=cast("Any", _DIFFUSERS[words[1]]),
            zero_terminal_snr=bool(told.get("rescale_betas_zero_snr", False)),
        )
        ends = _ENDS.get(found.name)
        if told.get("trained_betas") is not None or (ends and found.num_timesteps != 1000):
            raise ValueError(
                f"{path}: a table of its own, or {found.num_timesteps} timesteps of {words[0]}, is no schedule that "
                "is known here: 1000 timesteps are"
            )
        if ends and (told.get("beta_start", 1e-4), told.get("beta_end", 0.02)) != ends:
            raise ValueError(f"{path}: its betas do not run from {ends[0]} to {ends[1]}")
        return found


def _object(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")).items())
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no JSON object: {error}") from None


@lru_cache
def alphas_cumprod(schedule: Schedule) -> torch.Tensor:
    """Return abar_t, float64 (num_timesteps,), falling; the last is 0 at zero terminal SNR."""
    n = schedule.num_timesteps
    if schedule.name == "cosine":
        grid = torch.arange(n + 1, dtype=torch.float64) / n
        curve = torch.cos((grid + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1.0 - curve[1:] / curve[:-1]).clamp(max=0.999)
    else:
        first, last = _ENDS[schedule.name]
        power = 2 if schedule.name == "scaled_linear" else 1
        ends = first ** (1 / power), last ** (1 / power)
        betas = torch.linspace(*ends, n, dtype=torch.float64) ** power * (1000 / n)
        betas = betas.clamp(max=0.999)
    abar = torch.cumprod(1.0 - betas, dim=0)
    if schedule.zero_terminal_snr:
        root = abar.sqrt()
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return abar


def alpha_sigma(
    schedule: Schedule, timestep_B: torch.Tensor, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return alpha and sigma shaped (B, 1, ...) for broadcasting over `like`."""
    abar = alphas_cumprod(schedule)[timestep_B.cpu().long()]
    shape = (-1, *(1 for _ in like.shape[1:]))
    alpha, sigma = abar.sqrt().reshape(shape), (1.0 - abar).sqrt().reshape(shape)
    return alpha.to(like), sigma.to(like)
