"""Numbers that describe a clip, from its frames alone; a score that cannot be had is null.

All are taken at a fixed short side, so that they mean the same for every source; motion is dense
optical flow (DIS) between frames half a second apart, over the whole clip. A still has no motion.
"""

from fractions import Fraction
from itertools import pairwise

import cv2
import numpy as np

SCORE_SIDE_PX = 128
FLOW_FPS = 2
DUPLICATE_FLOOR = 0.05  # grey levels: a repeated frame is below also after lossy coding
RANGE_PERCENTILES = (1, 99)


def score(grey_THW: np.ndarray, fps: Fraction | float) -> dict[str, float | None]:
    """Return every score of grey uint8 frames at `fps`; schema.SCORE_FIELDS has units and ranges.

    What takes two frames is null for a single one, whose `fps` means nothing.
    """
    small_THW = np.stack([_shrink(grey) for grey in grey_THW])
    low, high = np.percentile(small_THW, RANGE_PERCENTILES)
    return {
        "motion": motion(small_THW, fps),
        "duplicate_frame_share": duplicate_frame_share(grey_THW),
        "luma_mean": float(small_THW.mean()),
        "luma_range": float(high - low),
        "sharpness": sharpness(small_THW),
    }


def _shrink(grey_HW: np.ndarray) -> np.ndarray:
    height, width = grey_HW.shape
    scale = SCORE_SIDE_PX / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = cv2.INTER_AREA if scale <= 1 else cv2.INTER_LINEAR
    return cv2.resize(grey_HW, size, interpolation=how)


def motion(grey_THW: np.ndarray, fps: Fraction | float) -> float | None:
    """Mean length of optical flow in frame diagonals per second; null for a single frame."""
    step = max(1, int(fps // FLOW_FPS))
    picks = list(range(0, len(grey_THW), step))
    if picks[-1] != len(grey_THW) - 1:
        picks.append(len(grey_THW) - 1)
    if len(picks) < 2:
        return None
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    diagonal = float(np.hypot(*grey_THW.shape[1:]))
    total = 0.0
    for before, after in pairwise(picks):
        no_guess = np.zeros((*grey_THW.shape[1:], 2), np.float32)
        flow_HW2 = flow.calc(grey_THW[before], grey_THW[after], no_guess)
        total += float(np.hypot(flow_HW2[..., 0], flow_HW2[..., 1]).mean())
    seconds = float((picks[-1] - picks[0]) / fps)
    return total / diagonal / seconds


def duplicate_frame_share(grey_THW: np.ndarray) -> float | None:
    """Share of frames that repeat the one before; null for a single frame."""
    if len(grey_THW) < 2:
        return None
    repeats = sum(
        float(cv2.absdiff(before, after).mean()) < DUPLICATE_FLOOR
        for before, after in pairwise(grey_THW)
    )
    return repeats / (len(grey_THW) - 1)


def sharpness(grey_THW: np.ndarray) -> float:
    """Median over five frames of the variance of the Laplacian."""
    picks = np.linspace(0, len(grey_THW) - 1, 5).astype(int)
    return float(np.median([cv2.Laplacian(grey_THW[i], cv2.CV_64F).var() for i in picks]))
