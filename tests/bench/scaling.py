"""What the executor costs: curation of the same pieces of film through it, and by two bare processes, wall clock.

`python -m tests.bench.scaling [PIECES]` measures both in turn, three times each, and writes tests/bench/scaling.md. Both sides
have imported everything before the clock starts, take the next piece when one is done, and write shards; ours commits too.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from cluster import pool
from cluster.interrupt import Interrupt
from cluster.session import Cluster, session
from ingest.clip import Prep
from ingest.keep import Keep
from ingest.sources import list_sources
from ingest.store import Dataset
from ingest.unit import Unit, curate_unit, plan_unit
from pipelines.committer import Committer
from tests.bench.ingest import made, unpacked
from tests.bench.machine import cores, cpu_name

TABLE = Path(__file__).with_name("scaling.md")
WORKERS, PIECES, PIECE_S, ROUNDS = 2, 16, 20, 3
GOAL = 1.05
Work = Callable[[Unit], object]


def main() -> None:
    """Measure and write the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else PIECES
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        units = pieces(folder, count)
        bare, ours = [], []
        with (
            ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as processes,
            session(Cluster()),
            Interrupt() as stop,
        ):
            for number in range(ROUNDS + 1):  # the first one warms up
                bare.append(by_processes(processes, units, folder / f"bare{number}"))
                ours.append(by_executor(stop, units, folder / f"ours{number}"))
    text = table(count, bare[1:], ours[1:])
    TABLE.write_text(text)
    sys.stdout.write(text)


def pieces(folder: Path, count: int) -> list[Unit]:
    """Cut the film into pieces of some seconds; name them."""
    film = unpacked(folder)
    cut = [
        made(film, folder / f"{n}.mp4", "-ss", str(30 * n + 15), "-t", str(PIECE_S), "-c", "copy")
        for n in range(count)
    ]
    return [plan_unit(list_sources([str(path)])[0], prep=Prep()) for path in cut]


def work(root: Path) -> Work:
    """Return what is done with a piece."""
    return partial(curate_unit, prep=Prep(), keep=Keep(), root=root)


def by_processes(processes: ProcessPoolExecutor, units: Sequence[Unit], root: Path) -> float:
    """Return the seconds that bare processes take."""
    root.mkdir()
    begin_s = time.monotonic()
    list(processes.map(work(root), units, chunksize=1))
    return time.monotonic() - begin_s


def by_executor(stop: Interrupt, units: Sequence[Unit], root: Path) -> float:
    """Return the seconds that the executor takes, with the commits of a run."""
    dataset = Dataset.create(root, Prep().contract, Prep())
    committer = Committer(dataset, app_id="bench")
    begin_s = time.monotonic()
    queue = (pool.Unit(key=unit.unit_id, payload=unit) for unit in units)
    for outcome in pool.run_tasks(work(root), queue, config=pool.Pool(), stop=stop):
        committer.add(outcome.value.rows)
    committer.flush()
    return time.monotonic() - begin_s


def table(count: int, bare: Sequence[float], ours: Sequence[float]) -> str:
    """Return the figures as Markdown."""
    ratio = statistics.median(ours) / statistics.median(bare)
    shown = [" ".join(f"{one:.1f}" for one in seconds) for seconds in (ours, bare)]
    return (
        f"Measured {time.strftime('%Y-%m-%d')} by `python -m tests.bench.scaling` on {cpu_name()}, {cores()} cores: "
        f"{count} pieces of {PIECE_S} s of 720p24, {WORKERS} workers. Goal: ratio at most {GOAL}.\n\n"
        "| executor with commits, s | bare processes, s | ratio of medians |\n| --- | --- | --- |\n"
        f"| {shown[0]} | {shown[1]} | **{ratio:.2f}** |\n"
    )


if __name__ == "__main__":
    main()
