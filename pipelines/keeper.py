"""The checkpoints of a training in progress: written beside the steps, whole or not at all, the newest whole one found again.

A checkpoint is written under a temporary name and renamed, by a thread, from copies: a step waits only for the copies and,
where writing is slower than training, for the writer before. Rank 0 writes and chooses; the others are told.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cluster.group import Place
from ingest.files import atomic_folder
from models import checkpoint
from pipelines import saved
from pipelines.trainee import Groups

GROUPS = ("params", "ema", "optimizer")


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """Which checkpoints stay: the newest `newest`, and every one whose step divides by `every` (0 = none besides)."""

    newest: int = 2
    every: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.newest < 1 or self.every < 0:
            raise ValueError("newest: at least 1; every: at least 0")


class Keeper:
    """Writes and finds the checkpoints in a training's folder; errors of the writer are raised at the next call."""

    def __init__(
        self,
        folder: Path,
        *,
        identity: str,
        retention: Retention,
        place: Place,
        warn: Callable[[str], object],
    ) -> None:
        self._folder, self._identity, self._retention = folder, identity, retention
        self._place, self._warn = place, warn
        self._writer: threading.Thread | None = None
        self._failed: BaseException | None = None

    def newest(self, *, every: int = 1) -> checkpoint.Checkpoint | None:
        """Return the newest whole checkpoint whose step divides by `every`, the same on every worker.

        Damaged ones are passed over with a warning; ValueError when it belongs to another recipe.
        """
        self.wait()
        chosen = self._chosen(every) if self._place.rank == 0 else None
        if self._place.world_size > 1:
            told = [chosen]
            dist.broadcast_object_list(told)
            chosen = told[0]
        if chosen is None:
            return None
        found = checkpoint.load(saved.folder_of(self._folder, chosen), groups=GROUPS)
        if found.meta["identity"] != self._identity:
            raise ValueError(f"{self._folder}: its checkpoints belong to another recipe")
        return found

    def _chosen(self, every: int) -> int | None:
        for step in reversed(saved.steps(self._folder)):
            if step % every:
                continue
            try:
                checkpoint.load(saved.folder_of(self._folder, step), groups=GROUPS)
            except (ValueError, OSError) as error:
                self._warn(f"checkpoint of step {step} is damaged and was passed over: {error}")
                saved.discard(self._folder, step)
                continue
            return step
        return None

    def save(
        self,
        step: int,
        groups: Groups,
        *,
        role: str,
        spec: Mapping[str, Any],
        parents: Mapping[str, str],
        meta: Mapping[str, Any],
    ) -> float:
        """Begin to write a checkpoint (rank 0) and return the seconds that the writer before was waited for."""
        started_s = time.monotonic()
        self.wait()
        waited_s = time.monotonic() - started_s
        if self._place.rank != 0:
            return waited_s
        told = {
            "role": role,
            "spec": spec,
            "tensors": groups,
            "parents": parents,
            "meta": {"identity": self._identity, "step": step, **meta},
        }
        self._writer = threading.Thread(target=self._write, args=(step, told), name="checkpoint")
        self._writer.start()
        return waited_s

    @property
    def idle(self) -> bool:
        """Whether no checkpoint is being written."""
        return self._writer is None or not self._writer.is_alive()

    def wait(self) -> None:
        """Wait until the last checkpoint is whole; raises what its writer raised."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    def _write(self, step: int, told: Mapping[str, Any]) -> None:
        try:
            path = saved.folder_of(self._folder, step)
            if (path / "checkpoint.json").exists():
                return  # a continuation came by here before; the same bits
            with atomic_folder(path) as part:
                checkpoint.save(part, **told)
            saved.forget(self._folder, keep=self._retention.newest, every=self._retention.every)
        except BaseException as error:  # noqa: BLE001  raised again in the training's own thread
            self._failed = error
