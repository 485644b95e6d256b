"""Trainings that take turns on the same cores, so that a machine whose speed changes by the minute changes it for all of them.

All are started and warm; then each runs for some seconds while the others, with all their processes, are stopped by SIGSTOP.
A step that a stop fell into lasts longer than a turn and is not counted.
"""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

WARM_STEPS = 4
START_TIMEOUT_S, END_TIMEOUT_S = 300.0, 120.0
LOOK_S = 0.2


@dataclass(kw_only=True, slots=True)
class Party:
    """Trainings that run at the same time; `logs` has a file of events, a line each, for every one of them."""

    processes: Sequence[subprocess.Popen[bytes]]
    logs: Sequence[Path]
    # of each log, how many steps were on record at the end of each turn
    marks: list[list[int]] = field(default_factory=list[list[int]])

    def steps(self) -> list[list[dict[str, Any]]]:
        """Return the steps of each log; a line that is being written is left for the next look."""
        return [_steps(log) for log in self.logs]

    def signal(self, number: signal.Signals) -> None:
        """Signal every process of this party, those they started included."""
        seen: set[int] = set()
        while new := _below(one.pid for one in self.processes) - seen:
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            seen |= new

    def warm(self) -> None:
        """Wait until each has made its first steps."""
        last_s = time.monotonic() + START_TIMEOUT_S
        while any(len(made) <= WARM_STEPS for made in self.steps()):
            if any(one.poll() is not None for one in self.processes):
                raise RuntimeError("a training ended before its first steps")
            if time.monotonic() > last_s:
                raise TimeoutError(f"a training made no steps within {START_TIMEOUT_S:.0f} s")
            time.sleep(LOOK_S)

    def medians_s(self, *, below_s: float, parts: int) -> list[float]:
        """Return for each part of the turns the mean, over the trainings, of the median time of a step."""
        ends = [self.marks[(part + 1) * len(self.marks) // parts - 1] for part in range(parts)]
        starts = [[WARM_STEPS] * len(self.logs), *ends[:-1]]
        found: list[float] = []
        for first, last in zip(starts, ends, strict=True):
            medians = [
                statistics.median(t for t in (e["step_s"] for e in made[a:b]) if t < below_s)
                for made, a, b in zip(self.steps(), first, last, strict=True)
            ]
            found.append(statistics.mean(medians))
        return found


@contextlib.contextmanager
def alive(party: Party, *, interrupt: bool) -> Iterator[Party]:
    """Wait until a party is warm, stop it, and end it with the block: by Ctrl-C, or at once."""
    try:
        party.warm()
        party.signal(signal.SIGSTOP)
        yield party
    finally:
        party.signal(signal.SIGCONT)
        for one in party.processes:
            one.send_signal(signal.SIGINT if interrupt else signal.SIGKILL)
        for one in party.processes:
            try:
                one.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                party.signal(signal.SIGKILL)
                raise


def take_turns(parties: Sequence[Party], *, turns: int, turn_s: float) -> None:
    """Let each party run `turns` times for `turn_s`; they must be stopped, and are stopped after it."""
    for _ in range(turns):
        for party in parties:
            party.signal(signal.SIGCONT)
            time.sleep(turn_s)
            party.signal(signal.SIGSTOP)
            party.marks.append([len(made) for made in party.steps()])


def _steps(log: Path) -> list[dict[str, Any]]:
    if not log.exists():
        return []
    lines = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [event for event in map(json.loads, lines) if event["event"] == "step"]


def _below(roots: Iterable[int]) -> set[int]:
    """Return these processes and all that they started, and so on."""
    found = set[int]()
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            below = psutil.Process(root).children(recursive=True)
            found |= {root, *(one.pid for one in below)}
    return found
