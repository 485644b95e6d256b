"""curate through the command line on what goes wrong: a file that is no video, and a disk that fills up."""

import os
import subprocess
from pathlib import Path

import pytest

from ingest.store import Dataset
from tests.pipelines.conftest import CHECKOUT, kinoray

RECIPE = str(CHECKOUT / "jobs" / "recipes" / "curate.toml")
KEEP = ["keep.min_motion=0.0", "keep.max_motion=9.0", "keep.max_duplicate_frame_share=1.0"]
KEEP += ["keep.min_luma=0.0", "keep.min_luma_range=0.0"]
pytestmark = pytest.mark.ray


def test_a_file_that_is_no_video_has_its_fate(tmp_path):
    (tmp_path / "notes.mp4").write_text("I am not a video")
    ran = kinoray(tmp_path, "curate", RECIPE, "source=notes.mp4", "out=ds", "--json")
    assert ran.code == 3
    assert ran.told["failed"] == 1
    assert ran.told["fates_balance"] is True
    assert "notes.mp4: " in ran.err
    assert "Traceback" not in ran.err


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_loses_nothing(small_disk: Path, tmp_path, tiny_videos):
    # Filled up but for a little, so that the tables fit and a payload does not.
    (small_disk / "ballast").write_bytes(b"x" * 300_000)
    words = ["curate", RECIPE, f"source={tiny_videos}", f"out={small_disk / 'ds'}", *KEEP, "--json"]
    full = kinoray(tmp_path, *words)
    assert full.code == 1
    assert "the disk is full" in full.told["error"]
    assert "the same command again continues" in full.told["next"]
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    again = kinoray(tmp_path, *words)
    assert again.code == 0, again.err[-1500:]
    assert again.told["clips_kept"] == 3
    assert Dataset.open(small_disk / "ds").balance().ok
