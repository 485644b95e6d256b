"""A group of training workers: Ray Train places them, forms the process group and restarts it when a worker dies.

Checkpoints, metrics and resuming are the caller's (ray-and-mlflow.md 5: Ray's report is a barrier, its result no record). The
trainer runs beside the main thread, because there it would replace the handler of Ctrl-C by its own.
"""

import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import cloudpickle, train
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from cluster import raylet, resources

POLL_S = 0.2
# Groups that could not even be started: enough to wait for a machine that comes back, not for ever.
MAX_STARTS = 20
# How long Ray Train waits for room for a group. One that may be smaller must not wait for machines that are gone: Ray
# counts them for 20 s more, and only then makes it smaller.
START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
WAIT_S, ELASTIC_WAIT_S = 300, 15
DEAD = (RayActorError, WorkerCrashedError, NodeDiedError)
# How an exchange between workers fails when one of them is gone: nobody's fault who says so.
LEFT_ALONE = re.compile(
    r"gloo|nccl|c10d|connection (closed|reset)|broken pipe|timed out", re.IGNORECASE
)
USED = re.compile(r"was ([\d.]+ ?GB used / [\d.]+ ?GB) limit")
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
    packed = cloudpickle.dumps((function, dict(told)))  # pyright: ignore[reportPrivateImportUsage]
    for start in range(max_failures + 1):
        trainer = TorchTrainer(
            _open_and_run,
            train_loop_config={"packed": packed},
            torch_config=TorchConfig(backend="nccl" if num_gpus else "gloo"),
            scaling_config=train.ScalingConfig(
                num_workers=num_workers, use_gpu=bool(num_gpus), resources_per_worker=need.named
            ),
            run_config=train.RunConfig(
                name=f"{name}-{start}",
                storage_path=str(folder.resolve()),
                failure_config=train.FailureConfig(
                    max_failures=max_failures, controller_failure_limit=MAX_STARTS
                ),
            ),
        )
        os.environ[START_TIMEOUT] = str(WAIT_S if isinstance(num_workers, int) else ELASTIC_WAIT_S)
        failed = _ran(trainer)
        if failed is None:
            return
        if not _died_early(failed) or start == max_failures:
            raise GroupFailed(_words(failed)) from failed


def _open_and_run(told: Mapping[str, Any]) -> None:
    """Run on a worker what `fit` was given.

    It travels packed: Ray Train's controller opens what it hands on, and would load every library of the models, for
    seconds and a gigabyte, before it asks for the first worker.
    """
    function, told = cloudpickle.loads(told["packed"])
    function(told)


def _ran(trainer: TorchTrainer) -> BaseException | None:
    """Run beside the main thread and return what it raised."""
    failed: list[BaseException] = []
    thread = threading.Thread(target=_fit, args=(trainer, failed), name="trainer", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        raylet.check()
    return failed[0] if failed else None


def _fit(trainer: TorchTrainer, failed: list[BaseException]) -> None:
    try:
        with warnings.catch_warnings():
            # Ray warns of its own deprecations, whatever the filters of the program that uses it make of them.
            warnings.filterwarnings("ignore", module=r"ray(\.|$)")
            trainer.fit()
    except BaseException as error:  # noqa: BLE001  raised again in the main thread
        failed.append(error)


def _died_early(error: BaseException) -> bool:
    """Return whether a process died where Ray does not start the group again: its controller, or a worker that was new."""
    inner = getattr(error, "controller_failure", error)
    return isinstance(inner, (*DEAD, OutOfMemoryError))


def _words(error: BaseException) -> str:
    """Return what ended the group in one line: memory before death, death before what the others made of it."""
    found = list(_causes(error))
    short = next((e for e in found if isinstance(e, OutOfMemoryError)), None)
    if short is not None:
        used = USED.search(str(short))
        return (
            f"a machine's memory ran out{f' ({used[1]})' if used else ''} and Ray ended a worker; "
            "next: fewer or smaller workers, then the same command continues"
        )
    told = [
        e for e in found if not type(e).__module__.startswith("ray.train")
    ]  # what the wrappers hold
    own = [e for e in told if not isinstance(e, DEAD) and not LEFT_ALONE.search(str(e))]
    if not own and any(isinstance(e, DEAD) for e in found):
        return (
            "a worker has died: it was killed, has crashed, or its machine was short of memory; "
            "next: look at that machine, then the same command continues"
        )
    return _line((own or told or found)[0])


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what Ray has wrapped in it, worker by worker."""
    yield error
    inner = [
        getattr(error, name, None)
        for name in ("controller_failure", "health_check_failure", "cause")
    ]
    inner += getattr(error, "worker_failures", {}).values()
    for one in inner or [error.__cause__]:
        if isinstance(one, BaseException):
            yield from _causes(one)


def _line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    name = type(error).__name__
    return f"{name}: {lines[0].strip()}" if lines else name
