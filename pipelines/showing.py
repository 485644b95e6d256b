"""What a network makes of a few fixed clips while it is trained: small videos beside the losses."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ingest.encode import encode_still, encode_video
from ingest.files import atomic_write
from models import noise, objective, samplers, ssr, windows
from pipelines import weights
from pipelines.trainee import Trainee
from pipelines.videos import pixels

IMAGES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Show:
    """Videos every `every` steps (0 = none): of the captions of the first `clips` clips, by so many DDIM steps."""

    every: int = 0
    clips: int = 2
    steps: int = 10
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.every < 0 or not 1 <= self.clips <= 8 or self.steps < 1:
            raise ValueError("every: at least 0; clips: 1 to 8; steps: at least 1")
        samplers.Sampling(steps=self.steps, guidance_scale=self.guidance_scale)


def made(
    trainee: Trainee, clips: list[objective.Clips], show: Show, *, frames: int
) -> list[torch.Tensor]:
    """Return a video_BCTHW of each clip by the averaged weights, the same seeds every time.

    A base makes IMAGES single frames, a motion model whole clips, an SSR enlarges the clip's first `frames`.
    """
    settings = samplers.Sampling(
        schedule=trainee.spec.schedule, steps=show.steps, guidance_scale=show.guidance_scale
    )
    with trainee.averaged() as model:
        return [_one(model, trainee.spec, one, settings, frames) for one in clips[: show.clips]]


def _one(
    model: torch.nn.Module,
    spec: weights.Spec,
    clip: objective.Clips,
    settings: samplers.Sampling,
    frames: int,
) -> torch.Tensor:
    text, null = spec.text(clip.captions), spec.text([""])
    seeds = [noise.seed_for("show", clip.clip_ids[0])]
    if spec.ssr is not None:
        high = clip.x_BCTHW[:, :, :frames]
        return samplers.sample_ssr(
            model,
            ssr.shrink(high, spec.ssr.scale),
            text,
            null,
            seeds=seeds,
            scale=spec.ssr.scale,
            plan=windows.exact(high.shape[2], high.shape[2], 0),
            settings=settings,
            precondition=spec.ssr.precondition,
        )
    side = spec.network.sample_px
    return samplers.sample_base(
        model,
        text,
        null,
        seeds=seeds,
        frames=spec.frames if spec.role == "motion" else IMAGES,
        size_px=(side, side),
        settings=settings,
        temporal=spec.role == "motion",
    )


def written(
    videos: list[torch.Tensor], folder: Path, *, step: int, spec: weights.Spec
) -> list[Path]:
    """Write them under samples/ and return where; a base's frames become one picture, side by side."""
    paths = []
    for number, video in enumerate(videos):
        frames_THWC = pixels(video)
        stem = folder / "samples" / f"step-{step:07d}-{number}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        if spec.role == "base":
            path = stem.with_suffix(".png")
            atomic_write(path, encode_still(np.concatenate(list(frames_THWC), axis=1)))
        else:
            path = stem.with_suffix(".mp4")
            atomic_write(path, encode_video(frames_THWC, spec.fps, lossless=False))
        paths.append(path)
    return paths
