"""Shots from the frames that pass by, and clip windows inside them.

PySceneDetect's detectors are fed with our own frames, so finding cuts needs no second decode.
Windows do not overlap, stay `trim` frames away from detected cuts, and use a file's ends in full.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode

from ingest.clip import Contract, Prep

SHOT_LINES_PX = 64
LAG = 2  # frames that the adaptive detector looks ahead


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """Frames [start, end); whether a detected cut (and not an end of the file) bounds it."""

    start: int
    end: int
    cut_before: bool
    cut_after: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Frames [start, end) of one clip, inside shot number `shot_index`."""

    start: int
    end: int
    shot_index: int


class CutFinder:
    """Says of each frame, in order, whether a new shot begins with it.

    Cuts are isolated jumps of luma (adaptive), very large jumps of it (content), and the borders of
    black after something was shown, which is where fades end. A flag is certain LAG frames late.
    """

    def __init__(self, prep: Prep) -> None:
        # Luma only: hue means nothing in dark frames and would cut every fade from black. No
        # minimum length: a flash then ends a shot, and no clip holds a flash.
        self._isolated = AdaptiveDetector(
            adaptive_threshold=prep.cut_ratio,
            min_content_val=prep.cut_min_levels,
            min_scene_len=0,
            window_width=LAG,
            luma_only=True,
        )
        self._large = ContentDetector(
            threshold=prep.cut_sure_levels, min_scene_len=0, luma_only=True
        )
        self._black_levels = prep.black_levels
        self._fps = float(prep.contract.fps)
        self._index = 0
        self._was_black = True  # a fade in at the start of a file belongs to its first shot
        self._shown = False
        self._flags: deque[bool] = deque()

    def feed(self, frame_HWC: np.ndarray) -> list[bool]:
        """Look at the next uint8 RGB frame; return the flags that are now certain."""
        height, width = frame_HWC.shape[:2]
        lines = min(SHOT_LINES_PX, height)
        size = (max(1, round(width * lines / height)), lines)
        small_HWC = cv2.resize(frame_HWC, size, interpolation=cv2.INTER_AREA)
        small_HWC = cv2.cvtColor(small_HWC, cv2.COLOR_RGB2BGR)
        when = FrameTimecode(self._index, self._fps)
        large = bool(self._large.process_frame(when, small_HWC))
        self._flags.append(large or self._black_border(small_HWC))
        for cut in self._isolated.process_frame(when, small_HWC):
            self._flags[cut.frame_num - self._index - 1] = True  # counted from the newest
        self._index += 1
        return [self._flags.popleft()] if len(self._flags) > LAG else []

    def _black_border(self, small_HWC: np.ndarray) -> bool:
        # Nearly all of it, not its mean: a lit figure on a dark stage is no black frame.
        is_black = float(np.percentile(small_HWC.max(axis=2), 98)) < self._black_levels
        border = self._shown and is_black != self._was_black
        self._was_black = is_black
        self._shown = self._shown or not is_black
        return border

    def end(self) -> list[bool]:
        """Return the flags of the last frames."""
        flags = list(self._flags)
        self._flags.clear()
        return flags


class WindowFinder:
    """Finds windows while frames pass by: `feed` each frame's cut flag, then `end`.

    Frames before `keep_from` are never needed again, which bounds the memory of the caller.
    """

    def __init__(self, contract: Contract, trim: int) -> None:
        self._frames, self._trim = contract.frames, trim
        self._seen = 0
        self._shot_start = 0
        self.num_shots = 0
        self.longest_frames = 0
        self.keep_from = 0

    def feed(self, *, is_cut: bool) -> list[Window]:
        """Take the next frame; return the windows that are now certain."""
        if is_cut and self._seen:
            self._close_shot(self._seen - self._trim)
            self._shot_start = self._seen
            self.keep_from = self._seen + self._trim
            self.num_shots += 1
        self._seen += 1
        return self._windows(self._seen - self._trim)

    def end(self) -> list[Window]:
        """Return the last windows, for which the end of the file is no cut."""
        self._close_shot(self._seen)
        found = self._windows(self._seen)
        self.num_shots += self._seen > 0
        return found

    def _windows(self, usable_end: int) -> list[Window]:
        found = []
        while (end := self.keep_from + self._frames) <= usable_end:
            found.append(Window(start=self.keep_from, end=end, shot_index=self.num_shots))
            self.keep_from = end
        return found

    def _close_shot(self, usable_end: int) -> None:
        trim = self._trim if self.num_shots else 0
        self.longest_frames = max(self.longest_frames, usable_end - self._shot_start - trim)


def shots_of(cut_flags: Iterable[bool]) -> list[Shot]:
    """Return the shots of a sequence of per-frame cut flags."""
    flags = list(cut_flags)
    starts = [index for index, is_cut in enumerate(flags) if is_cut or index == 0]
    ends = [*starts[1:], len(flags)][: len(starts)]
    return [
        Shot(start=start, end=end, cut_before=start > 0, cut_after=end < len(flags))
        for start, end in zip(starts, ends, strict=True)
    ]


def windows(shots: Iterable[Shot], contract: Contract, trim: int) -> list[Window]:
    """Return all clip windows of known shots: the closed form that WindowFinder streams."""
    found = []
    for index, shot in enumerate(shots):
        first = shot.start + trim * shot.cut_before
        last = shot.end - trim * shot.cut_after - contract.frames
        found += [
            Window(start=start, end=start + contract.frames, shot_index=index)
            for start in range(first, last + 1, contract.frames)
        ]
    return found
