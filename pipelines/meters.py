"""How fast a training goes: clips, frames and FLOP a second, the share of the device's peak, memory.

FLOP are those that learning needs (models/cost.py), so that work done twice, as with activation checkpointing, is not counted.
"""

import resource
from dataclasses import dataclass

import torch

from models import cost
from pipelines import weights

# Dense bf16 peaks by the makers' data sheets, FLOP/s; matched by the start of the device's name.
PEAKS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 4090": 165e12,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Meter:
    """What one clip costs, and where it is trained."""

    clip_flop: float
    frames: int
    device: torch.device

    def numbers(self, *, clips: int, wall_s: float, workers: int) -> dict[str, float]:
        """Return the rates of a step of `clips` clips that took `wall_s` seconds in all."""
        flop_s = self.clip_flop * clips / wall_s
        found = {
            "clips_per_s": clips / wall_s,
            "frames_per_s": clips * self.frames / wall_s,
            "tflop_per_s": flop_s / 1e12,
            "memory_gib": memory_gib(self.device),
        }
        peak = self._peak()
        return found | ({"mfu": flop_s / (peak * workers)} if peak else {})

    def _peak(self) -> float:
        if self.device.type != "cuda":
            return 0.0
        name = torch.cuda.get_device_name(self.device)
        return next((peak for start, peak in PEAKS.items() if name.startswith(start)), 0.0)


def metered(spec: weights.Spec, *, frames: int, device: torch.device) -> Meter:
    """Return the meter of a role's training; `frames` are those of a window, or images a clip, unused by motion."""
    count = spec.frames if spec.role == "motion" else frames
    side = spec.network.sample_px
    tokens = spec.text([""]).shape[1]
    told = {"frames": count, "height": side, "width": side, "tokens": tokens}
    flop = cost.training_flops(spec.network, spec.role, **told)
    return Meter(clip_flop=flop, frames=count, device=device)


def memory_gib(device: torch.device) -> float:
    """Return the largest memory this process has held, on its device (on a CPU: resident)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
