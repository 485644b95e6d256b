"""A set whose driver and one of whose actors are killed is the set of an undisturbed run; `make faults` kills twenty times."""

import subprocess

import pytest

from tests.faults import sample_kills
from tests.pipelines.conftest import kinoray


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_two_kills_lose_and_double_nothing(tmp_path):
    place = sample_kills.recipe(tmp_path, prompts=4, steps=10)
    words = ["sample", str(place), "--json"]
    calm = kinoray(tmp_path, *words, "out=calm")
    assert calm.code == 0, calm.err[-2000:]
    kills = [("driver", 3, 0.2), ("worker", 2, 0.3)]
    sample_kills.campaign(tmp_path, [*words, "out=out"], kills, actors=2)
    assert not (tmp_path / "out").exists(), "it went on after its actor's death, and was checked"


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.faults
def test_a_full_disk_is_one_line_and_what_was_made_stays(tmp_path, disk_of):
    place = sample_kills.recipe(tmp_path, prompts=6)
    disk = disk_of("600k")
    words = ["sample", str(place), f"out={disk / 'out'}", "--json"]
    full = kinoray(tmp_path, *words)
    assert full.code == 1, full.err[-2000:]
    assert "the disk is full" in full.told["error"]
    assert full.told["next"].startswith("free space")
    assert "Traceback" not in full.err
    before = sample_kills.stamps(disk / "out")
    subprocess.run(["mount", "-o", "remount,size=60m", str(disk)], check=True)
    more = kinoray(tmp_path, *words)
    assert more.code == 0, more.err[-2000:]
    assert more.told["samples"] == 12
    assert before.items() <= sample_kills.stamps(disk / "out").items(), "made again"
    sample_kills.check(disk / "out", disk / "out")
