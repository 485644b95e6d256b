"""One network in a process of its own: `python -m tests.bench.models_child '<json>'` prints what it measured as JSON.

All networks stand on the same image U-Net: ours; ours without temporal resampling; the image model alone, frame by
frame; and lucidrains' lumiere-pytorch, whose hooks are put behind the same blocks.
"""

import importlib
import json
import re
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from models import image_unet, samplers, stunet

KERNELS = ("conv", "mm", "matmul", "linear", "attention", "einsum")
STEPS = 4
Call = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process is told; `px` is the side of a frame, `peers` where lumiere-pytorch lies."""

    network: str
    task: str
    frames: int
    px: int
    widths: tuple[int, ...]
    blocks: int
    repeats: int
    threads: int
    peers: str
    device: str = "cpu"
    bf16: bool = False
    compiled: bool = False


def main() -> None:
    """Measure one network at one task."""
    told = json.loads(sys.argv[1])
    job = Job(**{**told, "widths": tuple(told["widths"])})
    torch.set_num_threads(job.threads)
    call, parameters = network(job)
    found = measured(job, call, parameters)
    sys.stdout.write(f"\n{json.dumps(found)}\n")


def config(job: Job) -> stunet.Config:
    """Return the shape that all networks share."""
    levels = len(job.widths)
    return stunet.Config(
        sample_px=job.px,
        widths=job.widths,
        blocks_per_level=job.blocks,
        temporal_factor=(2,) * (levels - 1),
        head_dim=16,
        text_levels=1,
    )


def network(job: Job) -> tuple[Call, list[nn.Parameter]]:
    """Return the network as a function of (x_BCTHW, timestep_B, text_BND), and what it trains."""
    shape = config(job)
    if job.network == "lumiere-pytorch":
        return peer(job, shape)
    if job.network == "without temporal resampling":
        shape = replace(shape, temporal_factor=(1,) * len(shape.temporal_factor))
    model = stunet.build(shape, seed=0).to(job.device)
    if job.network == "without inflations":
        hollow(model.motion)
    alone = job.network == "image model alone"
    parameters = list(stunet.trainable(model, "base" if alone else "motion").values())
    run: Any = torch.compile(model, fullgraph=True) if job.compiled else model
    return (lambda x, t, text: run(x, t, text, temporal=not alone)), parameters


def hollow(motion: Any) -> None:
    """Leave only the resampling in time: what is outside the kernels is then the image model's own, at fewer frames."""
    empty = nn.ModuleList()
    motion.down = nn.ModuleList(nn.ModuleList(empty for _ in stacks) for stacks in motion.down)
    motion.up = nn.ModuleList(nn.ModuleList(empty for _ in stacks) for stacks in motion.up)
    motion.mid = empty


class _Image(nn.Module):
    """A diffusers U-Net behind the signature that lumiere-pytorch calls."""

    def __init__(self, unet: Any, text_dim: int) -> None:
        super().__init__()
        self.unet, self.text_dim = unet, text_dim

    def forward(self, x: torch.Tensor, time: torch.Tensor, text: torch.Tensor | None = None) -> Any:
        if text is None:  # its trial run, for the shapes
            text = torch.zeros(len(x), 16, self.text_dim)
        return self.unet(x, time, encoder_hidden_states=text, return_dict=False)[0]


def peer(job: Job, shape: stunet.Config) -> tuple[Call, list[nn.Parameter]]:
    """Return lumiere-pytorch around the same image model, its modules behind the same blocks."""
    sys.path.insert(0, job.peers)
    Lumiere: Any = importlib.import_module("lumiere_pytorch").Lumiere

    image = _Image(image_unet.build(shape.image_config, seed=0), shape.text_dim)
    model = Lumiere(
        image, image_size=job.px, unet_time_kwarg="time", **places(image.unet), channels=3
    )
    # Its hooks, which repeat conditions for each frame, fail where diffusers passes names only; what is
    # below has them repeated by the blocks' own.
    named_only = re.compile(r"attentions\.\d+\.|add_embedding|time_|blocks\.\d+$")
    for name, module in model.named_modules():
        if named_only.search(name):
            module._forward_pre_hooks.clear()
            module._forward_pre_hooks_with_kwargs.clear()
    model = model.to(job.device)
    return (lambda x, t, text: model(x, time=t, text=text)), list(model.parameters())


def places(unet: Any) -> dict[str, list[str]]:
    """Name the blocks of the image model behind which temporal modules go: those of ours."""
    found: dict[str, list[str]] = {"conv": [], "attn": [], "downsample": [], "upsample": []}
    for level, block in enumerate(unet.down_blocks):
        kind = "attn" if level == len(unet.down_blocks) - 1 else "conv"
        root = f"unet.down_blocks.{level}"
        found[kind] += [f"{root}.resnets.{i}" for i in range(len(block.resnets))]
        found["downsample"] += [f"{root}.downsamplers.0"] if block.downsamplers else []
    found["attn"].append("unet.mid_block.resnets.0")
    for level, block in enumerate(unet.up_blocks):
        root = f"unet.up_blocks.{level}"
        found["conv" if level else "attn"] += [
            f"{root}.resnets.{i}" for i in range(len(block.resnets))
        ]
        found["upsample"] += [f"{root}.upsamplers.0"] if block.upsamplers else []
    return {f"{kind}_module_names": names for kind, names in found.items()}


def measured(job: Job, call: Call, parameters: list[nn.Parameter]) -> dict[str, Any]:
    """Return the least time of a step, the peak memory that steps added, and the share of glue."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, job.frames, job.px, job.px, generator=generator).to(job.device)
    text = torch.randn(1, 16, 64, generator=generator).to(job.device)
    timestep = torch.tensor([500.0 if job.network == "lumiere-pytorch" else 500]).to(job.device)

    def step() -> None:
        with torch.autocast(job.device, torch.bfloat16, enabled=job.bf16):
            if job.task == "sample":
                settings = samplers.Sampling(steps=STEPS)
                samplers.solve(
                    lambda x, t: call(x, t.to(timestep), text), x, seeds=[0], settings=settings
                )
            else:
                call(x, timestep, text).float().square().mean().backward()
        for parameter in parameters:
            parameter.grad = None
        if job.device == "cuda":
            torch.cuda.synchronize()

    before = peak(job)  # weights, and torch itself
    step()
    times = []
    for _ in range(job.repeats):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    memory = peak(job) - before
    return {
        "s": min(times),
        "mib": memory,
        "glue": glue(step, job.device),
        "trained": sum(p.numel() for p in parameters),
    }


def peak(job: Job) -> float:
    """Return the largest memory so far, in MiB."""
    if job.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def glue(step: Callable[[], None], device: str) -> float:
    """Return the share of a step's time spent outside convolution, matrix product and attention.

    On a GPU each kernel is counted once, with the operation that launched it; a fused one is glue.
    """
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=kinds) as seen:
        step()
    spent = {
        e.key.lower(): e.self_device_time_total if device == "cuda" else e.self_cpu_time_total
        for e in seen.key_averages()
        if e.device_type == DeviceType.CPU
    }
    inside = sum(
        s
        for key, s in spent.items()
        if any(k in key for k in KERNELS) and not key.startswith("triton")
    )
    return 1.0 - inside / sum(spent.values())


if __name__ == "__main__":
    main()
