"""The campaign behind `make faults`: the whole chain killed again and again at random moments, against an undisturbed one."""

import random
import signal
import subprocess
import sys
import time

import pytest

from ingest.store import Dataset
from pipelines.manifest import read_set
from tests.pipelines.conftest import CHECKOUT, RECIPE, kinoray

NUM_KILLS = 20
pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(3600)]


def test_twenty_kills_at_random_moments(tmp_path, tiny_videos):
    folders = {name: tmp_path / name for name in ("calm", "killed")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "tiny.toml").write_text(RECIPE.format(videos=tiny_videos))
    calm = kinoray(folders["calm"], "run", "tiny.toml", "--json")
    assert calm.code == 0, calm.err[-2000:]
    draw = random.Random(1)
    kills = 0
    while kills < NUM_KILLS:
        # A fresh start now and then, so that early stages are hit as often as late ones.
        if kills in (7, 14) and (folders["killed"] / "out").exists():
            (folders["killed"] / "out").rename(tmp_path / f"before-{time.time_ns()}")
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs", "run", "tiny.toml", "--quiet"],
            cwd=folders["killed"],
            env={"PYTHONPATH": str(CHECKOUT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(draw.uniform(4, 40))
        if process.poll() is not None:
            # It was faster than the draw: then it must have ended well, and a new one begins.
            assert process.returncode == 0
            (folders["killed"] / "out").rename(tmp_path / f"finished-{time.time_ns()}")
            continue
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        kills += 1
    killed = kinoray(folders["killed"], "run", "tiny.toml", "--json")
    assert killed.code == 0, killed.err[-2000:]
    for name, step in calm.told["steps"].items():
        assert killed.told["steps"][name].get("digest") == step.get("digest"), name
    ledger = Dataset.open(folders["killed"] / "out" / "curate").ledger()
    ids = list(zip(*(ledger.column(n).to_pylist() for n in ("kind", "id")), strict=True))
    assert len(ids) == len(set(ids)) == 6
    rows = read_set(folders["killed"] / "out" / "sample")
    assert len({row["identity"] for row in rows}) == len(rows) == 4
