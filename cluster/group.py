"""A group of training workers: Ray Train places them, forms the process group and restarts it when a worker dies.

Checkpoints, metrics and resuming are the caller's (ray-and-mlflow.md 5: Ray's report is a barrier, its result no record). The
trainer runs beside the main thread, because there it would replace the handler of Ctrl-C by its own.
"""

import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from cluster import raylet, resources

POLL_S = 0.2
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A worker's place in its group, and the device it works on."""

    rank: int
    world_size: int
    device: torch.device = CPU


class GroupFailed(RuntimeError):
    """Training ended with an error on a worker, after the restarts that were allowed."""


def placed() -> Place:
    """Return the calling worker's place; only inside a function run by `fit`."""
    context = train.get_context()
    return Place(
        rank=context.get_world_rank(), world_size=context.get_world_size(), device=get_device()
    )


def leaving() -> bool:
    """Return whether this group was told that one of its machines will be taken away; a barrier: every worker must ask."""
    return train.get_preemption_info() is not None


def fit(
    function: Callable[[Mapping[str, Any]], None],
    told: Mapping[str, Any],
    *,
    name: str,
    folder: Path,
    num_workers: int | tuple[int, int],
    max_failures: int,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
) -> None:
    """Run `function(told)` on each of the workers until all return; gloo on CPUs, NCCL on GPUs.

    A dead worker restarts the whole group, at most `max_failures` times; with (least, most) workers also with fewer of
    them. Raises NotEnough before anything starts, GroupFailed with the worker's own words, KeyboardInterrupt on the second
    Ctrl-C, RayletLost when this machine's own Ray is gone.
    """
    need = resources.Need(num_cpus=num_cpus, num_gpus=num_gpus)
    resources.fit(need, num_workers=num_workers if isinstance(num_workers, int) else num_workers[0])
    trainer = TorchTrainer(
        function,
        train_loop_config=dict(told),
        torch_config=TorchConfig(backend="nccl" if num_gpus else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=num_workers, use_gpu=bool(num_gpus), resources_per_worker=need.named
        ),
        run_config=train.RunConfig(
            name=name,
            storage_path=str(folder.resolve()),
            failure_config=train.FailureConfig(max_failures=max_failures),
        ),
    )
    failed: list[BaseException] = []
    thread = threading.Thread(target=_fit, args=(trainer, failed), name="trainer", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        raylet.check()
    if failed:
        raise GroupFailed(_words(failed[0])) from failed[0]


def _fit(trainer: TorchTrainer, failed: list[BaseException]) -> None:
    try:
        with warnings.catch_warnings():
            # Ray warns of its own deprecations, whatever the filters of the program that uses it make of them.
            warnings.filterwarnings("ignore", module=r"ray(\.|$)")
            trainer.fit()
    except BaseException as error:  # noqa: BLE001  raised again in the main thread
        failed.append(error)


def _words(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
