"""What is kept of one look at a passing frame, and how alike two of them are."""

from typing import NamedTuple

import cv2
import numpy as np

from ingest import planes

SHOT_SIDE_PX = 64
HALF_PX = (57, 32)  # width, height of what pictures are compared at
DETAIL_LEVELS = 6.0  # detail counts alike from here on: letters laid over a shot do not outweigh it
DARKER_LEVELS, DARKER_SHARE = 16.0, 0.12  # of the pixels of a lit frame may be darker than before


class View(NamedTuple):
    """What is kept of one look."""

    half: np.ndarray  # float32, flat, HALF_PX
    shape: np.ndarray  # the same with mean 0 and norm 1; zeros for a flat picture
    detail: np.ndarray  # what differs from its surroundings, limited; norm at most 1
    level: float
    deviation: float


def shrunk(luma_HW: np.ndarray) -> np.ndarray:
    """Return a grey uint8 frame as the detectors see it: its shorter side has SHOT_SIDE_PX at most."""
    return planes.fitted(luma_HW, SHOT_SIDE_PX)


def jump(before_HW: np.ndarray, after_HW: np.ndarray) -> float:
    """Return the mean absolute difference of two grey uint8 pictures in levels."""
    return cv2.norm(before_HW, after_HW, cv2.NORM_L1) / before_HW.size


def view(small_HW: np.ndarray) -> View:
    """Return what is kept of a `shrunk` frame."""
    half_HW = cv2.resize(small_HW, HALF_PX, interpolation=cv2.INTER_AREA).astype(np.float32)
    (level,), (deviation,) = (array[0] for array in cv2.meanStdDev(half_HW))
    half, norm = half_HW.ravel(), deviation * half_HW.size**0.5
    shape = (half - level) / norm if deviation >= 0.5 else np.zeros_like(half)
    detail = (half_HW - cv2.blur(half_HW, (7, 7))).ravel()
    np.clip(detail, -DETAIL_LEVELS, DETAIL_LEVELS, out=detail)
    # The 20 keeps the noise of flat pictures from looking like detail.
    detail /= float(np.sqrt(detail @ detail)) + 20.0
    return View(half=half, shape=shape, detail=detail, level=level, deviation=deviation)


def alike(one: View, other: View) -> float:
    """Return the correlation of two pictures, -1 to 1."""
    return float(one.shape @ other.shape)


def brighter(lit: View, base: View) -> bool:
    """Whether one picture may be the other, lit more brightly."""
    darker = np.count_nonzero(lit.half < base.half - DARKER_LEVELS)
    return lit.level > base.level + 8 and bool(darker < DARKER_SHARE * len(base.half))
