"""Letterbox and pillarbox bars: found in a few frames of a source, before anything is scaled.

A row or column is bar when it is black in every frame that shows anything. Bars are alike on both
sides and end sharply, beside a line that is lit nearly from end to end in some frame: a dark sky or a
black stage is none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLACK_LEVELS = 12  # of luma, full range; noise and ringing in bars stay below
LIT_LEVELS, LIT_SHARE = 20, 0.6  # how much of the line beside a bar is how bright, in some frame
EDGE_PX = 4  # how near to the bar that line is, 4 at a height of 480 and below
SHOWS_LEVELS = 48  # a frame whose brightest percentile is darker tells nothing
LEAST_SHARE, MOST_SHARE = 0.02, 0.6  # of a side that both bars together take
UNEVEN_SHARE = 0.02  # of a side that the two may differ by
LEAST_FRAMES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """The picture inside the bars, in px of the upright source; all numbers are even."""

    left: int
    top: int
    width: int
    height: int


def find_bars(luma_THW: Sequence[np.ndarray] | np.ndarray) -> Crop | None:
    """Return the picture inside the bars of frames (grey uint8, full range), None without bars."""
    telling = [frame for frame in luma_THW if np.percentile(frame, 99) >= SHOWS_LEVELS]
    if len(telling) < LEAST_FRAMES:
        return None
    height, width = telling[0].shape
    top, bottom = _pair(telling)
    inside = [frame[top : height - bottom] for frame in telling]
    left, right = _pair([frame.T for frame in inside])
    if not (top or left):
        return None
    return Crop(left=left, top=top, width=width - left - right, height=height - top - bottom)


def may_have_bars(luma_HW: np.ndarray) -> bool:
    """Whether a frame speaks for bars, or not against them; one that does not settles it."""
    height = luma_HW.shape[0]
    top, bottom = _pair([luma_HW])
    left, _right = _pair([luma_HW[top : height - bottom].T])
    return bool(top or left or np.percentile(luma_HW, 99) < SHOWS_LEVELS)


def _pair(frames: Sequence[np.ndarray]) -> tuple[int, int]:
    """Return the even lengths of the bars above and below in frames, (0, 0) where there are none."""
    size = frames[0].shape[0]
    # Not the very brightest pixel: a logo's edge or a broken block must not hide a bar.
    brightest = np.max([np.percentile(frame, 98, axis=1) for frame in frames], axis=0)
    lit = np.flatnonzero(brightest >= BLACK_LEVELS)
    if not len(lit):
        return 0, 0
    first, last = int(lit[0]), size - 1 - int(lit[-1])
    if min(first, last) == 0 or abs(first - last) > max(2, UNEVEN_SHARE * size):
        return 0, 0
    if not LEAST_SHARE <= (first + last) / size <= MOST_SHARE:
        return 0, 0
    reach = EDGE_PX * max(1, round(size / 480))
    shares = np.max([(frame >= LIT_LEVELS).mean(axis=1) for frame in frames], axis=0)
    edges = (shares[first : first + reach], shares[size - last - reach : size - last])
    if min(edge.max(initial=0) for edge in edges) < LIT_SHARE:
        return 0, 0
    # Outwards never: a bar's last, half-lit row goes with it.
    before, after = first + first % 2, last + last % 2
    return before, after + (size - before - after) % 2
