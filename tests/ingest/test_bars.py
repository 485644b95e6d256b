from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import ffmpeg
from ingest.bars import Crop, find_bars, may_have_bars
from ingest.clip import Prep
from ingest.sources import list_sources
from ingest.unit import plan_unit


def scene(seed, height=240, width=320, low=0):
    """A lit picture: waves, different for each seed."""
    y, x = np.mgrid[:height, :width]
    wave = 128 + 100 * np.sin(x / (11 + seed) + seed) * np.cos(y / (17 - seed))
    return wave.clip(low, 255).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    top=st.integers(0, 60), left=st.integers(0, 60), noise=st.integers(0, 6), seed=st.integers(0, 9)
)
def test_bars_of_any_size_are_found_to_the_pixel(top, left, noise, seed):
    height, width = 240 - 2 * top, 320 - 2 * left
    draw = np.random.default_rng(seed)
    frames = draw.integers(0, noise + 1, (4, 240, 320)).astype(np.uint8)
    for number, frame in enumerate(frames):
        frame[top : top + height, left : left + width] = scene(number, height, width, low=30)
    found = find_bars(frames)
    top = top if top >= 3 else 0  # a strip of two hundredths is no bar
    left = left if left >= 4 else 0
    even = (left + left % 2, top + top % 2)
    assert (found is None) == (not (top or left))
    if found:
        assert (found.left, found.top) == even
        assert (found.left + found.width, found.top + found.height) == (
            320 - even[0],
            240 - even[1],
        )


def test_what_is_dark_is_no_bar():
    stage = np.zeros((3, 240, 320), np.uint8)
    stage[:, 60:180, 100:220] = scene(1, 120, 120)  # a lit figure on a black stage: all sides dark
    y, x = np.mgrid[:240, :320]
    falloff = np.exp(-(((x - 160) / 90.0) ** 2) - ((y - 120) / 60.0) ** 2)
    vignette = (stage[0] * 0 + 220 * falloff).astype(np.uint8)
    sky = scene(2, low=30)
    sky[:80] = 3  # above only
    assert find_bars([vignette, vignette // 2 * 2]) is None
    assert find_bars([sky, sky + 1]) is None
    assert find_bars([np.zeros((240, 320), np.uint8)] * 5) is None
    assert find_bars([scene(1, low=30)] * 3) is None


def test_one_frame_without_bars_settles_it():
    barred = np.zeros((240, 320), np.uint8)
    barred[30:210] = scene(1, 180, low=30)
    assert find_bars([barred, barred + 1]) == Crop(left=0, top=30, width=320, height=180)
    assert find_bars([barred, barred + 1, scene(2, low=30)]) is None
    assert may_have_bars(barred)
    assert not may_have_bars(scene(2, low=30))
    assert may_have_bars(np.zeros((240, 320), np.uint8))


PADS = {
    "letterbox": ("pad=192:168:0:24", (0, 24)),
    "pillarbox": ("pad=240:120:24:0", (24, 0)),
    "both": ("pad=240:168:24:24", (24, 24)),
    "none": ("null", None),
}


@pytest.mark.parametrize("name", PADS)
def test_bars_are_cropped_before_scaling_and_recorded(studio, curate, tmp_path, name):
    filters, corner = PADS[name]
    plain = studio.numbered("bars-plain.mp4", fps="24", count=144)
    path = studio.folder / f"bars-{name}.mp4"
    codec = ("-c:v", "libx264", "-crf", "16", "-g", "30", "-pix_fmt", "yuv420p")
    inside = f"crop=192:120:0:0,{filters}"  # without the black and white of the numbers
    studio.run("-i", plain, "-vf", inside, *codec, path)
    rows = curate(path, tmp_path).rows.to_pylist()
    cropped = [row["crop_left"] for row in rows], [row["crop_top"] for row in rows]
    assert [row["fate"] for row in rows] == ["kept", "kept"]
    wanted = corner or (None, None)
    assert cropped == ([wanted[0]] * 2, [wanted[1]] * 2)
    assert (rows[1]["width"], rows[1]["height"]) == (192, 120)
    left = Prep(crop_bars=False)
    rows = curate(path, tmp_path / "left", prep=left).rows.to_pylist()
    assert rows[1]["crop_left"] is None


REAL = {
    "cosmos_test_video_30s.mp4": Crop(left=0, top=58, width=854, height=364),
    "cosmos_test_clip_10s.mp4": Crop(left=0, top=58, width=854, height=364),
    **dict.fromkeys(
        ("mdn_crystal.mp4", "mdn_elf.mp4", "mdn_frog.mp4", "mdn_frog.webm", "mdn_monster.mp4"),
        Crop(left=8, top=0, width=704, height=480),
    ),
    "mdn_pig.mp4": Crop(left=8, top=0, width=704, height=480),
}


def test_bars_of_real_videos(shared_videos):
    """Looked at by eye: the Sintel trailer is letterboxed, toys were filmed 704 px wide in 720."""
    found = {}
    for path in sorted(Path(shared_videos).iterdir()):
        if path.suffix in (".mp4", ".webm", ".mkv", ".mov", ".ts"):
            info = ffmpeg.probe(str(path), Prep())
            found[path.name] = ffmpeg.bars_of(str(path), info, Prep())
    assert {name: crop for name, crop in found.items() if crop} == REAL
    assert len(found) >= 43


def test_the_unit_knows_nothing_of_bars(studio, curate, tmp_path):
    """Who a unit is depends on its bytes and settings; bars are found again the same."""
    plain, path = studio.numbered("bars-plain.mp4", fps="24", count=144), tmp_path / "barred.mkv"
    barred = "crop=192:120:0:0,pad=192:168:0:24"
    studio.run("-i", plain, "-vf", barred, "-c:v", "ffv1", "-pix_fmt", "yuv420p", path)
    (source,) = list_sources([str(path)])
    assert plan_unit(source, prep=Prep()) == plan_unit(source, prep=Prep())
    left = plan_unit(source, prep=Prep(crop_bars=False))
    assert left.unit_id != plan_unit(source, prep=Prep()).unit_id
    assert left.source_sha256 == plan_unit(source, prep=Prep()).source_sha256
    first, again = (curate(path, tmp_path / n).rows.to_pylist() for n in ("a", "b"))
    told = [
        [(row["id"], row["crop_top"], row["crop_height"]) for row in rows]
        for rows in (first, again)
    ]
    assert told[0] == told[1]
    assert [crop[1:] for crop in told[0]] == [(24, 120)] * 2
