"""What the decoder says while it works: its clock, counts, complaints."""

import re
import threading
from fractions import Fraction
from math import inf, isfinite
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING

from ingest.clip import Prep
from ingest.streams import COMPLAINT, SHOWN, Part, VideoInfo, plain

if TYPE_CHECKING:
    import subprocess

_FILTER = SHOWN.encode()  # what a file says of itself may read like any of this, but is indented
_TIMEBASE = re.compile(_FILTER + rb"config in time_base: (\d+)/(\d+)")
_FRAME = re.compile(_FILTER + rb"n: *\d+ pts: *(-?\d+) (?:.*? duration: *(\d+) )?")
_NO_TIME = re.compile(_FILTER + rb"n: *\d+ pts: *NOPTS")
_TRANSFER = re.compile(_FILTER + rb".*color_trc:(\S+)")
_ERROR = re.compile(COMPLAINT.encode())
_DAMAGED = re.compile(rb"^\[[^\]]+ @ 0x[^\]]+\] .*(?:corrupt decoded frame|concealing \d+ )")
_BROKEN_PICTURE = re.compile(rb"^\[[^\]]+ @ 0x[^\]]+\] .*(?:EOI missing|CRC mismatch)")


class DecoderLog(threading.Thread):
    """Reads ffmpeg's log to its end and keeps the few facts that matter."""

    def __init__(
        self,
        stream: IO[bytes],
        child: "subprocess.Popen[bytes]",
        info: VideoInfo,
        prep: Prep,
        part: Part | None,
    ) -> None:
        super().__init__(name="ffmpeg-log", daemon=True)
        self._stream, self._child, self._max_gap_s = stream, child, prep.max_gap_s
        self._damaged = (_ERROR, _DAMAGED, *((_BROKEN_PICTURE,) if info.picture else ()))
        self._begin, self._end = -inf, inf
        if part is not None:
            self._begin = part.tick(part.start_s)
            self._end = part.tick(part.end_s) if isfinite(part.end_s) else inf
        # Each frame's first tick and length in ticks, for the reader of native frames; None ends.
        self.times: SimpleQueue[tuple[int, int] | None] | None = None
        if prep.contract.native and not info.picture:
            self.times = SimpleQueue()
        self.timebase = Fraction(0)
        self.first_pts = self.last_pts = 0
        self.num_frames = self.num_errors = self.num_backward = 0
        self.first_error = self.transfer = self.verdict = ""
        self.started = threading.Event()

    def run(self) -> None:
        """Read all of it."""
        for line in self._stream:
            found = _FRAME.search(line)
            if found:
                self._frame(int(found[1]), int(found[2] or 0))
            else:
                self._other(line)
        self.started.set()
        if self.times is not None:
            self.times.put(None)

    def _frame(self, pts: int, length: int) -> None:
        if not self.num_frames:
            self.first_pts = pts
        else:
            step_s = float((pts - self.last_pts) * self.timebase)
            self.num_backward += step_s < 0
            if step_s > self._max_gap_s and not self.verdict:
                self.verdict = f"timestamps jump by {step_s:.0f} s at frame {self.num_frames}"
                self._child.kill()
        self.last_pts = pts
        self.num_frames += 1
        self.started.set()
        if self.times is not None and self._begin <= pts < self._end:
            self.times.put((pts, length))

    def _other(self, line: bytes) -> None:
        if not self.timebase and (found := _TIMEBASE.search(line)):
            self.timebase = Fraction(int(found[1]), int(found[2]) or 1)
        elif not self.transfer and (found := _TRANSFER.search(line)):
            self.transfer = found[1].decode()
        elif self.times is not None and _NO_TIME.search(line):
            self.times.put(None)
        elif any(complaint.search(line) for complaint in self._damaged):
            self.num_errors += 1
            self.first_error = self.first_error or plain(line.decode("utf-8", "replace"))
