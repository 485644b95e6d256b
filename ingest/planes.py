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


def luma(frame: np.ndarray, *, side_px: int = 0, every: int = 1) -> np.ndarray:
    """Return the grey picture of a frame as uint8 HW, full range (0 to 255).

    With `side_px` it is `fitted`. With `every`, only the first of so many pixels and of so many rows is seen.
    """
    planar = is_planar(frame)
    seen = np.ascontiguousarray(frame[: size(frame)[1] : every, ::every])
    grey = seen if planar else cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY)
    if side_px:
        grey = fitted(grey, side_px)
    return cv2.LUT(grey, _TO_FULL) if planar else grey  # last: small pictures take no time


def fitted(grey_HW: np.ndarray, side_px: int) -> np.ndarray:
    """Return a picture shrunk by area until its shorter side has `side_px`; it never grows."""
    height, width = grey_HW.shape
    if min(height, width) <= side_px:
        return grey_HW
    scale = side_px / min(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(grey_HW, size, interpolation=cv2.INTER_AREA)


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
