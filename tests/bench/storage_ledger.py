"""The ledger at scale, in processes of its own: a million rows in many commits, opened and asked.

`python -m tests.bench.storage_ledger TASK FOLDER` prints what it measured as JSON; times are CPU seconds of the process
with all its threads, and where a person waits for it also seconds on the wall.
"""

import json
import statistics
import sys
import time
from pathlib import Path

from ingest.clip import Prep
from ingest.select import Selection
from ingest.store import Dataset, empty_captions
from tests.bench.storage_rows import UNIT_CLIPS, batches

COMMITS, UNITS = 1280, 80
ROWS = UNITS * (UNIT_CLIPS + 1)
EARLY, LATE = slice(40, 60), slice(1040, 1060)
EARLY_ALL, LATE_ALL = slice(0, 256), slice(1024, 1280)
BEST = "motion > 0.95"
PLACES = f"SELECT id, shard, \"offset\", length, crc32 FROM ledger WHERE kind = 'clip' AND {BEST}"


def main() -> None:
    task, folder = sys.argv[1], Path(sys.argv[2])
    found = {"build": build, "open": opened, "commit": commit, "filter": filtered}[task](folder)
    sys.stdout.write(f"\n{json.dumps(found)}\n")


def build(folder: Path) -> dict[str, float]:
    """Commit a million rows as one long run does; return the cost of a commit early and late."""
    prep = Prep()
    dataset = Dataset.create(folder, prep.contract, prep)
    costs_s = []
    for number, rows in zip(range(1, COMMITS + 1), batches(UNITS), strict=False):
        before = time.process_time()
        dataset.commit(rows, empty_captions(), app_id="bench", batch=number)
        costs_s.append(time.process_time() - before)
    return {
        "early_s": statistics.median(costs_s[EARLY]),
        "late_s": statistics.median(costs_s[LATE]),
        "early_mean_s": statistics.mean(costs_s[EARLY_ALL]),
        "late_mean_s": statistics.mean(costs_s[LATE_ALL]),
        "max_s": max(costs_s),
        "version": dataset.version,
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    }


def opened(folder: Path) -> dict[str, float]:
    before_s, before_wall_s = time.process_time(), time.perf_counter()
    dataset = Dataset.open(folder)
    found = {
        "open_s": time.process_time() - before_s,
        "open_wall_s": time.perf_counter() - before_wall_s,
    }
    return found | {"version": dataset.version}


def commit(folder: Path) -> dict[str, float]:
    """Return what the first and the second commit of a new process cost."""
    dataset = Dataset.open(folder)
    source = batches(UNITS)
    costs_s = []
    number = dataset.next_batch("later")
    for _ in range(COMMITS + 2 * number):
        next(source)
    for i in range(2):
        rows = next(source)
        before = time.process_time()
        dataset.commit(rows, empty_captions(), app_id="later", batch=number + i)
        costs_s.append(time.process_time() - before)
    return {"first_s": costs_s[0], "second_s": costs_s[1]}


def filtered(folder: Path) -> dict[str, float]:
    """Ask for the best 5 % three ways; the median of three, the first of which is included."""
    dataset = Dataset.open(folder)
    ways = {
        "places": lambda: dataset.query(PLACES),
        "clips": lambda: dataset.query(f"SELECT * FROM clips WHERE {BEST}"),
        "select": lambda: dataset.select(Selection(where=BEST)),
    }
    found: dict[str, float] = {}
    for name, way in ways.items():
        cpu_s, wall_s = [], []
        for _ in range(3):
            before_s, before_wall_s = time.process_time(), time.perf_counter()
            found[f"{name}_rows"] = way().num_rows
            cpu_s.append(time.process_time() - before_s)
            wall_s.append(time.perf_counter() - before_wall_s)
        found |= {f"{name}_s": statistics.median(cpu_s)}
        found |= {f"{name}_wall_s": statistics.median(wall_s), f"{name}_first_s": cpu_s[0]}
    return found


if __name__ == "__main__":
    main()
