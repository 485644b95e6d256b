"""Clips that a training sees to the bit as they were drawn: payloads are raw frames, with no encoder and no resizing between.

And the training of them in this process: one worker, one thread, the product's own loop.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.group import Place
from ingest.objects import Root
from models import ssr, stunet
from models.conditioning import HashedText
from models.diffusion import Schedule
from pipelines import training, weights
from pipelines.shelves import Shelf
from pipelines.training import Job
from tests.ingest import made_views

FPS = 16
ALONE = Place(rank=0, world_size=1)
Clip = tuple[np.ndarray, str]
Shape = stunet.Config | ssr.Config


def shelf(place: Path, clips: Sequence[Clip]) -> Shelf:
    """Store clips (frames uint8 THWC, caption) as a frozen view; their ids depend on their numbers alone."""
    names = [hashlib.sha256(f"drawn {i}".encode()).hexdigest() for i in range(len(clips))]
    payloads = [(name, f.tobytes()) for name, (f, _) in zip(names, clips, strict=True)]
    rows = [
        {
            "clip_id": name,
            **where,
            "frame_count": frames.shape[0],
            "height": frames.shape[1],
            "width": frames.shape[2],
            "payload_kind": "raw_u8_thwc",
            "fps_num": FPS,
            "fps_den": 1,
            "caption": caption,
        }
        for name, where, (frames, caption) in zip(
            names, made_views.place(place, payloads), clips, strict=True
        )
    ]
    rows.sort(key=lambda row: row["clip_id"])
    return Shelf(root=str(place), view=made_views.write_view(Root.of(place), rows).digest)


def spec(role: stunet.Role, shape: Shape, *, frames: int) -> weights.Spec:
    """Return the Spec of a role of this shape, for clips of so many frames."""
    network = shape.network if isinstance(shape, ssr.Config) else shape
    return weights.Spec(
        role=role,
        network=network,
        schedule=Schedule(),
        text=HashedText(dim=network.text_dim, length=8),
        frames=frames,
        fps=FPS,
        ssr=shape if isinstance(shape, ssr.Config) else None,
    )


def job(of: Shelf, folder: Path, told: weights.Spec, **changes: Any) -> Job:
    """Return a training for one worker and one thread; `changes` must say steps, global_batch, frames and optimizer."""
    values = {
        "spec": told,
        "shelves": (of,),
        "view_digest": of.view,
        "folder": str(folder),
        "base": "",
        "identity": "drawn",
        "seed": 0,
        "caption_dropout": 0.1,
        "checkpoint_every": 10**6,
        "threads": 1,
        "px": told.network.sample_px,
        "decode_workers": 0,
        "max_bad_clips": 0,
    }
    return Job(**{**values, **changes})


def trained(told: Job) -> dict[int, float]:
    """Train to the end and return the loss of each step, by its number from 1 on."""
    found: dict[int, float] = {}

    def post(event: Mapping[str, Any]) -> bool:
        if event["event"] == "step":
            found[event["step"]] = event["loss"]
        return False

    before = torch.are_deterministic_algorithms_enabled()
    try:
        training.train(told, ALONE, post)
    finally:
        torch.use_deterministic_algorithms(before)
    return found
