"""The sampling actor: makes one video at a time on its device, and writes the one before to files meanwhile.

A file is there before the manifest names it. An actor makes base videos ("base"), enlarges them ("ssr"), or both ("all");
what goes from one to the other is the base video's file.
"""

import json
import os
import socket
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cluster.pool import Part
from models.freed import keep_freed
from pipelines import together, videos
from pipelines.maker import Maker, Roles
from pipelines.order import Order
from pipelines.sample_config import PUBLIC


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What an actor is told once: the networks, where videos go, what it makes, and what made it."""

    roles: Roles
    out: str
    stage: Literal["all", "base", "ssr"] = "all"
    threads: int = 1
    box: Any = None  # the letterbox of actors that share a video
    code: str = ""
    recipe: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """A sample whose base video is in its file: its order and what is known of its making."""

    order: Order
    files: dict[str, str]
    made: dict[str, Any] = field(default_factory=dict)


class Generator:
    """Makes samples; called with an Order (or Begun, for "ssr"), returns the manifest row of the finished video.

    It may be called from several threads: one generates, the others encode.
    """

    def __init__(self, told: Told) -> None:
        torch.set_num_threads(told.threads)
        keep_freed()
        self._told, self._out = told, Path(told.out)
        self._maker = maker(told.roles, base=told.stage != "ssr", ssr=told.stage != "base")
        self._turn = threading.Lock()

    def __call__(self, told: Order | Begun | Part) -> dict[str, Any] | Begun | None:
        """Make one video, or a part of one: the first part returns the row, the others None.

        The same order gives the same frames on any actor, alone or with others.
        """
        torch.set_num_threads(self._told.threads)  # each thread has its own number
        part = told if isinstance(told, Part) else None
        given: Order | Begun = told.payload if isinstance(told, Part) else told
        if isinstance(given, Begun):
            path = self._out / given.files["base_path"]
            low = videos.read_frames(path, given.files["base_sha256"])
            with self._turn:
                high = self._enlarged(given.order, low, part)
            return None if part and part.number else self._finished(given, low, high)
        with self._turn:
            started_s = time.time()  # not before: it may have waited for another sample
            low = self._maker.low(given)  # each part makes it: none has to wait for another
            base_s = time.time() - started_s
            high = None if self._told.stage == "base" else self._enlarged(given, low, part)
        if part and part.number:
            return None
        files = videos.write_base(self._out, _stem(given), low, self._maker.fps)
        begun = Begun(order=given, files=files, made={"started_s": started_s, "base_s": base_s})
        return begun if self._told.stage == "base" else self._finished(begun, low, high)

    def _enlarged(
        self, order: Order, low: np.ndarray, part: Part | None
    ) -> tuple[np.ndarray, float] | None:
        if self._maker.plan is None:
            return None
        begun_s = time.time()
        if part is None or part.count == 1:
            high = self._maker.high(order, low)
        else:
            high = together.enlarged(self._maker, order, low, part, self._told.box)
        return high, time.time() - begun_s

    def _finished(
        self, begun: Begun, low: np.ndarray, high: tuple[np.ndarray, float] | None
    ) -> dict[str, Any]:
        final, ssr_s = (low, 0.0) if high is None else high
        files = videos.write_final(
            self._out,
            _stem(begun.order),
            begun.files,
            final,
            self._maker.fps,
            enlarged=high is not None,
        )
        made = begun.made | {"ssr_s": ssr_s}
        return self._row(replace(begun, files=files, made=made), final)

    def _row(self, begun: Begun, final: np.ndarray) -> dict[str, Any]:
        order, ended_s = begun.order, time.time()
        settings = self._told.roles.settings
        return {
            "status": "done",
            "error": None,
            **order.columns(),
            "noise_id": self._maker.noise_id,
            **{f"{role}_digest": digest for role, digest in self._maker.digests.items()},
            "settings": json.dumps(settings, sort_keys=True),
            "recipe_digest": self._told.recipe,
            **self._windows(),
            "frames": final.shape[0],
            "fps": self._maker.fps,
            "width": final.shape[2],
            "height": final.shape[1],
            **begun.files,
            **self._machine(),
            "dtype": "bfloat16" if settings["precision"] == "bf16" else "float32",
            "code": self._told.code,
            "worker": f"{socket.gethostname()}/{os.getpid()}",
            "started_at": _clock(begun.made["started_s"]),
            "ended_at": _clock(ended_s),
            "base_s": round(begun.made["base_s"], 3),
            "ssr_s": round(begun.made["ssr_s"], 3),
            "wall_s": round(ended_s - begun.made["started_s"], 3),
        }

    def _windows(self) -> dict[str, Any]:
        plan = self._maker.plan
        return {
            "window_starts": list(plan.starts) if plan else [],
            "window_frames": plan.window if plan else 0,
            "windows": len(plan.starts) if plan else 0,
        }

    def _machine(self) -> dict[str, Any]:
        device = self._maker.device
        gpu = device.type == "cuda"
        cudnn = torch.backends.cudnn.version() if gpu else None
        return {
            "device": torch.cuda.get_device_name(device) if gpu else device.type,
            "torch": torch.__version__,
            "cuda": str(torch.version.cuda or ""),
            "cudnn": str(cudnn or ""),
        }


def maker(roles: Roles, *, base: bool = True, ssr: bool = True) -> Any:
    """Return the networks of a recipe, ours or those of a public pipeline, loaded."""
    if not roles.base.startswith(PUBLIC):
        return Maker(roles, base=base, ssr=ssr)
    from pipelines.maker_public import PublicMaker  # noqa: PLC0415  it loads all of diffusers

    return PublicMaker(roles)


def _stem(order: Order) -> str:
    return videos.stem(order.prompt.id, order.index, order.identity)


def _clock(time_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_s))
