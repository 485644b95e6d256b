"""Shots from the frames that pass by, and clip windows inside them.

PySceneDetect's detectors are fed with our own frames, so finding cuts needs no second decode.
Windows do not overlap, stay `trim` frames away from detected cuts, and use a file's ends in full.
What a contract skips between the frames of a clip is looked at all the same.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode

from ingest.clip import LOOK_FPS, Contract, Prep

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
    """Frames [start, end) that one clip reaches over, all inside shot number `shot_index`."""

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
        self._fps = float(prep.contract.stream_fps(Fraction(LOOK_FPS)))
        self._index = 0
        self._was_black = True  # a fade in at the start of a file belongs to its first shot
        self._shown = False
        self._flags: deque[bool] = deque()

    def feed(self, luma_HW: np.ndarray, _at_s: Fraction | None = None) -> list[bool]:
        """Look at the next frame, grey uint8; return the flags that are now certain.

        Frames come at one rate, so their times (which NativeCutFinder wants) tell nothing.
        """
        return self.look(shrunk(luma_HW))

    def look(self, small_HWC: np.ndarray) -> list[bool]:
        """Do what `feed` does for a frame that is `shrunk` already."""
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


class NativeCutFinder:
    """A CutFinder for frames of any rate, steady or not: says of each whether a new shot begins.

    How much two frames differ depends on the time between them, so the detectors are shown LOOK_FPS
    frames a second at most: the first of each sixteenth. A cut found there is placed at the largest
    jump since the look before. Between those, a jump beyond all doubt is a cut of its own.
    """

    def __init__(self, prep: Prep) -> None:
        self._looks = CutFinder(prep)
        self._sure_levels = prep.cut_sure_levels
        self._before_HW: np.ndarray | None = None
        self._last_look = -1
        self._jumps: list[float] = []  # of the frames since the last look
        self._gaps: deque[list[float]] = deque()  # the same for looks that are not certain yet

    def feed(self, luma_HW: np.ndarray, at_s: Fraction) -> list[bool]:
        """Take the next frame, grey uint8, on screen from `at_s`; return the flags now certain."""
        small_HWC = shrunk(luma_HW)
        bright_HW = small_HWC.max(axis=2)  # what the detectors call luma
        before_HW = bright_HW if self._before_HW is None else self._before_HW
        self._jumps.append(float(cv2.absdiff(bright_HW, before_HW).mean()))
        self._before_HW = bright_HW
        look = int(at_s * LOOK_FPS // 1)
        if look <= self._last_look:
            return []
        self._last_look = look
        self._gaps.append(self._jumps)
        self._jumps = []
        return [flag for is_cut in self._looks.look(small_HWC) for flag in self._placed(is_cut)]

    def _placed(self, is_cut: bool) -> list[bool]:  # noqa: FBT001 - a flag is what it is about
        jumps = self._gaps.popleft()
        flags = self._sure(jumps)
        if is_cut:
            flags[int(np.argmax(jumps))] = True
        return flags

    def _sure(self, jumps: list[float]) -> list[bool]:
        return [jump >= self._sure_levels for jump in jumps]

    def end(self) -> list[bool]:
        """Return the flags of the last frames."""
        flags = [flag for is_cut in self._looks.end() for flag in self._placed(is_cut)]
        flags += self._sure(self._jumps)
        self._jumps = []
        return flags


def shrunk(luma_HW: np.ndarray) -> np.ndarray:
    """Return a grey frame as the detectors see it: BGR, SHOT_LINES_PX lines at most."""
    height, width = luma_HW.shape
    lines = min(SHOT_LINES_PX, height)
    size = (max(1, round(width * lines / height)), lines)
    small_HW = cv2.resize(luma_HW, size, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small_HW, cv2.COLOR_GRAY2BGR)


def trim_frames(prep: Prep, stream_fps: Fraction) -> int:
    """Return `cut_trim_frames` in frames of the stream, which has `stream_fps` of them a second."""
    if not (prep.contract.native or prep.contract.is_still):
        return prep.cut_trim_frames
    return int(-(-prep.cut_trim_frames * stream_fps // LOOK_FPS))


class WindowFinder:
    """Finds windows while frames pass by: `feed` each frame's cut flag, then `end`.

    Within a shot every `step`-th frame counts, from its first usable one; what nobody `needs`
    can be forgotten, which bounds the memory of the caller by one clip.
    """

    def __init__(self, contract: Contract, trim: int) -> None:
        self._contract, self._trim = contract, trim
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

    @property
    def undecided_from(self) -> int:
        """The first frame with which the next shot could still begin."""
        return self._seen + self._trim

    def needs(self, index: int) -> bool:
        """Whether a window that is still to come may take this frame; a no is for good."""
        if index >= self.undecided_from:
            return True
        return index >= self.keep_from and not (index - self.keep_from) % self._contract.step

    def _windows(self, usable_end: int) -> list[Window]:
        found = []
        while (end := self.keep_from + self._contract.span) <= usable_end:
            found.append(Window(start=self.keep_from, end=end, shot_index=self.num_shots))
            self.keep_from += self._contract.frames * self._contract.step
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
        last = shot.end - trim * shot.cut_after - contract.span
        found += [
            Window(start=start, end=start + contract.span, shot_index=index)
            for start in range(first, last + 1, contract.frames * contract.step)
        ]
    return found
