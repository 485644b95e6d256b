"""One decode per source: frames as the contract wants them, and what their clock said.

That is frames at the contract's rate, or each frame of the source as decoded, or a picture's one.
A thread drains ffmpeg's log all the while (a full pipe would stop the decoder) and keeps the time
base, the first pts, counts and the first complaint; the frames come through the other pipe.
"""

import os
import select
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from fractions import Fraction
from queue import Empty, SimpleQueue
from types import TracebackType

import numpy as np

from ingest import child, ffmpeg
from ingest.clip import Prep, payload_size
from ingest.decoder_log import DecoderLog
from ingest.sources import SourceError
from ingest.streams import Part, VideoInfo

BLOCK_FRAMES = 8
_ONE = [object()]
UNHELD = sys.getrefcount(_ONE[0])  # of what only a list and the question itself hold
LAST_WORDS_S = 20.0  # how long the log may trail the first frame, or the exit trail the last


class SeekMissed(SourceError):
    """A part's decoder began behind the part's start, or nowhere: read from further ahead."""

    def __init__(self, stage: str, error_class: str, message: str) -> None:
        super().__init__(stage, error_class, message)


class _Blocks:
    """Room for frames, a few at a time, used again once nobody holds any frame of a block.

    Fresh memory for each frame costs as much as filling it: the kernel must clear it first.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = (BLOCK_FRAMES, *shape)
        self._blocks: list[np.ndarray] = []
        self._block, self._used = np.empty((0, *shape), np.uint8), 0

    def next(self) -> np.ndarray:
        """Return room for one frame, which is the caller's while it holds it."""
        if self._used == len(self._block):
            self._block, self._used = self._free(), 0
        self._used += 1
        return self._block[self._used - 1]

    def _free(self) -> np.ndarray:
        self._block = np.empty((0, *self._shape[1:]), np.uint8)
        for index in range(len(self._blocks)):
            if sys.getrefcount(self._blocks[index]) == UNHELD:
                return self._blocks[index]
        self._blocks.append(np.empty(self._shape, np.uint8))
        return self._blocks[-1]


class Reading:
    """A source being decoded; iterate once for frames (see planes) as the contract wants them.

    Use as a context manager: leaving it ends the child. Iterating raises SourceError. A native
    frame whose time is not after all before it was never due on screen, and is left out.
    """

    def __init__(self, uri: str, info: VideoInfo, prep: Prep, part: Part | None = None) -> None:
        self.info, self._prep, self._part = info, prep, part
        contract = prep.contract
        self.width, self.height = payload_size(
            *info.display_size, prep.payload_short_side_px, even=not contract.is_still
        )
        planar = (self.height * 3 // 2, self.width)
        self._shape = (self.height, self.width, 3) if contract.is_still else planar
        self._ticks, self._last_length, self._num_late = array("q"), 0, 0
        self._given = False
        command = ffmpeg.decode_command(uri, info, prep, (self.width, self.height), part)
        self._child = child.start(command, prep)
        if self._child.stdout is None or self._child.stderr is None:  # never: both are pipes
            raise RuntimeError("ffmpeg was started without pipes")
        self._out = self._child.stdout
        self._log = DecoderLog(self._child.stderr, self._child, info, prep, part)
        self._log.start()
        self._deadline = time.monotonic() + prep.decode_timeout_s

    def __enter__(self) -> "Reading":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._child.kill()
        self._child.wait()
        self._log.join()
        self._out.close()
        if self._child.stderr is not None:
            self._child.stderr.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        fd = self._out.fileno()
        os.set_blocking(fd, False)
        child.widen(fd)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        blocks = _Blocks(self._shape)
        while True:
            frame = blocks.next()
            if not self._fill(frame.data.cast("B"), fd, poll):
                break
            self._given = True
            if self._log.times is None or self._due(self._log.times):
                yield frame
        self._finish()

    def _due(self, times: "SimpleQueue[tuple[int, int] | None]") -> bool:
        try:
            told = times.get(timeout=LAST_WORDS_S)
        except Empty:
            told = None
        if told is None:
            raise SourceError("decode", "NoClock", "ffmpeg told no time for a frame that it gave")
        if self._ticks and told[0] <= self._ticks[-1]:
            self._num_late += 1
            return False
        self._ticks.append(told[0])
        self._last_length = told[1]
        return True

    def _fill(self, place: memoryview, fd: int, poll: select.poll) -> bool:
        filled = 0
        while filled < len(place):
            self._wait(poll)
            count = os.readv(fd, [place[filled:]])
            if not count:  # the end; a partial frame can only follow a crash, which _finish tells
                return False
            filled += count
        return True

    def _wait(self, poll: select.poll) -> None:
        stall_s = self._prep.stall_timeout_s
        while True:
            left_s, seen = self._deadline - time.monotonic(), self._log.num_lines
            if left_s > 0 and poll.poll(1000 * min(stall_s, left_s)):
                return
            # The way to a part's first frame may be long: as long as the log goes on.
            waits = self._part is not None and not self._given
            if left_s <= stall_s or not waits or self._log.num_lines == seen:
                break
        if left_s > stall_s:
            raise SourceError("decode", "Stalled", f"no frame for stall_timeout_s={stall_s:g}")
        limit_s = self._prep.decode_timeout_s
        raise SourceError("decode", "Timeout", f"not decoded within decode_timeout_s={limit_s:g}")

    def _finish(self) -> None:
        try:
            code = self._child.wait(LAST_WORDS_S)
        except subprocess.TimeoutExpired as slow:
            raise SourceError(
                "decode", "Stalled", "ffmpeg did not end after its last frame"
            ) from slow
        self._log.join()
        if not self._given:
            self._check_begun()
        if self._log.verdict:
            raise SourceError("decode", "TimestampGap", self._log.verdict)
        if code:
            why = self._log.first_error or "no reason given"
            raise SourceError("decode", "FfmpegFailed", f"ffmpeg ended with {code}: {why}"[:300])
        if self.info.picture and self.num_errors:
            raise SourceError("decode", "BrokenPicture", self._log.first_error[:300])

    def wait_for_clock(self) -> None:
        """Wait until the log has told time base and first pts; call after the first frame came."""
        self._log.started.wait(LAST_WORDS_S)
        if not self._log.timebase:
            raise SourceError("decode", "NoClock", "ffmpeg told no time base for this stream")
        self._check_begun()

    def _check_begun(self) -> None:
        part = self._part
        if not part or not part.seek_s:
            return
        if not self._log.num_frames or self._log.first_pts >= part.tick(part.start_s):
            raise SeekMissed("decode", "SeekMissed", f"no frame before {part.start_s:g} s")

    @property
    def fps(self) -> Fraction:
        """Frames per second of this iteration, on average."""
        pace = self.info.pace
        return self._prep.contract.stream_fps(pace.fps if pace else Fraction(1))

    @property
    def timebase(self) -> Fraction:
        """Seconds per source tick; a picture has one tick of a second."""
        return Fraction(1) if self.info.picture else self._log.timebase

    @property
    def first_pts(self) -> int:
        """Tick of the source's first frame, on its own clock."""
        return self._part.first_pts if self._part else self._log.first_pts

    @property
    def first_slot(self) -> int:
        """Which output frame of the whole source this reading begins with; 0 where none are counted."""
        if self._part is None or self._prep.contract.native:
            return 0
        return round(self._part.start_s * self.fps)

    @property
    def hdr(self) -> bool:
        """Whether the first frame carries a PQ or HLG transfer."""
        return self.info.hdr

    @property
    def frames_decoded(self) -> int:
        """Source frames seen so far; final once iteration has ended."""
        return self._log.num_frames

    @property
    def num_errors(self) -> int:
        """Complaints of the decoder so far."""
        return self._log.complaints().total()

    @property
    def damage(self) -> str:
        """What was lost, in one line; "" for a clean source."""
        words, kinds = [], self._log.complaints()
        if kinds:
            # Not the first: the file's reader and its decoder complain at the same time.
            often = min(kinds, key=lambda kind: (-kinds[kind], kind))
            words.append(f"{kinds.total()} decode errors, most often: {often}")
        if self._log.num_backward:
            words.append(f"timestamps run backwards {self._log.num_backward} times")
        if self._num_late:
            words.append(f"{self._num_late} frames left out that came after their time")
        return "; ".join(words)[:300]

    @property
    def remarks(self) -> str:
        """The damage, and that payloads play at an average rate where the source has no other."""
        pace = self.info.pace
        if pace is None or pace.steady:
            return self.damage
        average = f"variable frame rate, payloads play at its average {float(pace.fps):.6g} fps"
        return "; ".join(filter(None, (self.damage, average)))

    def tick(self, index: int) -> int:
        """Source tick from which output frame `index` is on screen; one more than all is the end."""
        if self.info.picture:
            return index
        if not self._prep.contract.native:
            at_s = Fraction(self.first_slot + index) / self.fps
            return self.first_pts + int(at_s // self.timebase)
        if index < len(self._ticks):
            return self._ticks[index]
        # A container that does not tell the last frame's length leaves that of a usual one.
        usual = max(1, round(1 / (self.fps * self.timebase)))
        return self._ticks[-1] + (self._last_length or usual)

    def at_s(self, index: int) -> Fraction:
        """Seconds from the first frame to output frame `index`; see `tick`. 0 in a picture."""
        if self.info.picture:
            return Fraction(0)
        if not self._prep.contract.native:
            return Fraction(self.first_slot + index) / self.fps
        return (self.tick(index) - self.first_pts) * self.timebase
