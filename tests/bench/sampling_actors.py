"""Sampling actors whose networks sleep: what is left of their time is the engine's; and a reducer in the middle, as a peer.

Everything else is the product's: maker, solver, reducer, exchange between actors, encoders, files.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from models import multidiffusion, windows
from pipelines.generator import Generator, Told

POLL_S = 0.02


class Sleeping(torch.nn.Module):
    """A network that takes `seconds` for each video or window of its pass, and says what it was shown."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def forward(self, x_BCTHW: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Sleep and return x's first three channels."""
        time.sleep(self._seconds * len(x_BCTHW))
        return x_BCTHW[:, :3]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sleep:
    """How long a pass takes, and how many actors begin together, at a place for their marks.

    With 0 the networks are real, and each actor has a core of its own, for its encoders too.
    """

    seconds: float
    together: int
    marks: str


class Timed(Generator):
    """A Generator that begins when all are there, and says when each sample began and ended."""

    def __init__(self, told: Told, sleep: Sleep) -> None:
        super().__init__(told)
        if sleep.seconds:
            made = self._maker
            made._video = ("", 0.0), Sleeping(sleep.seconds)
            made._ssr = made._ssr[0], Sleeping(sleep.seconds)
        marks, mine = Path(sleep.marks), ray.get_runtime_context().get_actor_id()
        (marks / mine).touch()
        while len(list(marks.iterdir())) < sleep.together:
            time.sleep(POLL_S)
        if not sleep.seconds:
            cores = sorted(os.sched_getaffinity(0))
            number = sorted(path.name for path in marks.iterdir()).index(mine)
            for thread in Path("/proc/self/task").iterdir():
                os.sched_setaffinity(int(thread.name), {cores[number % len(cores)]})

    def __call__(self, told: Any) -> Any:
        """Make one video, or a part of one, and add `began` and `over`."""
        began = time.time()
        row = super().__call__(told)
        return {**row, "began": began, "over": time.time()} if isinstance(row, dict) else row


class Window:
    """A peer's worker: predicts windows of a state that it is sent."""

    def __init__(self, seconds: float) -> None:
        self._network = Sleeping(seconds)

    def __call__(self, x_BCTHW: torch.Tensor, frames: slice) -> torch.Tensor:
        """Return the prediction of one window."""
        return self._network(x_BCTHW[:, :, frames])


class Centre:
    """A peer's reducer: sends the state to workers, takes their whole windows, and steps."""

    def __init__(self, workers: list[Any], plan: windows.Plan) -> None:
        self._workers, self._plan = workers, plan
        self._weights = windows.weights(plan, "linear")

    def run(self, shape: tuple[int, int, int, int, int], steps: int) -> float:
        """Return the seconds of a step."""
        x = torch.zeros(shape)
        begun_s = time.perf_counter()
        for _ in range(steps):
            state = ray.put(x)
            due = [
                self._workers[k % len(self._workers)].remote(state, self._plan.slice(k))
                for k in range(len(self._plan.starts))
            ]
            x = multidiffusion.reduce(enumerate(ray.get(due)), self._plan, self._weights)
        return (time.perf_counter() - begun_s) / steps
