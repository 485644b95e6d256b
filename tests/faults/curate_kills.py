"""Curation killed at random moments: its driver, a worker, or the raylet, by their process ids only."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from ingest.store import Dataset
from tests.pipelines.conftest import CHECKOUT

VICTIMS = ("driver", "worker", "raylet")
AGENTS = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")  # no worker at its work
END_S = 240.0


def start(
    folder: Path, words: Sequence[str], said: Path = Path(os.devnull)
) -> "subprocess.Popen[bytes]":
    """Start the command line in `folder`; what it says on standard error goes to `said`."""
    with said.open("w") as told:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            stdout=subprocess.DEVNULL,
            stderr=told,
        )


def killed_once(folder: Path, words: list[str], victim: str, after_s: float, dataset: Path) -> str:
    """Start a run, kill one victim so long after work began, and wait for the end; return what was done.

    "finished": it ended before the kill; "killed": the victim died by our hand.
    """
    process = start(folder, words)
    run = psutil.Process(process.pid)
    wait_for(lambda: process.poll() is not None or (rows(dataset) >= 0 and find(run, "worker")))
    time.sleep(after_s)
    done, children = "finished", []
    while done == "finished" and process.poll() is None:
        children = family(run)  # those of a dead driver are nobody's
        target = find(run, victim)  # between two tasks no worker works
        with contextlib.suppress(psutil.NoSuchProcess):
            if target is not None:
                target.kill()
                done = "killed"
        time.sleep(0.02)
    waited(process, children + family(run), victim)
    return done


def waited(process: "subprocess.Popen[bytes]", children: list[psutil.Process], victim: str) -> int:
    """Wait for the end of a run whose `victim` was killed, end what is left of it, and return its code."""
    try:
        return process.wait(END_S)
    except subprocess.TimeoutExpired as late:
        raise AssertionError(
            f"after the {victim}'s death the run did not end in {END_S:.0f} s"
        ) from late
    finally:
        end(process, children)


def find(run: psutil.Process, victim: str) -> psutil.Process | None:
    """Return the driver, which is the run itself, or a child: a Ray worker that is at work, or the raylet."""
    if victim == "driver":
        return run
    for one in family(run):
        try:
            name, command = one.name(), " ".join(one.cmdline())
        except psutil.Error:
            continue
        if victim == "raylet" and name == "raylet":
            return one
        if victim == "worker" and command.startswith("ray::") and not command.startswith(AGENTS):
            return one
    return None


def family(run: psutil.Process) -> list[psutil.Process]:
    """Return what the run started, Ray's processes too."""
    try:
        return run.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def end(process: "subprocess.Popen[bytes]", children: list[psutil.Process]) -> None:
    """End what is left of a run that we started."""
    for one in children:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.kill()
    process.wait(30)


def wait_for(ready, limit_s: float = 120.0) -> None:
    """Wait until `ready()` is true, at most for so long."""
    last_s = time.monotonic() + limit_s
    while not ready() and time.monotonic() < last_s:
        time.sleep(0.05)


def rows(dataset: Path) -> int:
    """Return how many rows are committed, -1 when there is no dataset yet."""
    try:
        return Dataset.open(dataset).ledger().num_rows
    except (ValueError, OSError):
        return -1


def twice_decoded(log: Path, committed: dict[str, float]) -> list[str]:
    """Return the sources whose decoding began after their rows were seen committed."""
    found = []
    for line in log.read_text().splitlines():
        at_s, _, uri = line.partition(" ")
        if uri in committed and float(at_s) > committed[uri]:
            found.append(uri)
    return found
