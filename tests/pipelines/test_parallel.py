"""One training on 1, 2 and 3 workers, copied (DDP) and sharded (FSDP2): the same clips, the same losses, the same weights.

Real process groups (gloo), without Ray: the group under Ray is tested in tests/pipelines/test_train.py.
"""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models import checkpoint
from pipelines.guard import Guard
from pipelines.trainee import Form
from tests.pipelines.test_training import job

pytestmark = pytest.mark.timeout(600)

# Weights: distance over size. Where a gradient is nothing but rounding, Adam makes a step of it.
NEAR = 1e-3

# Workers are forked from one process that has imported everything; each run ends before the next.
CHILD = """
import json, os, pickle, sys
from datetime import timedelta
import torch
import torch.distributed as dist
from cluster.group import Place
from models import image_unet
from pipelines import training

def work(rank, world, port, told, folder, stop_after):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank,
                            world_size=world, timeout=timedelta(seconds=120))
    events = open(f"{folder}/events-{rank}.jsonl", "a")
    def post(event):
        events.write(json.dumps(dict(event)) + "\\n")
        events.flush()
        return event["event"] == "step" and event["step"] >= stop_after
    training.train(told, Place(rank=rank, world_size=world), post)
    dist.destroy_process_group()

torch.set_num_threads(1)
image_unet.called()  # loads diffusers
for number, (world, stop_after, folder, told) in enumerate(pickle.load(open(sys.argv[1], "rb"))):
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work(rank, world, int(sys.argv[2]) + number, told, folder, stop_after)
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    if any(os.waitpid(pid, 0)[1] for pid in pids):
        sys.exit(f"run {number} failed")
"""
BATCH: dict[str, Any] = {"global_batch": 3, "steps": 4}
OTHER_FORMS = {
    "two": (2, {}),
    "three, a clip at a time": (3, {"form": Form(micro_batch=1)}),
    "two, sharded": (2, {"form": Form(parallel="fsdp")}),
    "two, sharded, a clip at a time, checkpointed": (
        2,
        {"form": Form(parallel="fsdp", micro_batch=1, checkpointing=True)},
    ),
}
SHARDED = Form(parallel="fsdp")
# Whole trainings in parts: (world, stop after, form), the last to its end.
PARTS = {
    "two sharded, three, one": ((2, 1, SHARDED), (3, 2, Form()), (1, 99, Form())),
    "one, three sharded, two sharded, two": (
        (1, 1, Form()),
        (3, 2, SHARDED),
        (2, 3, SHARDED),
        (2, 99, Form()),
    ),
    "three, two sharded, three sharded": ((3, 1, Form()), (2, 3, SHARDED), (3, 99, SHARDED)),
}
# In one form on as many workers not a bit may change.
SAME: dict[str, tuple[int, dict[str, Any]]] = {
    name: OTHER_FORMS[name] for name in ("two", "two, sharded", "three, a clip at a time")
}
# So strict that ordinary losses are spikes: the weights go back.
STRICT: dict[str, Any] = {
    "guard": Guard(spike=1.01, window=2, patience=1, rollbacks=99),
    "checkpoint_every": 2,
    "steps": 8,
}


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory) -> Path:
    """Run all; a folder of each by its name."""
    folder = tmp_path_factory.mktemp("parallel")
    told: list[tuple[int, int, str, Any]] = []

    def add(
        name: str, world: int, stop_after: int = 99, role: str = "base", **changes: Any
    ) -> None:
        (folder / name).mkdir(exist_ok=True)
        made = job(tiny, folder / name, role, **{**BATCH, **changes})
        told.append((world, stop_after, str(folder / name), made))

    add("one", 1)
    add("another seed", 1, seed=4)
    for name, (world, changes) in OTHER_FORMS.items():
        add(name, world, **changes)
    for name, parts in PARTS.items():
        for world, stop_after, form in parts:
            add(name, world, stop_after, checkpoint_every=1, form=form)
    for name, (world, changes) in SAME.items():
        for stop_after in (2, 99):
            add(f"{name}, in parts", world, stop_after, **changes)
    add("strict", 1, **STRICT)
    add("strict, sharded", 2, form=SHARDED, **STRICT)
    for name, world in (("ssr", 1), ("ssr on two", 2)):
        add(name, world, role="ssr", image_share=0.5, frames=2)
    (folder / "told").write_bytes(pickle.dumps(told))
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(folder / "told"), "29700"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def losses(folder: Path) -> dict[int, float]:
    lines = (folder / "events-0.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return {e["step"]: e["loss"] for e in events if e["event"] == "step"}


def distance(one: Path, other: Path) -> float:
    a, b = (checkpoint.load(folder / "checkpoint").tensors["params"] for folder in (one, other))
    assert a.keys() == b.keys()
    squares = [((a[n] - b[n]).double().square().sum(), a[n].double().square().sum()) for n in a]
    return float((sum(d for d, _ in squares) / sum(s for _, s in squares)).sqrt())


@pytest.mark.parametrize("name", list(OTHER_FORMS))
def test_neither_workers_nor_their_form_change_what_is_learned(runs, name):
    assert losses(runs / name) == pytest.approx(losses(runs / "one"), rel=1e-5)
    assert distance(runs / "one", runs / name) < NEAR
    # control: another order of clips, other noise
    assert distance(runs / "one", runs / "another seed") > 100 * NEAR


@pytest.mark.parametrize("name", list(PARTS))
def test_a_training_goes_on_in_another_form_and_on_other_workers(runs, name):
    found = losses(runs / name)
    assert list(found) == [1, 2, 3, 4]
    assert found == pytest.approx(losses(runs / "one"), rel=1e-5)
    assert distance(runs / "one", runs / name) < NEAR


@pytest.mark.parametrize("name", list(SAME))
def test_a_training_goes_on_to_the_same_bits_on_the_same_workers(runs, name):
    parts = runs / f"{name}, in parts"
    assert losses(parts) == losses(runs / name)
    loaded = [checkpoint.load(folder / "checkpoint") for folder in (runs / name, parts)]
    assert loaded[0].digest == loaded[1].digest
    assert loaded[0].meta == loaded[1].meta


def test_weights_go_back_in_shards_as_they_do_whole(runs):
    for name in ("strict", "strict, sharded"):
        lines = (runs / name / "events-0.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        assert any("weights went back to step" in e.get("text", "") for e in events)
    assert losses(runs / "strict, sharded") == pytest.approx(losses(runs / "strict"), rel=1e-4)


def test_steps_on_single_frames_are_the_same_on_two_workers(runs):
    assert losses(runs / "ssr on two") == pytest.approx(losses(runs / "ssr"), rel=1e-5)
    assert distance(runs / "ssr", runs / "ssr on two") < NEAR
