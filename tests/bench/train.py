"""What the training loop costs beside the learning: `python -m tests.bench.train` writes tests/bench/train.md.

The same steps under Ray Train and bare, taking turns on the same cores (tests/bench/turns.py): one worker, and two workers
against two independent bare processes. Then what waits: for data, and for checkpoints while they are written. One torch
thread a worker.

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
from tests.bench.turns import Party, alive, take_turns

TABLE = Path(__file__).with_name("train.md")
STEPS, SKIPPED, ROUNDS = 24, 4, 3
# a turn is some steps long; a round of the table is a third of the turns
TURNS, TURN_S, ENDLESS = 15, 6.0, 100_000
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
    """Measure and write the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = dataset(folder / "dataset")
        found = {**one_worker(folder, root), **two_workers(folder, root), **waits(folder, root)}
    text = table({key: found[key] for key in GOALS})
    atomic_write(TABLE, text.encode())
    sys.stdout.write(text)


def one_worker(folder: Path, root: Path) -> dict[str, list[float]]:
    """Return the step time of one worker under Ray Train over that of a bare process."""
    with (
        alive(under_ray(folder / "ray", root, workers=1), interrupt=True) as ray,
        alive(alone([folder / "bare"], root), interrupt=False) as bare,
    ):
        ray_s, bare_s = taken((ray, bare))
    return {next(iter(GOALS)): [a / b for a, b in zip(ray_s, bare_s, strict=True)]}


def two_workers(folder: Path, root: Path) -> dict[str, list[float]]:
    """Return the speed of two workers under Ray Train over two bare processes, each for itself and as a group."""
    with (
        alive(under_ray(folder / "two", root, workers=2), interrupt=True) as two,
        alive(alone([folder / "pair-a", folder / "pair-b"], root), interrupt=False) as pair,
        alive(
            alone([folder / "rank-0", folder / "rank-1"], root, group=True), interrupt=False
        ) as group,
    ):
        two_s, pair_s, group_s = taken((two, pair, group))
    return {
        list(GOALS)[1]: [a / b for a, b in zip(pair_s, two_s, strict=True)],
        list(GOALS)[2]: [a / b for a, b in zip(group_s, two_s, strict=True)],
    }


def taken(parties: Sequence[Party]) -> list[list[float]]:
    """Let the parties take turns and return the median times of a step of each, one a round."""
    take_turns(parties, turns=TURNS, turn_s=TURN_S)
    return [party.medians_s(below_s=TURN_S, parts=ROUNDS) for party in parties]


def waits(folder: Path, root: Path) -> dict[str, list[float]]:
    """Return the shares of the time that a bare process waits for data, and for checkpoints."""
    found: dict[str, list[float]] = {key: [] for key in list(GOALS)[3:]}
    for number in range(ROUNDS):
        party = alone([folder / f"saving-{number}"], root, checkpoint_every=4, steps=STEPS)
        if any(process.wait() for process in party.processes):
            raise RuntimeError("a bare training failed")
        events = [json.loads(line) for line in party.logs[0].read_text().splitlines()]
        steps = [e for e in events if e["event"] == "step"]
        held_s = sum(e["held_s"] for e in events if e["event"] == "checkpoint")
        waited = statistics.median(e["data_wait_share"] for e in steps if e["step"] > SKIPPED)
        shares = (waited, held_s / (held_s + sum(e["step_s"] for e in steps)))
        for key, share in zip(found, shares, strict=True):
            found[key].append(share)
    return found


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
        steps=ENDLESS,
        global_batch=BATCH,
        frames=FRAMES,
        caption_dropout=0.0,
        checkpoint_every=ENDLESS,
        threads=1,
        px=NETWORK.sample_px,
        decode_workers=0,
        max_bad_clips=0,
    )
    return replace(made, **changes)


def alone(folders: Sequence[Path], root: Path, *, group: bool = False, **changes: Any) -> Party:
    """Start bare processes, each for itself or as one group, whose first tells the steps of all."""
    running, (port,) = [], free_ports(1)
    more = {"global_batch": BATCH * len(folders)} if group else {}
    logs = [folder / "events.jsonl" for folder in folders]
    for rank, folder in enumerate(folders):
        folder.mkdir()
        made = job(folders[0] if group else folder, root, **changes, **more)
        (folder / "job").write_bytes(pickle.dumps(made))
        words = [str(folder / "job"), str(logs[rank])]
        words += [str(rank), str(len(folders)), str(port)] if group else []
        command = [sys.executable, "-W", "ignore", "-m", "tests.bench.train_child", *words]
        running.append(subprocess.Popen(command))
    return Party(processes=running, logs=logs[:1] if group else logs)


def under_ray(folder: Path, root: Path, *, workers: int) -> Party:
    """Start a training by the command line; each worker has a bare process's batch."""
    folder.mkdir()
    recipe = folder / "train.toml"
    recipe.write_text(
        RECIPE.format(
            dataset=root,
            out=folder / "out",
            steps=ENDLESS,
            batch=BATCH * workers,
            frames=FRAMES,
            every=ENDLESS,
            workers=workers,
        )
    )
    command = [sys.executable, "-W", "ignore", "-m", "jobs", "train", str(recipe), "--quiet"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    return Party(processes=[running], logs=[folder / "out" / "events.jsonl"])


def table(found: dict[str, list[float]]) -> str:
    """Return the figures as Markdown: each round, their median, the goal."""
    lines = [
        (
            f"Measured {time.strftime('%Y-%m-%d')} by `python -m tests.bench.train` on {cpu_name()}, {cores()} cores, torch "
            f"{torch.__version__}: base, widths {NETWORK.widths}, {BATCH} clips of {FRAMES} frames of {NETWORK.sample_px} px a "
            f"worker and step; in turns of {TURN_S:.0f} s, a round is {TURNS // ROUNDS} turns of each."
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
