"""How fast a source runs, from the times of its packets: its one rate, or its average.

What a file declares is believed where its times say the same; players and codecs know a rate like
30000/1001 only through that, because times are rounded to ticks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

STEADY_SHARE = 0.95  # of all steps between frames; the rest may be gaps
MAX_DENOMINATOR = 1001  # of an average: finer than any clock
# Beyond these a rate is nonsense, and divided by an interval would not fit its 32-bit columns.
MAX_FPS, MAX_DECLARED_DENOMINATOR = 20_000, 100_000
COMMON_FPS = tuple(
    rate
    for whole in (12, 15, 24, 25, 30, 48, 50, 60, 120)
    for rate in (Fraction(whole), Fraction(whole * 1000, 1001))
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Frames per second of a source, and whether they come at that constant rate."""

    fps: Fraction
    steady: bool


def pace_of(ticks: Sequence[int], timebase: Fraction, declared_fps: Fraction) -> Pace:
    """Return the pace of frames at `ticks` (any order, `timebase` seconds each).

    It is `declared_fps` (0: none) when nearly all steps have its length to the tick and do not add
    up to another rate; else a common rate of which that is true, else the average. A single frame
    has the declared rate, or 1.
    """
    times = sorted(set(ticks))
    sane = 0 < declared_fps <= MAX_FPS and declared_fps.denominator <= MAX_DECLARED_DENOMINATOR
    declared = [declared_fps] if sane else []
    if len(times) < 2:
        return Pace(fps=(*declared, Fraction(1))[0], steady=True)
    average = (len(times) - 1) / ((times[-1] - times[0]) * timebase)
    nearest = average.limit_denominator(MAX_DENOMINATOR) or Fraction(1, MAX_DENOMINATOR)
    nearest = min(nearest, Fraction(MAX_FPS))
    common = sorted(COMMON_FPS, key=lambda rate: abs(rate - average))
    for fps in (*declared, common[0], nearest):
        if _keeps(times, 1 / (fps * timebase)):
            return Pace(fps=fps, steady=True)
    return Pace(fps=nearest, steady=False)


def _keeps(times: Sequence[int], step: Fraction) -> bool:
    steps = [after - before for before, after in pairwise(times)]
    low, high = -(-(step - 1) // 1), (step + 1) // 1
    fitting = [ticks for ticks in steps if low <= ticks <= high]
    num_gaps = len(steps) - len(fitting)
    if len(fitting) < STEADY_SHARE * len(steps):
        return False
    # Each run between gaps may be off by a tick through rounding, but not by more: 30 is not 29.97.
    return abs(sum(fitting) - len(fitting) * step) <= num_gaps + 1
