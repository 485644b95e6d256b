"""AdamW, its learning rate step by step, and the average of the weights that a training leaves."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """AdamW with linear warm-up and decay to `final_share` of the learning rate; gradients are clipped by their norm."""

    learning_rate: float = 1e-3
    warmup_steps: int = 10
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    final_share: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.99

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.warmup_steps < 0 or self.learning_rate < 0 or self.clip_norm <= 0:
            raise ValueError("warmup_steps and learning_rate: at least 0; clip_norm: above 0")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError("ema_decay: at least 0 and below 1")
        if not 0.0 <= self.final_share <= 1.0:
            raise ValueError("final_share: between 0 and 1")

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, 0 <= step < steps."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        left = 0.5 + 0.5 * math.cos(math.pi * done) if self.decay == "cosine" else 1.0 - done
        return self.learning_rate * (self.final_share + (1.0 - self.final_share) * left)

    def build(self, parameters: Iterable[torch.Tensor], device: torch.device) -> torch.optim.AdamW:
        """Return the optimizer; on a CPU one parameter after the other, so that equal runs have equal bits."""
        return torch.optim.AdamW(
            parameters,
            lr=self.learning_rate,
            betas=self.betas,
            weight_decay=self.weight_decay,
            foreach=False if device.type == "cpu" else None,
        )
