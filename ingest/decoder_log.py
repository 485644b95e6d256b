"""What the decoder says while it works: its clock, counts, complaints."""

import re
import threading
from collections import Counter
from fractions import Fraction
from math import inf, isfinite
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING

from ingest.clip import Prep
from ingest.streams import CLOCK, COMPLAINT, FRAME, MAPPING, SHOWN, Part, VideoInfo, plain

if TYPE_CHECKING:
    import subprocess

_SHOWN = re.compile(SHOWN.encode())
_CLOCK = re.compile(CLOCK.encode())
_FRAME = re.compile(FRAME.encode())
_FRAME_END = re.compile(rb" type:\S ")  # of a frame's line, as the next is not of its colour
_COLOUR = re.compile(rb" ?color_\w+:\S+")
_COLOURS = re.compile(rb"color_range:\S+ color_space:\S+ color_primaries:\S+ color_trc:\S+")
_ERROR = re.compile(COMPLAINT.encode())
_DAMAGED = re.compile(rb"corrupt decoded frame|concealing \d+ ")
_BROKEN_PICTURE = re.compile(rb"^\[[^\]]+ @ 0x[^\]]+\] .*(?:EOI missing|CRC mismatch)")
_MARKS = re.compile(rb"^(?:\[[^\]]*\] )*")
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+")
INPUT = b"[info] Input #0, "
MOST_KINDS = 1000  # of complaints, which a file may make up


class DecoderLog(threading.Thread):
    """Reads ffmpeg's log to its end and keeps the few facts that matter.

    Two threads of ffmpeg write it. What the decoder says in the middle of a frame's line is put
    there without saying who speaks or how bad it is: such words count as complaints where there are
    others, unless the same was said as no complaint.
    """

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
        self.num_lines = self.num_frames = self.num_backward = 0
        self.first_error = self.verdict = ""
        self._next_frame = 0
        self.started = threading.Event()
        self._kinds, self._unmarked = Counter[str](), Counter[str]()
        self._harmless = set[str]()
        self._colours: list[bytes] = []
        self._torn: list[bytes] = []  # lines of colours, until one is whole

    def run(self) -> None:
        """Read all of it."""
        opening = working = False  # between the two, a file's own words
        for line in self._stream:
            self.num_lines += 1
            if not working:
                working = line.startswith(MAPPING)
                opening = opening or line.startswith(INPUT)
                if not opening:
                    self._other(line)
            elif found := _SHOWN.match(line):
                self._shown(line[found.end() :].rstrip(b"\n"))
            else:
                self._other(line)
        for text in self._torn:
            self._between(self._without_colours(text))
        self.started.set()
        if self.times is not None:
            self.times.put(None)

    def _shown(self, text: bytes) -> None:
        if found := _FRAME.match(text):
            end = _FRAME_END.search(text)
            self._between(text[end.end() :] if end else b"")
            self._frame(*found.groups())
        elif found := _CLOCK.match(text):
            self.timebase = self.timebase or Fraction(int(found[1]), int(found[2]) or 1)
        elif _COLOURS.fullmatch(text):
            self._colours = _COLOUR.findall(text)
        elif self._colours:
            self._between(self._without_colours(text))
        elif len(self._torn) < MOST_KINDS and not text.startswith(b"config "):
            self._torn.append(text)

    def _frame(self, number: bytes, tick: bytes, length: bytes | None) -> None:
        if int(number) != self._next_frame:  # one was lost, and with it a time
            self._untimed()
        self._next_frame = int(number) + 1
        if tick == b"NOPTS":
            self._untimed()
            return
        pts = int(tick)
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
            self.times.put((pts, int(length or 0)))

    def _untimed(self) -> None:
        if self.times is not None:
            self.times.put(None)

    def _other(self, line: bytes) -> None:
        text = _MARKS.sub(b"", line)
        kind = _kind(text)
        if any(complaint.search(line) for complaint in self._damaged):
            _count(self._kinds, kind)
            self.first_error = self.first_error or plain(line.decode("utf-8", "replace"))
        elif len(self._harmless) < MOST_KINDS:
            self._harmless.add(kind)

    def _between(self, text: bytes) -> None:
        if _DAMAGED.search(text):
            _count(self._kinds, _kind(text))
        elif text.strip():
            _count(self._unmarked, _kind(text))

    def _without_colours(self, text: bytes) -> bytes:
        for told in self._colours:
            text = text.replace(told, b"", 1)
        return text

    def complaints(self) -> Counter[str]:
        """Return how often each kind of complaint came; numbers are left out of their words."""
        if not self._kinds:
            return Counter()
        odd = {kind: n for kind, n in self._unmarked.items() if kind not in self._harmless}
        return self._kinds + Counter(odd)


def _kind(text: bytes) -> str:
    return _NUMBER.sub("#", text.decode("utf-8", "replace").strip())


def _count(kinds: Counter[str], kind: str) -> None:
    kinds[kind if kind in kinds or len(kinds) < MOST_KINDS else "others"] += 1
