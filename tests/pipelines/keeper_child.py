"""Workers of a real process group (gloo) that keep checkpoints: `python -m tests.pipelines.keeper_child` for test_keeper.py.

It imports once; each line on standard input is a call, for which workers are forked, and is answered by a line: for each
worker its exit code and what it found. Workers end as processes do: their threads are waited for.
"""

import contextlib
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from cluster.group import Place
from pipelines import pieces, pieces_read, saved, writing
from pipelines.keeper import Keeper, Retention
from pipelines.pieces_read import Kept

# Rows: some that divide by no number of workers, fewer than workers, one; and one matrix with most of the bytes.
ROWS = {"wide": (7, 5), "few": (2, 3), "one": (1, 4), "bias": (5,), "large": (1001, 64)}
FORKS = multiprocessing.get_context("fork")


class Network(nn.Module):
    """Parameters of those shapes, in two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.ParameterDict(), nn.ParameterDict()
        for number, (name, shape) in enumerate(ROWS.items()):
            part = (self.first, self.second)[number % 2]
            part[name] = nn.Parameter(torch.zeros(shape))


def wanted(step: int) -> dict[str, dict[str, torch.Tensor]]:
    """What the checkpoint of a step holds, whole; a function of the step alone."""
    generator = torch.Generator().manual_seed(step)
    names = [n for n, _ in Network().named_parameters()]
    shapes = [ROWS[name.split(".")[-1]] for name in names]
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    params = dict(zip(names, drawn, strict=True))
    ema = {"num_updates": torch.tensor(step), **{n: t * 2 for n, t in params.items()}}
    optimizer = {}
    for number, tensor in enumerate(drawn):
        optimizer |= {f"{number}.step": torch.tensor(float(step)), f"{number}.m": tensor * 3}
    return {"params": params, "ema": ema, "optimizer": optimizer}


class Worker:
    """One worker of the group, with tensors of its form."""

    def __init__(self, call: dict[str, Any], rank: int) -> None:
        self.call, self.folder = call, Path(call["folder"])
        self.place = Place(rank=rank, world_size=call["world"])
        self.warnings: list[str] = []
        network = Network()
        if call.get("form") == "fsdp" and self.place.world_size > 1:
            mesh = init_device_mesh("cpu", (self.place.world_size,))
            for module in (network.first, network.second, network):
                fully_shard(module, mesh=mesh)
        self.likes = dict(network.named_parameters())
        self.keeper = Keeper(
            self.folder,
            identity=call.get("identity", "test"),
            retention=Retention(newest=2),
            place=self.place,
            warn=self.warnings.append,
        )

    def like(self, group: str, name: str) -> torch.Tensor | None:
        if group == "optimizer":
            return list(self.likes.values())[int(name[0])] if name.endswith("m") else None
        return self.likes.get(name)

    def groups(self, step: int) -> pieces.Groups:
        """The tensors of a step as this worker has them."""
        return {
            group: {n: sharded(t, self.like(group, n)) for n, t in state.items()}
            for group, state in wanted(step).items()
        }

    def save(self, step: int) -> None:
        told: dict[str, Any] = {"role": "base", "spec": {}, "parents": {}, "meta": {"rate": 0.1}}
        self.keeper.save(step, self.groups(step), own=f"of {self.place.rank}", **told)

    def newest(self) -> int:
        """Find the newest checkpoint, see that every row is right, and return its step."""
        found = self.keeper.newest()
        if found is None:
            return 0
        with found:
            return self.check(found)

    def check(self, found: Kept) -> int:
        step, own = found.meta["step"], found.meta["of_workers"]
        assert own == [f"of {rank}" for rank in range(len(own))]
        assert own
        for group, state in wanted(step).items():
            assert set(found.names(group)) == set(state)
            for name, tensor in state.items():
                like = self.like(group, name)
                own = found.like(group, name, like)
                right = sharded(tensor, like)
                if isinstance(own, DTensor) and isinstance(right, DTensor):
                    assert own.placements == right.placements
                    assert own.shape == right.shape
                    assert torch.equal(own.full_tensor(), tensor)
                    own, right = own.to_local(), right.to_local()
                assert torch.equal(own, right), (step, group, name)
        return step


def sharded(tensor: torch.Tensor, like: torch.Tensor | None) -> torch.Tensor:
    if not isinstance(like, DTensor):
        return tensor
    made = torch.zeros_like(like.detach())
    first, last = pieces.rows_of(like)
    made.to_local().copy_(tensor[first:last])
    return made


def save(worker: Worker) -> dict[str, Any]:
    """Go on from the newest checkpoint and save these steps; tell what was there after each was waited for."""
    begun = worker.newest()
    before = left(worker.folder)
    dist.barrier()  # nobody writes before all have looked
    seen = []
    for step in worker.call["steps"]:
        with trouble(worker, step):
            worker.save(step)
            if worker.call.get("waits", True):
                worker.keeper.wait()
                seen.append(saved.steps(worker.folder)[-1])
    worker.keeper.wait()
    return {"begun": begun, "left": before, "seen": seen}


def left(folder: Path) -> list[str]:
    """What lies beside whole checkpoints."""
    names = sorted(path.name for path in (folder / "checkpoints").glob("*"))
    return [n for n in names if n not in {f"step-{s:07d}" for s in saved.steps(folder)}]


@contextlib.contextmanager
def trouble(worker: Worker, step: int) -> Iterator[None]:
    """Do to this worker what the call says happens to it at this step."""
    kind = worker.call.get("trouble", {})
    if (kind.get("rank"), kind.get("step")) != (worker.place.rank, step):
        yield
        return
    if kind["what"] == "full":  # the system refuses to make any file longer than this
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    elif kind["what"] == "killed":
        pieces.save_file = killed_in
    elif kind["what"] == "killed at the note":
        pieces.atomic_write = lambda path, data: killed_in(data, path)
    elif kind["what"] == "slow":
        real = pieces.finish
        pieces.finish = lambda *told: (time.sleep(1), real(*told))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def killed_in(data: dict[str, torch.Tensor] | bytes, path: Path) -> None:
    """Write half of a file and be killed."""
    if isinstance(data, dict):
        save_file(data, path)
        data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def count(worker: Worker) -> dict[str, Any]:
    """Read the newest checkpoint, counting the bytes that are read of it and those that this worker keeps."""
    read = [0]

    class Slice:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getitem__(self, rows: slice) -> torch.Tensor:
            found = self._inner[rows]
            read[0] += found.nbytes
            return found

    class Opened:
        def __init__(self, path: Path, framework: str) -> None:
            self._file = real(path, framework=framework)

        def __enter__(self) -> "Opened":
            self._file.__enter__()
            return self

        def __exit__(self, *told: object) -> None:
            self._file.__exit__(*told)

        def get_slice(self, name: str) -> Slice:
            return Slice(self._file.get_slice(name))

    real, pieces_read.safe_open = pieces_read.safe_open, Opened
    begun = worker.newest()
    own = [worker.groups(begun)[g][n] for g, state in wanted(begun).items() for n in state]
    kept = sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in own)
    whole = sum(t.nbytes for state in wanted(begun).values() for t in state.values())
    return {"begun": begun, "read": read[0], "kept": kept, "whole": whole}


def apart(worker: Worker) -> dict[str, Any]:
    """Save where no other worker can see it."""
    worker.keeper._folder = worker.folder / str(worker.place.rank)
    worker.save(1)
    worker.keeper.wait()
    return {}


def alone_in_doubt(worker: Worker) -> dict[str, Any]:
    """Find the newest checkpoint when one worker cannot read any file."""
    if worker.place.rank == 1:
        pieces.sound = lambda *_told: False
    return {"begun": worker.newest()}


def for_ever(worker: Worker) -> dict[str, Any]:
    """Go on from the newest checkpoint, saying which are known to be whole, until killed."""
    begun = worker.newest()
    assert left(worker.folder) == []
    log = worker.folder / "whole"
    known = [int(line) for line in log.read_text().split()] if log.exists() else [0]
    assert begun >= max(known), (begun, known)
    dist.barrier()
    (worker.folder / f"ready-{worker.place.rank}").touch()
    for step in range(begun + 1, 10**6):
        worker.save(step)
        worker.keeper.wait()
        if worker.place.rank == 0:
            with log.open("a") as file:
                file.write(f"{step}\n")
    return {}


DOING = {f.__name__: f for f in (save, count, apart, alone_in_doubt, for_ever)}


def work(call: dict[str, Any], rank: int) -> None:
    torch.set_num_threads(1)
    writing.LAST_S = call.get("last_s", writing.LAST_S)
    folder = Path(call["folder"])
    told: dict[str, Any] = {}
    world = call["world"]
    store = f"file://{folder}/meeting-{call['number']}"
    try:
        dist.init_process_group(
            "gloo", store, rank=rank, world_size=world, timeout=timedelta(seconds=120)
        )
        worker = Worker(call, rank)
        told["warnings"] = worker.warnings
        told |= DOING[call["do"]](worker)
    except Exception as error:  # noqa: BLE001  told to the test
        told["error"] = f"{type(error).__name__}: {error}"
    (folder / f"found-{rank}.json").write_text(json.dumps(told))
    if "error" in told:
        sys.exit(1)
    dist.destroy_process_group()


def called(call: dict[str, Any]) -> list[Any]:
    folder = Path(call["folder"])
    ranks = range(call["world"])
    for path in [*folder.glob("found-*"), *folder.glob("ready-*")]:
        path.unlink()
    workers = [FORKS.Process(target=work, args=(call, rank)) for rank in ranks]
    for worker in workers:
        worker.start()
    if kill := call.get("kill"):
        while len(list(folder.glob("ready-*"))) < len(workers) and all(
            w.is_alive() for w in workers
        ):
            time.sleep(0.01)
        time.sleep(random.Random(kill["seed"]).uniform(0.0, 0.5))
        for rank in kill["ranks"]:
            workers[rank].kill()
    for worker in workers:
        worker.join()
    found = [folder / f"found-{rank}.json" for rank in ranks]
    return [
        [w.exitcode, json.loads(path.read_text()) if path.exists() else {}]
        for w, path in zip(workers, found, strict=True)
    ]


def main() -> None:
    torch.set_num_threads(1)
    for number, line in enumerate(sys.stdin):
        answer = called({**json.loads(line), "number": number})
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
