"""`make faults`: two thousand tiny samples on two actors, whose memory must not grow, and every one in the manifest."""

import threading
import time
from pathlib import Path

import psutil
import pytest

from pipelines.manifest import complete_rows
from tests.faults import sample_kills
from tests.faults.curate_kills import family, start
from tests.pipelines.conftest import kinoray

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(7200)]
PROMPTS, SEEDS = 1000, 2
FIRST = 100
MOST_GROWTH = 1.05


def test_two_thousand_samples_leave_memory_flat(tmp_path):
    place = sample_kills.recipe(tmp_path, prompts=PROMPTS, actors=2)
    words = ["sample", str(place), "out=out", f"num_seeds={SEEDS}", "base_solver.steps=2"]
    words += ["ssr_solver.steps=1", "--json"]
    process = start(tmp_path, words, tmp_path / "said")
    seen: list[tuple[int, int]] = []
    over = threading.Event()

    def watch() -> None:
        run = psutil.Process(process.pid)
        while not over.wait(2.0):
            if found := resident(run):
                seen.append((sample_kills.progress(tmp_path / "out"), found))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        code = process.wait(timeout=7000)
    finally:
        over.set()
        watching.join()
    assert code == 0, (tmp_path / "said").read_text()[-2000:]
    rows = complete_rows(tmp_path / "out")
    assert len(rows) == len({row["identity"] for row in rows}) == PROMPTS * SEEDS
    early = [rss for done, rss in seen if FIRST <= done < 2 * FIRST]
    late = [rss for done, rss in seen if done >= PROMPTS * SEEDS - FIRST]
    growth = median(late) / median(early)
    print(  # noqa: T201  for the note
        f"\n  actors {median(early) >> 20} -> {median(late) >> 20} MiB, {growth:.3f} times, "
        f"{process_s(tmp_path):.2f} s a sample"
    )
    assert growth <= MOST_GROWTH
    again = kinoray(tmp_path, *words)
    assert (again.code, again.told["samples"]) == (0, PROMPTS * SEEDS)


def resident(run: psutil.Process) -> int:
    """Return what the sampling actors hold together, 0 unless both are there."""
    found = []
    for one in family(run):
        try:
            if " ".join(one.cmdline()).startswith(sample_kills.ACTOR):
                found.append(one.memory_info().rss)
        except psutil.Error:
            continue
    return sum(found) if len(found) == 2 else 0


def median(values: list[int]) -> int:
    """Return the middle value."""
    return sorted(values)[len(values) // 2]


def process_s(folder: Path) -> float:
    """Return the seconds a sample took on the whole."""
    log = (folder / "out" / "events.jsonl").stat()
    begun = (folder / "out" / "recipe.json").stat().st_mtime
    return (min(log.st_mtime, time.time()) - begun) / (PROMPTS * SEEDS)
