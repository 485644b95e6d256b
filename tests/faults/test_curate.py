"""`make faults`: curation killed fifty times at random moments ends as an undisturbed one does."""

import random
import shutil
import subprocess
import time
from pathlib import Path

import imageio_ffmpeg
import pytest

from ingest.store import Dataset
from tests.conftest import make_videos
from tests.faults.curate_kills import VICTIMS, killed_once, twice_decoded
from tests.pipelines.conftest import kinoray
from tests.pipelines.test_curate import KEEP, RECIPE

NUM_KILLS, COPIES = 50, 4
pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(7200)]


def many_videos(folder: Path) -> Path:
    """Three videos in several sizes of frame: twelve different sources."""
    made = make_videos(folder / "first")
    exe = imageio_ffmpeg.get_ffmpeg_exe()
    for number in range(1, COPIES):
        for path in sorted(made.glob("*.mp4")):
            out = folder / "more" / f"{path.stem} {number}.mp4"
            out.parent.mkdir(exist_ok=True)
            turn = f"hue=h={70 * number},scale={64 + 16 * number}:-2"
            command = [exe, "-v", "error", "-i", str(path), "-vf", turn, str(out)]
            subprocess.run(command, check=True, timeout=60)
    return folder


def told(place: Path) -> tuple[str, list[tuple[str, str, str]]]:
    dataset = Dataset.open(place)
    names = ("kind", "id", "fate")
    rows = dataset.ledger().select(list(names)).to_pylist()
    return dataset.digest(), sorted(tuple(row[name] for name in names) for row in rows)


def test_fifty_kills_of_driver_worker_and_raylet(tmp_path, monkeypatch):
    videos = many_videos(tmp_path / "videos")
    near = ["duplicates.near=false"]  # the same shapes in other colours
    words = ["curate", RECIPE, f"source={videos}", *KEEP, *near, "--json"]
    calm = kinoray(tmp_path, *words, "out=calm")
    assert calm.code == 0, calm.err[-1500:]
    wanted = told(tmp_path / "calm")

    log = tmp_path / "decodes"
    log.touch()
    wrapper = tmp_path / "ffmpeg"
    wrapper.write_text(
        "#!/bin/bash\n"
        'case "$*" in *showinfo*rawvideo*pipe:1*)\n'
        '  for word in "$@"; do case "$word" in file:*) '
        f'echo "$EPOCHREALTIME ${{word#file:}}" >> "{log}";; esac; done;;\n'
        "esac\n"
        f'exec "{imageio_ffmpeg.get_ffmpeg_exe()}" "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(wrapper))

    draw, kills, ends = random.Random(4), dict.fromkeys(VICTIMS, 0), 0
    place, committed = tmp_path / "killed", dict[str, float]()
    while sum(kills.values()) < NUM_KILLS:
        victim = VICTIMS[sum(kills.values()) % len(VICTIMS)]
        done = killed_once(tmp_path, [*words, "out=killed"], victim, draw.uniform(0, 6), place)
        kills[victim] += done == "killed"
        assert not twice_decoded(log, committed)
        if place.exists():
            ledger = Dataset.open(place).ledger().select(["kind", "id", "source_uri"]).to_pylist()
            keys = [(row["kind"], row["id"]) for row in ledger]
            assert len(keys) == len(set(keys))
            now_s = time.time()
            committed |= {r["source_uri"]: committed.get(r["source_uri"], now_s) for r in ledger}
            if len(ledger) == len(wanted[1]):
                finished = kinoray(tmp_path, *words, "out=killed")
                assert finished.code == 0, finished.err[-1500:]
                assert told(place) == wanted
                ends += 1
                shutil.rmtree(place)
                committed.clear()
    assert ends
    print(f"{kills} kills, {ends} datasets came to their end")  # noqa: T201
