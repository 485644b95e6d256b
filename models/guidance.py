"""Classifier-free guidance as a function of the step: p = p_u + w (p_c - p_u), w = 1 is off.

CMD and Imagen Video write (1 + w') p_c - w' p_u: w = w' + 1 here. A step whose weight is 1 needs no
unconditional pass. Steps are counted from pure noise, also where a run starts later (SDEdit).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from models.diffusion import Denoise

Guidance = Callable[[int, int], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    """The same weight at every step."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        _check(self.scale)

    def __call__(self, step: int, steps: int) -> float:  # noqa: ARG002  the shape of a Guidance
        """Return the weight of `step` (0 is pure noise) of `steps`."""
        return self.scale


@dataclass(frozen=True, kw_only=True, slots=True)
class Oscillating:
    """`high` for the first `after_step` steps, then low, high, low, ... (Imagen Video, section 2.5).

    The paper alternates 15 and 1: the strong steps bind the text, those between undo saturation,
    and at 1 half the work of these is saved.
    """

    high: float = 15.0
    low: float = 1.0
    after_step: int = 0

    def __post_init__(self) -> None:
        _check(self.high)
        _check(self.low)
        if self.after_step < 0:
            raise ValueError(f"after_step {self.after_step} must be 0 or more")

    def __call__(self, step: int, steps: int) -> float:  # noqa: ARG002  the shape of a Guidance
        """Return the weight of `step` (0 is pure noise) of `steps`."""
        past = step - self.after_step
        return self.low if past >= 0 and past % 2 == 0 else self.high


def weight(guidance: Guidance, step: int, steps: int) -> float:
    """Return the weight of `step`; ValueError when the function gives less than 1."""
    return _check(guidance(step, steps))


def guided(
    conditional: Denoise,
    unconditional: Denoise | None,
    guidance_scale: float,
    *,
    both: Denoise | None = None,
) -> Denoise:
    """Return p_u + w (p_c - p_u); with w = 1 it is the conditional model itself.

    `both` makes the two in one pass: it is called with each video twice and treats the first half as `conditional` does, the
    second as `unconditional`, which is then not needed.
    """
    if guidance_scale == 1.0:
        return conditional
    if both is None and unconditional is None:
        raise ValueError(f"guidance {guidance_scale} needs the unconditional denoiser as well")

    def denoise(x: torch.Tensor, timestep_B: torch.Tensor) -> torch.Tensor:
        if both is not None:
            told, base = both(torch.cat((x, x)), torch.cat((timestep_B, timestep_B))).chunk(2)
        else:
            told, base = conditional(x, timestep_B), unconditional(x, timestep_B)  # type: ignore[misc]
        base = base.float()  # the difference is small: not in bf16
        return base + guidance_scale * (told.float() - base)

    return denoise


def _check(scale: float) -> float:
    if not 1.0 <= scale < float("inf"):
        raise ValueError(f"guidance {scale} must be finite and at least 1: 1 switches it off")
    return scale
