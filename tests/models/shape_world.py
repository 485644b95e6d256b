"""A world that can be judged exactly: a coloured square moves over a torus, one pixel a frame.

It wraps around, so that no clip ever loses it, and a clip of T frames is known from its first. Values lie in [-1, 1].
Letters: B batch, C channels, T frames, H height, W width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

PX, SIDE = 8, 3
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
COLOURS = {
    "red": (0.8, -0.6, -0.6),
    "green": (-0.6, 0.7, -0.5),
    "blue": (-0.5, -0.4, 0.8),
    "yellow": (0.8, 0.7, -0.6),
}
GROUND = -0.8


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a clip shows; its caption says all but where the square begins."""

    colour: str
    direction: str
    y: int
    x: int

    @property
    def caption(self) -> str:
        return f"a {self.colour} square moving {self.direction}"


def scene(seed: int) -> Scene:
    """Return a scene by its seed; colours and directions come in turn."""
    kinds = [(c, d) for c in COLOURS for d in DIRECTIONS]
    colour, direction = kinds[seed % len(kinds)]
    place = torch.randint(PX, (2,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Scene(colour=colour, direction=direction, y=place[0], x=place[1])


def render(scene: Scene, frames: int) -> torch.Tensor:
    """Return the clip_CTHW."""
    still = torch.full((3, PX, PX), GROUND)
    still[:, :SIDE, :SIDE] = torch.tensor(COLOURS[scene.colour])[:, None, None]
    dy, dx = DIRECTIONS[scene.direction]
    return torch.stack(
        [still.roll((scene.y + t * dy, scene.x + t * dx), (1, 2)) for t in range(frames)], dim=1
    )


def path(scene: Scene) -> torch.Tensor:
    """Return a mask_1HW that is 1 in the band of rows or columns which the square never leaves."""
    band = torch.zeros(PX)
    band[:SIDE] = 1.0
    across = DIRECTIONS[scene.direction][0] == 0
    line = band.roll(scene.y if across else scene.x)
    return (line[:, None] if across else line[None, :]).expand(PX, PX).unsqueeze(0).contiguous()


def clips(seeds: Sequence[int], frames: int) -> tuple[torch.Tensor, list[str]]:
    """Return clips_BCTHW and their captions."""
    scenes = [scene(seed) for seed in seeds]
    return torch.stack([render(s, frames) for s in scenes]), [s.caption for s in scenes]


def track(x_CTHW: torch.Tensor) -> torch.Tensor:
    """Return the square's displacement (y, x) in px at each step, (T-1, 2): circular centroids of what is no ground."""
    weight_THW = (x_CTHW - GROUND).abs().sum(0)
    weight_THW = (weight_THW - weight_THW.flatten(1).median(1).values[:, None, None]).clamp(min=0)
    angle = torch.arange(PX) * (2 * math.pi / PX)
    turn = torch.polar(torch.ones(PX), angle)
    places = [(weight_THW.sum(axis).to(turn.dtype) @ turn).angle() for axis in (2, 1)]
    step_TP = torch.stack(places, dim=1).diff(dim=0)
    return ((step_TP + math.pi) % (2 * math.pi) - math.pi) * (PX / (2 * math.pi))


def direction(x_CTHW: torch.Tensor) -> str:
    """Return the direction that the square moves in."""
    moved = track(x_CTHW).sum(0)
    return max(DIRECTIONS, key=lambda d: float(moved @ torch.tensor(DIRECTIONS[d]).float()))
