"""Small Lumiere models of the shape world: base, motion with known frames, a fine-tuned style, an SSR; minutes each.

They learn by the objective of the product; the loop here has no dataset, no checkpoints and no workers.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from models import known, objective, samplers, ssr, stunet
from models.conditioning import HashedText
from models.diffusion import Schedule
from models.ema import EMA
from tests.models import shape_world as world
from tests.models.kept import kept

FRAMES = 8
TEXT, SCHEDULE = HashedText(dim=64, length=8), Schedule()
CONFIG = stunet.Config(
    sample_px=world.PX,
    widths=(32, 48, 64),
    text_levels=1,
    head_dim=8,
    temporal_factor=(2, 2),
    known=True,
)
SSR = ssr.Config(sample_px=2 * world.PX, scale=4, widths=(16, 32), norm_groups=8, head_dim=8)
SSR_WINDOW = 8
MODELS = Path(stunet.__file__).parent
SOURCES = [
    *(MODELS / f"{name}.py" for name in (
        "conditioning", "diffusion", "ema", "image_unet", "known", "modes", "noise", "objective", "schedule", "ssr", "stunet",
        "stunet_config", "temporal",
        "walk",
    )),
    Path(__file__), Path(world.__file__),
]  # fmt: skip
Batch = tuple[torch.Tensor, list[str]]


def base() -> dict[str, torch.Tensor]:
    """Return a base that draws the square in its colour; what moves is beyond it."""
    return kept("video-base", SOURCES, lambda: _base(stunet.build(CONFIG, seed=0), shapes, 3000))


def motion() -> dict[str, torch.Tensor]:
    """Return motion modules over `base`, trained with the mask mixture."""

    def make() -> dict[str, torch.Tensor]:
        model = stunet.build(CONFIG, seed=0)
        stunet.load_base(model, base())
        told = objective.Objective(
            role="motion", schedule=SCHEDULE, text=TEXT, run_seed=2, caption_dropout=0.1,
            masks=known.Mixture(first_frame=0.6, tube=0.05, border=0.0, cinemagraph=0.15, nothing=0.2),
        )  # fmt: skip
        _fit(model, told, shapes, steps=4000, batch=16, frames=FRAMES, rate=4e-3)
        return stunet.motion_state(model)

    return kept("video-motion", SOURCES, make)


def style() -> dict[str, torch.Tensor]:
    """Return the base fine-tuned on a brighter, paler world."""

    def make() -> dict[str, torch.Tensor]:
        model = stunet.build(CONFIG, seed=0)
        stunet.load_base(model, base())
        return _base(model, pale, 600)

    return kept("video-style", SOURCES, make)


def video_model(base_state: dict[str, torch.Tensor] | None = None) -> stunet.STUNet:
    """Return base (or another base state) and motion as one network."""
    model = stunet.build(CONFIG, seed=0)
    stunet.load_base(model, base() if base_state is None else base_state)
    stunet.load_motion(model, motion())
    return model.eval()


def ssr_model() -> stunet.STUNet:
    """Return an SSR for windows of textured clips; see `textured`."""

    def make() -> dict[str, torch.Tensor]:
        model = ssr.build(SSR, seed=0)
        told = objective.Objective(
            role="ssr", schedule=SCHEDULE, text=TEXT, run_seed=3, frames=SSR_WINDOW, ssr=SSR
        )
        _fit(model, told, textured, steps=1200, batch=4, frames=SSR_WINDOW, rate=2e-3)
        return dict(model.state_dict())

    model = ssr.build(SSR, seed=0)
    model.load_state_dict(kept("video-ssr", SOURCES, make))
    return model.eval()


def shapes(seeds: range, frames: int) -> Batch:
    """Return clips of the world."""
    return world.clips(seeds, frames)


def pale(seeds: range, frames: int) -> Batch:
    """Return the same clips, all levels drawn towards white."""
    x, captions = world.clips(seeds, frames)
    return 0.5 * x + 0.4, captions


def textured(seeds: range, frames: int) -> Batch:
    """Return four tiles of a clip with a fine texture whose sign, constant in a clip, cannot be seen in the small video.

    So windows that do not talk to each other choose it by themselves.
    """
    x, captions = world.clips(seeds, frames)
    x, side_px = x.repeat(1, 1, 1, 2, 2), torch.arange(2 * world.PX)
    y_px, x_px = torch.meshgrid(side_px, side_px, indexing="ij")
    board = ((y_px + x_px) % 2 * 2 - 1) * 0.25
    signs = torch.tensor([1.0 if (s // 16) % 2 else -1.0 for s in seeds])
    return x * 0.6 + signs.reshape(-1, 1, 1, 1, 1) * board, captions


def sampled(
    model: stunet.STUNet,
    captions: list[str],
    *,
    seed: int = 0,
    steps: int = 20,
    scale: float = 2.0,
    **task,
) -> torch.Tensor:
    """Return videos_BCTHW of captions, by the product's sampler."""
    text, null = TEXT(captions), TEXT([""] * len(captions))
    return samplers.sample_base(
        model,
        text,
        null,
        seeds=[1_000_000 + seed + i for i in range(len(captions))],
        frames=FRAMES,
        size_px=(world.PX, world.PX),
        settings=samplers.Sampling(schedule=SCHEDULE, steps=steps, guidance_scale=scale),
        **task,
    )


def _base(
    model: stunet.STUNet, clips: Callable[[range, int], Batch], steps: int
) -> dict[str, torch.Tensor]:
    told = objective.Objective(
        role="base",
        schedule=SCHEDULE,
        text=TEXT,
        run_seed=1,
        frames=2,
        caption_dropout=0.1,
    )
    _fit(model, told, clips, steps=steps, batch=16, frames=4, rate=4e-3)
    return stunet.base_state(model)


def _fit(
    model: stunet.STUNet,
    told: objective.Objective,
    clips: Callable[[range, int], Batch],
    *,
    steps: int,
    batch: int,
    frames: int,
    rate: float,
) -> None:
    """Train the role's parameters, clips never seen twice, and leave their average in the model."""
    parameters = stunet.trainable(model, told.role)
    optimizer = torch.optim.AdamW(parameters.values(), weight_decay=0.0, betas=(0.9, 0.99))
    average = EMA(parameters, decay=0.995)
    for step, seeds in _seeds(steps, batch):
        for group in optimizer.param_groups:
            group["lr"] = (
                rate * min(1.0, (step + 1) / 50) * (0.52 + 0.48 * math.cos(math.pi * step / steps))
            )
        x, captions = clips(seeds, frames)
        items = objective.Clips(
            x_BCTHW=x, captions=captions, clip_ids=[str(s) for s in seeds], positions=list(seeds)
        )
        optimizer.zero_grad()
        objective.losses(told, model, items, step=step).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        average.update(parameters)
    average.copy_to(parameters)


def _seeds(steps: int, batch: int) -> Iterator[tuple[int, range]]:
    for step in range(steps):
        yield step, range(1000 + step * batch, 1000 + (step + 1) * batch)
