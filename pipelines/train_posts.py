"""What training workers post, and what the driver makes of it: progress, metrics, warnings, the words of a failure."""

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ingest.files import StorageError
from pipelines.context import Recorder
from pipelines.train_config import Config
from pipelines.training import Diverged

# What would fail again in the same way. Other errors, as of a worker whose peer has died, are worth another start.
LASTING = (
    Diverged,
    StorageError,
    MemoryError,
    torch.OutOfMemoryError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NotImplementedError,
)
# Libraries raise general errors for these: torch's CPU allocator, CUDA's and cuBLAS's a RuntimeError, safetensors its own.
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
NO_SPACE = ("No space left on device", "Disk quota exceeded", "StorageFull")
MEMORY = 'out of memory; next: a smaller form.micro_batch, form.checkpointing = true, or form.parallel = "fsdp" on more workers'
SPACE = "the disk is full; next: free space, then the same command again continues"


def lasting(error: BaseException) -> bool:
    """Return whether an error would come again at another start."""
    return isinstance(error, LASTING) or of_memory(error) or of_space(error)


def of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, the host's or a device's."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in NO_MEMORY)


def of_space(error: BaseException) -> bool:
    """Return whether a disk, or somebody's share of it, is full."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, SafetensorError) and any(sign in str(error) for sign in NO_SPACE)


def described(error: BaseException) -> str:
    """Return a failure in one line, with a next step where there is one."""
    if of_memory(error):
        return MEMORY
    if of_space(error):
        where = getattr(error, "filename", None)
        return SPACE.replace("full", f"full at {where}", 1) if where else SPACE
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    told = lines[0].strip() if lines else ""
    plain = isinstance(error, (Diverged, StorageError, ValueError))
    return told if plain and told else f"{type(error).__name__}: {told}"


class Taker:
    """Takes a training's events on the driver; `failed` holds the words of the failure that ends it.

    Events that are told `again` after a kill are recorded where the log has not got them.
    """

    def __init__(self, config: Config, recorder: Recorder) -> None:
        self._config, self._recorder = config, recorder
        self._workers = 0
        self._logged: set[tuple[str, object]] | None = None
        self.failed = ""

    def take(self, event: Mapping[str, Any]) -> None:
        """Record one event."""
        known = {
            "started": self._started,
            "failed": self._failed,
            "substituted": self._substituted,
            "warning": lambda event: self._warn(event, event["text"]),
            "probe": lambda event: self._measured(event, "probe_loss", "loss"),
            "checkpoint": lambda event: self._measured(event, "checkpoint_held_s", "held_s"),
            "samples": self._samples,
            "step": self._step,
        }
        known[event["event"]](event)

    def _started(self, event: Mapping[str, Any]) -> None:
        if event["rank"] != 0:
            return
        workers = int(event["workers"])
        if self._workers and not self.failed:
            self._recorder.warn(f"the worker group was lost; started again with {workers} workers")
        self._workers = workers
        self._logged = None

    def _failed(self, event: Mapping[str, Any]) -> None:
        self.failed = self.failed or str(event["error"])

    def _substituted(self, event: Mapping[str, Any]) -> None:
        for clip in event["clips"]:
            self._warn(
                event,
                f"step {event['step']}: {clip['reason']}; clip {clip['used']} took its place",
            )

    def _warn(self, event: Mapping[str, Any], text: str) -> None:
        if not self._has(event, ("warning", self._recorder.worded(text))):
            self._recorder.warn(text)

    def _has(self, event: Mapping[str, Any], key: tuple[str, object]) -> bool:
        """Return whether the log has what is told again."""
        if not event.get("again"):
            return False
        if self._logged is None:
            told = self._recorder.events()
            self._logged = {(e["event"], e.get("step", e.get("text"))) for e in told}
        return key in self._logged

    def _measured(self, event: Mapping[str, Any], name: str, key: str) -> None:
        self._recorder.run.log_metrics({name: float(event[key])}, int(event["step"]))

    def _samples(self, event: Mapping[str, Any]) -> None:
        for path in event["paths"]:
            self._recorder.run.log_artifact(Path(path), "samples")

    def _step(self, event: Mapping[str, Any]) -> None:
        step = int(event["step"])
        if self._has(event, ("step", step)):
            return
        numbers = {k: float(v) for k, v in event.items() if isinstance(v, float)}
        self._recorder.step(step, numbers)
        self._recorder.progress(
            step,
            self._config.steps,
            stage=f"train {self._config.role}",
            text=f"loss {numbers['loss']:.4f}, {numbers['step_s']:.2f} s a step",
        )
