import struct
from fractions import Fraction

import cv2
import numpy as np
import pytest

from ingest import ffmpeg
from ingest.clip import Prep
from ingest.schema import SCORES
from ingest.scores import duplicate_frame_share, flicker, motion, score, shrunk


def blurred_noise() -> np.ndarray:
    wide = np.random.default_rng(0).random((160, 1200))
    for axis in (0, 1, 0, 1):
        wide = np.apply_along_axis(np.convolve, axis, wide, np.ones(7) / 7, "same")
    low, high = wide.min(), wide.max()
    return ((wide - low) / (high - low) * 255)[8:152]


NOISE = blurred_noise()


def textured(shift=0):
    """A picture without period, slid by whole pixels."""
    return np.repeat(NOISE[:, 300 + shift : 556 + shift, None], 3, -1).astype(np.uint8)


def test_all_scores_are_there_and_finite(studio):
    scores = score(studio.frames(80), 16)
    assert tuple(scores) == SCORES
    assert all(np.isfinite(value) for value in scores.values())


@pytest.mark.parametrize("speed_px", [1, 2])
def test_motion_is_diagonals_per_second(speed_px):
    """A picture that slides by v px per frame moves 16 v / diagonal in a second."""
    frames = np.stack([textured(speed_px * k)[..., 0] for k in range(80)])
    wanted = 16 * speed_px / np.hypot(144, 256)
    assert motion(frames, 16) == pytest.approx(wanted, rel=0.25)


def test_motion_does_not_depend_on_size_or_rate():
    small = score(np.stack([textured(k) for k in range(80)]), 16)["motion"]
    frames = np.stack([textured(k) for k in range(80)])
    large = score(frames.repeat(2, 1).repeat(2, 2), 16)["motion"]
    assert small == pytest.approx(large, rel=0.2)
    assert motion(frames[..., 0], 32) == pytest.approx(2 * motion(frames[..., 0], 16), rel=0.25)


def test_motion_takes_any_rate():
    """Every third of the frames at a third of the rate moves as fast."""
    frames = np.stack([textured(k)[..., 0] for k in range(80)])
    whole = motion(frames, Fraction(30000, 1001))
    assert motion(frames[::3], Fraction(10000, 1001)) == pytest.approx(whole, rel=0.25)
    assert motion(frames[:2], Fraction(1, 2)) is not None


def test_a_still_has_no_motion_and_all_duplicates():
    frames = np.repeat(textured()[None], 80, 0)
    scores = score(frames, 16)
    assert scores["motion"] == pytest.approx(0, abs=1e-6)
    assert scores["duplicate_frame_share"] == 1


def test_duplicates_are_counted_exactly():
    moving = [textured(shift=k) for k in range(40)]
    doubled = np.stack([frame for frame in moving for _ in range(2)])
    assert duplicate_frame_share(doubled) == pytest.approx(40 / 79)
    assert duplicate_frame_share(np.stack(moving)) == 0


def test_flicker_is_what_jumps_and_not_what_fades():
    fade = np.arange(20, 200, 3, dtype=np.uint8)[:, None, None].repeat(32, 1).repeat(32, 2)
    assert flicker(fade) == 0
    fade[1::2] += 8  # every second frame is 8 levels brighter
    assert flicker(fade) == pytest.approx(8)
    assert flicker(fade[:2]) is None


def test_planar_frames_score_as_rgb_does(studio):
    """The same pictures, as a video stores them."""
    frames = studio.frames(16)
    planar = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420) for frame in frames])
    ours, theirs = score(planar, 16), score(frames, 16)
    for name in ("luma_mean", "luma_range", "flicker"):
        assert ours[name] == pytest.approx(theirs[name], abs=1.5)
    for name in ("motion", "sharpness"):
        assert ours[name] == pytest.approx(theirs[name], rel=0.2)


def test_luma_and_sharpness():
    flat = score(np.full((10, 64, 64, 3), 50, np.uint8), 16)
    assert flat["luma_mean"] == pytest.approx(50, abs=0.5)
    assert (flat["luma_range"], flat["sharpness"]) == (0, 0)
    sharp = score(np.stack([textured()] * 10), 16)
    assert sharp["luma_range"] > 50
    assert sharp["sharpness"] > 10


def test_unknown_is_null_and_not_zero():
    single = score(textured()[None], 16)
    assert score(textured()[None], 0).keys() == single.keys()  # a still has no rate
    assert single["motion"] is None
    assert single["duplicate_frame_share"] is None


@pytest.mark.parametrize(
    "size", [(96, 64), (192, 128), (300, 40), (600, 80), (1920, 256), (64, 96)]
)
def test_pictures_of_ordinary_shapes_are_seen_as_ever(size):
    """Whole, at a short side of 128 px."""
    width, height = size
    frame = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    scale = 128 / min(size)
    way = cv2.INTER_LINEAR if scale > 1 else cv2.INTER_AREA
    wanted = tuple(round(side * scale) for side in size)
    grey = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), wanted, interpolation=way)
    assert np.array_equal(shrunk(frame[None])[0], grey)


@pytest.mark.parametrize("size", [(2, 1080), (8192, 8), (8192, 2), (20000, 300), (2, 2)])
def test_a_thin_picture_is_squeezed_and_still_scored(size):
    width, height = size
    frames = np.random.default_rng(0).integers(0, 255, (5, height, width, 3), np.uint8)
    small = shrunk(frames)
    assert small[0].size <= 128 * 1024
    assert min(small.shape[1:]) == 128
    assert all(np.isfinite(value) for value in score(frames, 16).values())


def test_a_video_whose_header_makes_it_thin(studio, curate, tmp_path):
    """Pixels 300 times as high as they are wide: frames of 1 x 1080, which are made 2 wide."""
    path = tmp_path / "thin.mp4"
    source = ("-f", "lavfi", "-i", "testsrc2=s=320x1080:r=16:d=6", "-vf", "setsar=1/2")
    studio.run(*source, "-c:v", "libx264", "-preset", "ultrafast", "-threads", "1", path)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"pasp") + 4
    raw[at : at + 8] = struct.pack(">II", 1, 300)
    path.write_bytes(raw)
    source, *clips = curate(path, tmp_path / "out").rows.to_pylist()
    assert source["fate"] == "kept", source
    assert ffmpeg.probe(str(path), Prep()).display_size == (1, 1080)
    assert all(clip["motion"] is not None for clip in clips)
