"""What the executor itself costs: units that do nothing, by the million.

`python -m tests.bench.control [UNITS]` writes tests/bench/control.md. Logical workers share this machine's cores, so the
rate is what one driver and its workers do together here; the driver's own CPU time is what bounds a large cluster, whose
workers have cores of their own.
"""

import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cluster import pool
from cluster.interrupt import Interrupt
from cluster.session import Cluster, session
from ingest.files import atomic_write
from tests.bench.machine import cores, cpu_name

TABLE = Path(__file__).with_name("control.md")
UNITS, SHORT = 1_000_000, 20_000
WORKERS = (2, 8, 24)
LONG_WORKERS = 8
GPUS = 256
# what a unit of each verb takes on its worker, in seconds: assumptions, stated in the table
LONG_UNITS_S = {"curate: a piece of video": 60.0, "sample: a video": 30.0, "a very short unit": 1.0}
PART = 10


class Nothing:
    """An actor that gives back what it gets."""

    def __call__(self, payload: int) -> int:
        """Return the payload."""
        return payload


@dataclass(kw_only=True, slots=True)
class Run:
    """One run's seconds on the wall and of the driver's CPU, and after each tenth its seconds and memory."""

    workers: int
    units: int
    wall_s: float = 0.0
    driver_cpu_s: float = 0.0
    tenths: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])


def main() -> None:
    """Measure and write the table."""
    units = int(sys.argv[1]) if len(sys.argv) > 1 else UNITS
    if units < 2 * PART:
        raise SystemExit(f"control: UNITS is at least {2 * PART}")
    short = [measured(workers, min(SHORT, units)) for workers in WORKERS]
    text = table(short, measured(LONG_WORKERS, units))
    atomic_write(TABLE, text.encode())
    sys.stdout.write(text)


def measured(workers: int, units: int) -> Run:
    """Run units of nothing over so many actors; every unit must come back once."""
    found = Run(workers=workers, units=units)
    with session(Cluster(num_cpus=workers)), Interrupt() as stop:
        seen = bytearray(units)
        outcomes = pool.run_actors(
            Nothing, (), _units(units), num_actors=workers, config=pool.Pool(), stop=stop
        )
        begun = 0.0, 0.0
        for number, outcome in enumerate(outcomes, 1):
            if number == 1:  # the actors are built
                begun = time.monotonic(), time.process_time()
            if outcome.failure is not None or seen[outcome.value]:
                raise RuntimeError(f"unit {outcome.key} failed or came twice")
            seen[outcome.value] = 1
            if number % (units // PART) == 0:
                found.tenths.append((time.monotonic() - begun[0], rss_bytes()))
        found.wall_s, found.driver_cpu_s = (
            time.monotonic() - begun[0],
            time.process_time() - begun[1],
        )
    if sum(seen) != units:
        raise RuntimeError(f"{units - sum(seen)} units are lost")
    return found


def _units(count: int) -> Iterator[pool.Unit]:
    return (pool.Unit(key=str(number), payload=number) for number in range(count))


def rss_bytes() -> int:
    """Return the memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def table(short: list[Run], long: Run) -> str:
    """Return the figures as Markdown."""
    lines = [
        (
            f"Measured {time.strftime('%Y-%m-%d')} by `python -m tests.bench.control` on {cpu_name()}, {cores()} cores: "
            "units that do nothing through `pool.run_actors`; every unit came back once."
        ),
        "",
        "| logical workers | units | units/s | driver, CPU ms a unit |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {run.workers} | {run.units} | {run.units / run.wall_s:.0f} | {1000 * cost_s(run):.2f} |"
        for run in (*short, long)
    ]
    first, last = long.tenths[0], long.tenths[-1]
    tenth_s = long.tenths[-1][0] - long.tenths[-2][0]
    lines += [
        "",
        (
            f"The long run: first tenth {first[0]:.0f} s, last tenth {tenth_s:.0f} s; the driver's memory "
            f"{first[1] / 2**20:.0f} MiB after the first tenth, {last[1] / 2**20:.0f} MiB after the last."
        ),
        "",
        f"One driver and {GPUS} GPUs with a worker each, if its CPU time a unit stays that of {short[-1].workers} workers:",
        "",
        "| unit | assumed seconds | units/s of the cluster | share of one core of the driver |",
        "| --- | --- | --- | --- |",
    ]
    for name, seconds in LONG_UNITS_S.items():
        rate = GPUS / seconds
        lines.append(
            f"| {name} | {seconds:.0f} | {rate:.1f} | {100 * rate * cost_s(short[-1]):.1f} % |"
        )
    return "\n".join(lines) + "\n"


def cost_s(run: Run) -> float:
    """Return the driver's CPU seconds for a unit."""
    return run.driver_cpu_s / run.units


if __name__ == "__main__":
    main()
