"""Numbers that describe a clip, from its frames alone; a score that cannot be had is null.

All are taken at a fixed short side, so that they mean the same for every source (a picture that is
more than eight times as long as it is wide is squeezed to that: none may fill memory); motion is dense
optical flow (DIS) between frames half a second apart, over the whole clip. A still has no motion.
"""

from fractions import Fraction
from itertools import pairwise

import cv2
import numpy as np

from ingest import planes

SCORE_SIDE_PX = 128
MOST_SIDE_PX = 8 * SCORE_SIDE_PX
FLOW_FPS = 2
DUPLICATE_FLOOR = 0.05  # grey levels: a repeated frame is below also after lossy coding
RANGE_SHARES = (0.01, 0.99)


def score(
    frames: np.ndarray, fps: Fraction | float, small_THW: np.ndarray | None = None
) -> dict[str, float | None]:
    """Return every score of frames at `fps`; schema.SCORE_FIELDS has units and ranges.

    What takes two frames is null for a single one, whose `fps` means nothing. `small_THW` is what
    `shrunk` gives of them, for who has it already.
    """
    small_THW = shrunk(frames) if small_THW is None else small_THW
    counts = _histogram(small_THW)
    shares = np.cumsum(counts) / small_THW.size
    low, high = (int(np.searchsorted(shares, share)) for share in RANGE_SHARES)
    return {
        "motion": motion(small_THW, fps),
        "duplicate_frame_share": duplicate_frame_share(frames),
        "luma_mean": float(counts @ np.arange(256) / small_THW.size),
        "luma_range": float(high - low),
        "sharpness": sharpness(small_THW),
        "flicker": flicker(small_THW),
    }


def _histogram(grey_THW: np.ndarray) -> np.ndarray:
    # By picture: OpenCV counts in float32, which is exact up to 16 million. NumPy takes ten times as long.
    counts = np.zeros(256, np.int64)
    for grey_HW in grey_THW:
        counts += cv2.calcHist([grey_HW], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return counts


def shrunk(frames: np.ndarray) -> np.ndarray:
    """Return the grey pictures of frames, uint8 THW: SCORE_SIDE_PX by at most MOST_SIDE_PX."""
    return np.stack([_small(frame) for frame in frames])


def _small(frame: np.ndarray) -> np.ndarray:
    grey_HW = planes.luma(frame, side_px=SCORE_SIDE_PX)
    height, width = grey_HW.shape
    scale = max(1.0, SCORE_SIDE_PX / min(height, width))
    size = [min(MOST_SIDE_PX, round(side * scale)) for side in (width, height)]
    if size == [width, height]:
        return grey_HW
    return cv2.resize(
        grey_HW, size, interpolation=cv2.INTER_LINEAR if scale > 1 else cv2.INTER_AREA
    )


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


def duplicate_frame_share(frames: np.ndarray) -> float | None:
    """Share of frames that repeat the one before; null for a single frame."""
    if len(frames) < 2:
        return None
    return float((planes.differences(frames) < DUPLICATE_FLOOR).mean())


def flicker(grey_THW: np.ndarray) -> float | None:
    """Mean jump of a frame's brightness away from the middle of its neighbours'; null below three.

    A steady fade has none.
    """
    if len(grey_THW) < 3:
        return None
    levels_T = np.array([cv2.mean(grey_HW)[0] for grey_HW in grey_THW])
    return float(np.abs(levels_T[1:-1] - (levels_T[:-2] + levels_T[2:]) / 2).mean())


def sharpness(grey_THW: np.ndarray) -> float:
    """Median over five frames of the variance of the Laplacian."""
    picks = np.linspace(0, len(grey_THW) - 1, 5).astype(int)
    return float(np.median([cv2.Laplacian(grey_THW[i], cv2.CV_64F).var() for i in picks]))
