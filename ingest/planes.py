"""Frames on their way through curation, and what scores, cuts and checks see of them.

A frame of a video stays as videos are stored: planar YUV 4:2:0, BT.709, TV range, one uint8 array of
3H/2 rows and W columns (Y, then U, then V). No step from source to payload then leaves that form,
and the Y plane is what most numbers are taken from. A still is RGB, uint8 HWC.
"""

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np

BLACK, WHITE = 16, 235  # of Y in TV range
_TO_FULL = np.clip((np.arange(256) - BLACK) * 255.0 / (WHITE - BLACK) + 0.5, 0, 255).astype(
    np.uint8
)


def is_planar(frame: np.ndarray) -> bool:
    """Whether a frame is planar YUV and not RGB."""
    return frame.ndim == 2


def size(frame: np.ndarray) -> tuple[int, int]:
    """Return (width, height) of a frame in px; raises ValueError for what is no frame."""
    if frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3:
        return frame.shape[1], frame.shape[0]
    if (
        frame.dtype == np.uint8
        and frame.ndim == 2
        and not (frame.shape[0] % 3 or frame.shape[1] % 2)
    ):
        width, height = frame.shape[1], frame.shape[0] * 2 // 3
        if not height % 2:
            return width, height
    raise ValueError(
        f"a frame is {frame.dtype} {frame.shape}; must be uint8 HWC with 3 channels, "
        "or planar YUV 4:2:0 with even sides"
    )


def luma(frame: np.ndarray, *, lines: int = 0, every: int = 1) -> np.ndarray:
    """Return the grey picture of a frame as uint8 HW, full range (0 to 255).

    With `lines`, it is shrunk by area averaging until its shorter side has that many px, and never
    enlarged. With `every`, only the first of so many pixels and of so many rows is seen.
    """
    planar = is_planar(frame)
    seen = np.ascontiguousarray(frame[: size(frame)[1] : every, ::every])
    grey = seen if planar else cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY)
    if 0 < lines < min(grey.shape):
        height, width = grey.shape
        scale = lines / min(height, width)
        small = max(1, round(width * scale)), max(1, round(height * scale))
        grey = cv2.resize(grey, small, interpolation=cv2.INTER_AREA)
    return cv2.LUT(grey, _TO_FULL) if planar else grey  # last: small pictures take no time


def differences(frames: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Return the mean absolute difference of each frame from the one before, in grey levels."""
    if not is_planar(frames[0]):
        return np.array([apart(*pair) for pair in pairwise([luma(frame) for frame in frames])])
    height = size(frames[0])[1]
    raw = [apart(a[:height], b[:height]) for a, b in pairwise(frames)]
    return np.array(raw) * (255.0 / (WHITE - BLACK))


def apart(before: np.ndarray, after: np.ndarray) -> float:
    """Return the mean absolute difference of two arrays of one shape, in their own levels."""
    return cv2.norm(before, after, cv2.NORM_L1) / before.size
