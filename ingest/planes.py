"""Frames on their way through curation, and what scores, cuts and checks see of them.

A frame of a video stays as videos are stored: planar YUV 4:2:0, BT.709, TV range, one uint8 array of
3H/2 rows and W columns (Y, then U, then V). No step from source to payload then leaves that form,
and the Y plane is what most numbers are taken from. A still is RGB, uint8 HWC.
"""

from collections.abc import Sequence

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


def luma(frame: np.ndarray) -> np.ndarray:
    """Return the grey picture of a frame as uint8 HW, full range (0 to 255)."""
    if is_planar(frame):
        return cv2.LUT(frame[: size(frame)[1]], _TO_FULL)
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def lumas(frames: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Return the grey pictures of frames as uint8 THW, full range."""
    return np.stack([luma(frame) for frame in frames])
