"""What a training does about a step whose numbers are wrong: skip it, go back, or stop with a clear word.

A step is bad when its loss or gradient norm is not finite, or the loss is a spike: more than `spike` times the
largest of the last `window` good ones. (Not of their median: with few clips a step the losses of an SSR spread so wide that
one healthy step in ten lies above ten times it, and leaving those out would be a bias.) Its update is left out. After
`patience` bad steps in a row the weights go back to the newest checkpoint while the data goes on, because the same clips
would do the same again. A training that has gone back `rollbacks` times and fails once more is stopped. All of it is a
function of numbers that every worker has, and its state is in the checkpoint, so a continuation decides as the whole run
would have.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

Verdict = Literal["good", "skip", "roll back", "stop"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Guard:
    """When a step is bad, and what follows; `spike` 0 looks at finite numbers only."""

    spike: float = 3.0
    window: int = 100
    patience: int = 3
    rollbacks: int = 2

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.spike != 0.0 and self.spike <= 1.0:
            raise ValueError("spike: above 1 times the largest of late, or 0 for none")
        if self.window < 2 or self.patience < 1 or self.rollbacks < 0:
            raise ValueError("window: at least 2; patience: at least 1; rollbacks: at least 0")


class Watch:
    """The guard at work on one run."""

    def __init__(self, guard: Guard, state: Mapping[str, Any] | None = None) -> None:
        told = dict(state or {})
        self._guard = guard
        self._good: list[float] = [float(x) for x in told.get("good", ())]
        self._in_a_row = int(told.get("in_a_row", 0))
        self.rolled_back = int(told.get("rolled_back", 0))

    def judge(self, loss: float, grad_norm: float) -> Verdict:
        """Return what to do with this step, once for each step in order."""
        if not self._bad(loss, grad_norm):
            self._good = [*self._good, loss][-self._guard.window :]
            self._in_a_row = 0
            return "good"
        self._in_a_row += 1
        if self._in_a_row < self._guard.patience:
            return "skip"
        self._in_a_row = 0
        if self.rolled_back >= self._guard.rollbacks:
            return "stop"
        self.rolled_back += 1
        return "roll back"

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON."""
        return {
            "good": self._good,
            "in_a_row": self._in_a_row,
            "rolled_back": self.rolled_back,
        }

    def usual(self) -> float:
        """Return the median of the last good losses, NaN before there are any; for words only."""
        return median(self._good) if self._good else math.nan

    def _bad(self, loss: float, grad_norm: float) -> bool:
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return True
        # with few losses known, early learning would look like spikes
        known = len(self._good) >= min(20, self._guard.window)
        return bool(self._guard.spike) and known and loss > self._guard.spike * max(self._good)
