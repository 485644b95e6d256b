"""The sampling actor: loads the weights once, makes one video a call, writes its files before it names them.

Letters: B = 1 video, C channels, T frames, H height, W width.
"""

import hashlib
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ingest.encode import encode_video
from ingest.files import atomic_write
from models import noise, samplers, windows
from pipelines import weights
from pipelines.order import Order


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """What an actor is told once: checkpoints, where videos go, how to solve."""

    base: str
    motion: str
    ssr: str
    out: str
    settings: dict[str, Any]
    threads: int
    code: str


class Generator:
    """Makes samples; called with an Order, returns the manifest row of the finished video."""

    def __init__(self, told: Weights) -> None:
        torch.set_num_threads(told.threads)
        self._told = told
        base, motion = (
            weights.load(Path(told.base), "base"),
            weights.load(Path(told.motion), "motion"),
        )
        self._loaded = {"base": base, "motion": motion}
        self._spec = motion.spec
        self._video = weights.video_model(base, motion)
        self._ssr = None
        if told.ssr:
            self._loaded["ssr"] = weights.load(Path(told.ssr), "ssr")
            self._ssr = weights.ssr_model(self._loaded["ssr"])

    def __call__(self, order: Order) -> dict[str, Any]:
        """Make one video and return its row; the same order gives the same frames on any actor."""
        started = time.time()
        low, high = self.generate(order)
        files = self._write(order, low, high)
        plan = self._plan()
        final = low if high is None else high
        return {
            "identity": order.identity,
            "status": "done",
            "error": None,
            "prompt_id": order.prompt_id,
            "prompt": order.prompt,
            "index": order.index,
            "seed": f"{order.seed:016x}",
            "noise_id": noise.NOISE_ID,
            **{f"{role}_digest": loaded.digest for role, loaded in self._loaded.items()},
            "settings": json.dumps(self._told.settings, sort_keys=True),
            "window_starts": list(plan.starts) if self._ssr else [],
            "window_frames": plan.window if self._ssr else 0,
            "windows": len(plan.starts) if self._ssr else 0,
            "frames": final.shape[0],
            "fps": self._spec.fps,
            "width": final.shape[2],
            "height": final.shape[1],
            **files,
            "device": "cpu",
            "dtype": "float32",
            "torch": torch.__version__,
            "code": self._told.code,
            "worker": f"{socket.gethostname()}/{os.getpid()}",
            "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "wall_s": round(time.time() - started, 3),
        }

    def generate(self, order: Order) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the base video and the SSR's, uint8 THWC; the second is None without an SSR."""
        text, null = self._spec.text([order.prompt]), self._spec.text([""])
        px = self._spec.network.sample_px
        low = samplers.sample_base(
            self._video,
            text,
            null,
            seeds=[order.seed],
            frames=self._spec.frames,
            size_px=(px, px),
            settings=self._sampling("base_solver", "motion"),
        ).clamp(-1.0, 1.0)
        if self._ssr is None:
            return pixels(low), None
        spec = self._loaded["ssr"].spec
        high = samplers.sample_ssr(
            self._ssr,
            low,
            spec.text([order.prompt]),
            spec.text([""]),
            seeds=[order.seed],
            scale=spec.ssr.scale if spec.ssr else 1,
            precondition=spec.ssr.precondition if spec.ssr else True,
            plan=self._plan(),
            settings=self._sampling("ssr_solver", "ssr"),
            weights=self._told.settings["windows"]["weights"],
            augment_level=self._told.settings["augment_level"],
            micro_batch=self._told.settings["micro_batch"],
        )
        return pixels(low), pixels(high)

    def _plan(self) -> windows.Plan:
        keys = self._told.settings["windows"]
        return getattr(windows, keys["spread"])(self._spec.frames, keys["window"], keys["overlap"])

    def _sampling(self, solver: str, role: str) -> samplers.Sampling:
        return samplers.Sampling(
            schedule=self._loaded[role].spec.schedule, **self._told.settings[solver]
        )

    def _write(self, order: Order, low: np.ndarray, high: np.ndarray | None) -> dict[str, str]:
        out = Path(self._told.out)
        stem = f"videos/{order.prompt_id}/{order.index:04d}-{order.identity[:12]}"
        final = low if high is None else high
        names = {"base_path": f"{stem}.base.mp4", "view_path": f"{stem}.mp4"}
        names["lossless_path"] = names["base_path"] if high is None else f"{stem}.lossless.mp4"
        (out / stem).parent.mkdir(parents=True, exist_ok=True)
        fps = self._spec.fps
        atomic_write(out / names["base_path"], encode_video(low, fps, lossless=True))
        if high is not None:
            atomic_write(out / names["lossless_path"], encode_video(high, fps, lossless=True))
        atomic_write(out / names["view_path"], encode_video(final, fps, lossless=False))
        return {**names, "base_sha256": frames_sha256(low), "frames_sha256": frames_sha256(final)}


def pixels(x_BCTHW: torch.Tensor) -> np.ndarray:
    """Return the first video as uint8 THWC, rounded; the one border from [-1, 1] back to pixels."""
    scaled = x_BCTHW[0].permute(1, 2, 3, 0).add(1.0).mul(127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).contiguous().cpu().numpy()


def frames_sha256(frames_THWC: np.ndarray) -> str:
    """Return the hash of decoded frames and their shape: containers differ between builds, pixels may not."""
    whole = hashlib.sha256(f"{frames_THWC.shape}".encode())
    whole.update(np.ascontiguousarray(frames_THWC).tobytes())
    return whole.hexdigest()
