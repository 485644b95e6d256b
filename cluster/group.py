"""A group of training workers: Ray Train places them, forms the process group and restarts it after a failure.

What a restarted group continues from is not Ray's business: the worker function finds its own newest checkpoint.
"""

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.events import Board, board, post

POLL_S = 0.25
Take = Callable[[Mapping[str, Any]], None]


class TrainingFailed(RuntimeError):
    """The group failed more often than it may; the message is the first line of the worker's error."""

    exit_code = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A worker's place: its rank among world_size, and a way to post events (true = a stop is asked for)."""

    rank: int
    world_size: int
    post: Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """How many workers, what each needs, and how many failures the group survives."""

    num_workers: int
    name: str
    folder: Path
    max_failures: int = 2
    cpus_per_worker: float = 1.0


def fit(
    work: Callable[[Any, Place], None],
    told: Any,
    *,
    group: Group,
    take: Take,
    stop: Callable[[], bool],
) -> None:
    """Run `work(told, place)` on every worker until all return, handing what they post to `take` here.

    Raises TrainingFailed. Ray's fit runs beside this thread, because it would take over Ctrl-C where it runs.
    """
    _check(group)
    with board() as opened:
        ended = _Ended()
        thread = threading.Thread(
            target=ended.run, args=(_trainer(work, told, group, opened),), daemon=True
        )
        thread.start()
        while thread.is_alive():
            thread.join(POLL_S)
            for event in opened.drain(stop=stop()):
                take(event)
        for event in opened.drain(stop=False):
            take(event)
    shutil.rmtree(group.folder, ignore_errors=True)
    if ended.error is not None:
        raise TrainingFailed(_reason(ended.error)) from ended.error


class _Ended:
    """How the trainer's thread ended."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def run(self, trainer: TorchTrainer) -> None:
        try:
            self.error = trainer.fit().error
        except Exception as error:  # noqa: BLE001  handed to the driver's thread, which raises it
            self.error = error


def _trainer(
    work: Callable[[Any, Place], None], told: Any, group: Group, opened: Board
) -> TorchTrainer:
    return TorchTrainer(
        _worker,
        train_loop_config={"work": work, "told": told, "board": opened.handle},
        scaling_config=train.ScalingConfig(
            num_workers=group.num_workers,
            resources_per_worker={"CPU": group.cpus_per_worker},
        ),
        torch_config=TorchConfig(backend="gloo"),
        run_config=train.RunConfig(
            # Ray resumes a run of the same name from its own snapshot; ours resumes from our checkpoints.
            name=f"{group.name}-{time.time_ns()}",
            storage_path=str(group.folder.resolve()),
            failure_config=train.FailureConfig(max_failures=group.max_failures),
        ),
    )


def _worker(config: Mapping[str, Any]) -> None:
    context = train.get_context()
    handle = config["board"]
    place = Place(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        post=lambda event: post(handle, event),
    )
    config["work"](config["told"], place)


def _check(group: Group) -> None:
    needed = group.num_workers * group.cpus_per_worker
    there = ray.cluster_resources().get("CPU", 0.0)
    if needed > there:
        raise TrainingFailed(
            f"{group.num_workers} workers need {needed:.0f} CPUs and the cluster has {there:.0f}; "
            "next: lower num_workers"
        )


def _reason(error: Exception) -> str:
    """Return the last line of the innermost error: Ray wraps a worker's exception in layers of text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
