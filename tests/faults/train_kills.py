"""Training killed at a step: its driver, a worker, or the raylet, by their process ids only."""

import json
import time
from pathlib import Path

import psutil

from tests.faults.curate_kills import END_S, family, start, waited

VICTIMS = ("driver", "worker", "raylet")
WORKER = "ray::RayTrainWorker"


def killed_at_step(folder: Path, victim: str, step: int, *words: str) -> tuple[int, str]:
    """Run the command line, kill one victim once the log has this step, and wait; return its code and what it said."""
    log = folder / next((w[4:] for w in words if w.startswith("out=")), "out") / "events.jsonl"
    before = log.stat().st_size if log.exists() else 0
    told = folder / "said"
    process = start(folder, words, told)
    run = psutil.Process(process.pid)
    children: list[psutil.Process] = []
    last_s = time.monotonic() + END_S
    while process.poll() is None and time.monotonic() < last_s:
        if reached(log, before) >= step:
            children = family(run)
            if target := find(run, victim):
                target.kill()
                break
        time.sleep(0.02)
    code = waited(process, children + family(run), victim)
    return code, told.read_text()


def find(run: psutil.Process, victim: str) -> psutil.Process | None:
    """Return the driver, which is the run itself, a worker of the training group, or the raylet."""
    if victim == "driver":
        return run
    for one in family(run):
        try:
            name, command = one.name(), " ".join(one.cmdline())
        except psutil.Error:
            continue
        if (victim == "raylet" and name == "raylet") or (
            victim == "worker" and command.startswith(WORKER)
        ):
            return one
    return None


def reached(log: Path, offset: int) -> int:
    """Return the last step that was logged behind `offset`."""
    found = 0
    if not log.exists():
        return found
    with log.open("rb") as file:
        file.seek(offset)
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event.get("event") == "step":
                found = int(event["step"])
    return found
