"""Clip windows inside shots, found while frames pass by.

Windows do not overlap, stay `trim` frames away from borders, and use a file's ends in full.
What a contract skips between the frames of a clip is looked at all the same. Flags in a row are one
border, a dissolve: what lies between its first and its last frame belongs to no shot.
"""

from dataclasses import dataclass
from fractions import Fraction

from ingest.clip import LOOK_FPS, Contract, Prep


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Frames [start, end) that one clip reaches over, all inside shot number `shot_index`."""

    start: int
    end: int
    shot_index: int


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
        self._in_border = False
        self.num_shots = 0
        self.longest_frames = 0
        self.keep_from = 0

    def feed(self, *, is_cut: bool) -> list[Window]:
        """Take the next frame; return the windows that are now certain."""
        if is_cut and self._seen:
            if not self._in_border:
                self._close_shot(self._seen - self._trim)
                self.num_shots += 1
            self._shot_start = self._seen
            self.keep_from = self._seen + self._trim
        self._in_border = is_cut and self._seen > 0
        self._seen += 1
        return [] if self._in_border else self._windows(self._seen - self._trim)

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
