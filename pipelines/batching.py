"""How many windows share a pass, found by measurement when a set is begun, and kept: bits depend on it."""

from pathlib import Path

import torch

from cluster import pool
from ingest.files import atomic_write
from models.freed import keep_freed
from pipelines.context import Context, Recorder
from pipelines.maker import Maker, Roles
from pipelines.output import read_json, to_json

MEASURED = "measured.json"
# A larger number must be worth its memory.
ENOUGH = 1.03
TIMES = 3


def known(out: Path, micro_batch: int) -> int:
    """Return how many windows share a pass: as asked for, or as was measured for the set in `out`; 0 while unknown."""
    if micro_batch:
        return micro_batch
    told = read_json(out / MEASURED)
    return int(told["micro_batch"]) if told else 0


def measured(
    out: Path, roles: Roles, most: int, *, needs: pool.Pool, context: Context, recorder: Recorder
) -> int:
    """Measure up to `most` windows at once on one actor, and write down what is best."""
    context.start_cluster()
    recorder.stage("measuring how many windows pass best at once")
    units = [pool.Unit(key="meter", payload=most)]
    outcomes = list(
        pool.run_actors(Meter, (roles,), units, num_actors=1, config=needs, stop=context.stop)
    )
    if not outcomes:
        raise KeyboardInterrupt  # it was asked to stop before it began
    (outcome,) = outcomes
    if outcome.failure is not None:
        raise RuntimeError(f"cannot measure: {outcome.failure.message}")
    seconds: dict[int, float] = outcome.value
    chosen = best(seconds)
    told = {"micro_batch": chosen, "seconds": {str(k): v for k, v in seconds.items()}}
    atomic_write(out / MEASURED, to_json(told))
    gain = seconds[1] * chosen / seconds[chosen]
    recorder.stage(f"{chosen} windows at once, {gain:.2f} times as fast as one by one")
    return chosen


def best(seconds: dict[int, float]) -> int:
    """Return the smallest number at once that costs each hardly more than the best does; never slower than one by one."""
    least_s = min(took_s / count for count, took_s in seconds.items())
    return min(count for count, took_s in seconds.items() if took_s / count <= ENOUGH * least_s)


class Meter:
    """The actor that measures: called with the most windows at once, returns the seconds of a pass by their number."""

    def __init__(self, roles: Roles) -> None:
        torch.set_num_threads(roles.settings["threads"])
        keep_freed()
        self._maker = Maker(roles, base=False)

    def __call__(self, most: int) -> dict[int, float]:
        """Measure 1, 2, 4, ... until memory is out or `most` is reached."""
        seconds: dict[int, float] = {}
        for count in sorted({*(2**i for i in range(most.bit_length())), most}):
            try:
                seconds[count] = self._maker.pass_s(count, times=TIMES)
            except (torch.OutOfMemoryError, MemoryError):
                break
        if not seconds:
            raise MemoryError("one window alone does not fit into memory; next: a smaller window")
        return seconds
