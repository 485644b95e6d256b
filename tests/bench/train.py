"""What the training loop costs beside the learning: `python -m tests.bench.train` writes tests/bench/train.md.

The same steps under Ray Train and bare, in turns: one worker, and two workers against two independent bare processes. Then
what waits: for data, and for checkpoints while they are written. One torch thread a worker.

Two processes that average their gradients wait for the slower one at every step, and are at the same work at the same time; so
two workers are compared with such a pair as well: what is left is Ray's.
"""

import json
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cluster.ray_node import free_ports
from ingest.files import atomic_write
from models import stunet
from models.conditioning import HashedText
from models.diffusion import Schedule
from pipelines import weights
from pipelines.optimizer import Optimizer
from pipelines.shelves import Mixed, freeze
from pipelines.training import Job
from tests.bench.machine import cores, cpu_name
from tests.bench.train_data import dataset

TABLE = Path(__file__).with_name("train.md")
STEPS, SKIPPED, ROUNDS = 24, 4, 3
NETWORK = stunet.Config(sample_px=32, widths=(32, 64), temporal_factor=(2,))
RECIPE = """
verb = "train"
role = "base"
dataset = "{dataset}"
out = "{out}"
steps = {steps}
global_batch = {batch}
frames = {frames}
checkpoint_every = {every}
num_workers = {workers}
model = {{sample_px = 32, widths = [32, 64], temporal_factor = [2]}}
caption_dropout = 0.0
"""
BATCH, FRAMES = 2, 16
GOALS = {
    "one worker under Ray Train, step time over bare": ("at most", 1.05),
    "two workers under Ray Train, speed over two bare processes": ("at least", 0.90),
    "the same, over two bare processes that average their gradients": ("at least", 0.95),
    "waiting for data, share of a step": ("at most", 0.02),
    "steps held up by a checkpoint every 4 steps, share of the time": ("at most", 0.05),
}


def main() -> None:
    """Measure in turns and write the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = dataset(folder / "dataset")
        found: dict[str, list[float]] = {key: [] for key in GOALS}
        for number in range(ROUNDS):
            here = folder / str(number)
            here.mkdir()
            for key, value in one_round(here, root).items():
                found[key].append(value)
    text = table(found)
    atomic_write(TABLE, text.encode())
    sys.stdout.write(text)


def one_round(folder: Path, root: Path) -> dict[str, float]:
    """Return the figures of one turn of everything."""
    bare = steps(alone([folder / "bare"], root)[0])
    ray = steps(under_ray(folder / "ray", root, workers=1))
    pair = [steps(one) for one in alone([folder / "pair-a", folder / "pair-b"], root)]
    two = steps(under_ray(folder / "two", root, workers=2))
    group = steps(alone([folder / "rank-0", folder / "rank-1"], root, group=True)[0])
    saving = alone([folder / "saving"], root, checkpoint_every=4)[0]
    both = statistics.mean(median_s(one) for one in pair)
    held = sum(e["held_s"] for e in saving if e["event"] == "checkpoint")
    keys = list(GOALS)
    return {
        keys[0]: median_s(ray) / median_s(bare),
        keys[1]: both / median_s(two),
        keys[2]: median_s(group) / median_s(two),
        keys[3]: statistics.median(e["data_wait_share"] for e in bare),
        keys[4]: held / (held + sum(e["step_s"] for e in saving if e["event"] == "step")),
    }


def job(folder: Path, root: Path, **changes: Any) -> Job:
    """Return what a bare process is told; the same work as the recipe's."""
    shelves = freeze((Mixed(dataset=str(root)),))
    spec = weights.Spec(
        role="base",
        network=NETWORK,
        schedule=Schedule(),
        text=HashedText(dim=NETWORK.text_dim),
        frames=shelves.frames,
        fps=shelves.fps,
    )
    made = Job(
        spec=spec,
        optimizer=Optimizer(),
        shelves=shelves.shelves,
        view_digest=shelves.digest,
        folder=str(folder),
        base="",
        identity="bench",
        seed=0,
        steps=STEPS,
        global_batch=BATCH,
        frames=FRAMES,
        caption_dropout=0.0,
        checkpoint_every=10_000,
        threads=1,
        px=NETWORK.sample_px,
        decode_workers=0,
        max_bad_clips=0,
    )
    return replace(made, **changes)


def alone(
    folders: Sequence[Path], root: Path, *, group: bool = False, **changes: Any
) -> list[list[dict[str, Any]]]:
    """Train in bare processes at once, each for itself or as one group, and return their events."""
    running, (port,) = [], free_ports(1)
    more = {"global_batch": BATCH * len(folders)} if group else {}
    for rank, folder in enumerate(folders):
        folder.mkdir()
        made = job(folders[0] if group else folder, root, **changes, **more)
        (folder / "job").write_bytes(pickle.dumps(made))
        words = [str(folder / "job"), str(folder / "events.json")]
        words += [str(rank), str(len(folders)), str(port)] if group else []
        command = [sys.executable, "-W", "ignore", "-m", "tests.bench.train_child", *words]
        running.append(subprocess.Popen(command))
    if any(process.wait() for process in running):
        raise RuntimeError("a bare training failed")
    return [json.loads((folder / "events.json").read_text()) for folder in folders]


def under_ray(folder: Path, root: Path, *, workers: int) -> list[dict[str, Any]]:
    """Train by the command line and return the steps of its log; each worker has a bare process's batch."""
    folder.mkdir()
    recipe = folder / "train.toml"
    recipe.write_text(
        RECIPE.format(
            dataset=root,
            out=folder / "out",
            steps=STEPS,
            batch=BATCH * workers,
            frames=FRAMES,
            every=10_000,
            workers=workers,
        )
    )
    command = [sys.executable, "-W", "ignore", "-m", "jobs", "train", str(recipe), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = (folder / "out" / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def steps(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the steps after those that warm up."""
    return [e for e in events if e["event"] == "step" and e["step"] > SKIPPED]


def median_s(events: list[dict[str, Any]]) -> float:
    """Return the median time of a step."""
    return statistics.median(e["step_s"] for e in events)


def table(found: dict[str, list[float]]) -> str:
    """Return the figures as Markdown: each round, their median, the goal."""
    lines = [
        (
            f"Measured {time.strftime('%Y-%m-%d')} by `python -m tests.bench.train` on {cpu_name()}, {cores()} cores, torch "
            f"{torch.__version__}: base, widths {NETWORK.widths}, {BATCH} clips of {FRAMES} frames of {NETWORK.sample_px} px a "
            f"worker and step, {STEPS} steps."
        ),
        "",
        "| what | rounds | median | goal | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for key, (way, goal) in GOALS.items():
        middle = statistics.median(found[key])
        met = middle <= goal if way == "at most" else middle >= goal
        rounds = " ".join(f"{one:.3f}" for one in found[key])
        lines.append(
            f"| {key} | {rounds} | **{middle:.3f}** | {way} {goal} | {'met' if met else 'MISSED'} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
