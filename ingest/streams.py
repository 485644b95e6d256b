"""What ffmpeg says of a file, read from its log: which stream to take, its size, colour and pace."""

import re
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from ingest.bars import Crop
from ingest.rates import Pace
from ingest.sources import SourceError

HDR_TRANSFERS = ("smpte2084", "arib-std-b67")
MATRICES = ("bt709", "bt470bg", "smpte170m", "fcc", "smpte240m", "bt2020nc", "bt2020c", "gbr")

# Titles and tags of a file are in the log too, and may read like any of these; they are indented.
SHOWN = r"^\[Parsed_showinfo_\d+ @ 0x[0-9a-f]+\] \[info\] "
COMPLAINT = r"^(?:\[[^\]]*\] )*\[(?:error|fatal)\]"
_STREAM = re.compile(
    r"^\[info\]   Stream #0:(\d+).*?: Video: \w+.*?, (\w+)(?:\(([^)]*)\))?,? .*?(\d{1,6})x(\d{1,6})",
    re.MULTILINE,
)
_MAPPED = re.compile(r"^\[info\]   Stream #0:(\d+) -> #0:(\d+)", re.MULTILINE)
_OUTPUT = re.compile(r"^\[info\] Output #0", re.MULTILINE)
_SIZE = re.compile(r"^#dimensions (\d+): (\d+)x(\d+)", re.MULTILINE)
_ASPECT = re.compile(r"^#sar (\d+): (\d+)/(\d+)", re.MULTILINE)
_FIELDS = re.compile(SHOWN + r"n: .* i:[TB] ", re.MULTILINE)
_RATE = re.compile(SHOWN + r"config in time_base: \d+/\d+, frame_rate: (\d+)/(\d+)")
_CLOCK = re.compile(SHOWN + r"config in time_base: (\d+)/(\d+)", re.MULTILINE)
_SHOWN = re.compile(SHOWN + r"n: *\d+ pts: *(-?\d+) ", re.MULTILINE)
_COMPLAINT = re.compile(COMPLAINT)
_TICKS = re.compile(r"^#tb \d+: (\d+)/(\d+)")
_NO_TICK = -(1 << 63)
_ALPHA = re.compile(r"rgba|bgra|argb|abgr|ya\d|yuva|gbrap|pal8")
_DURATION = re.compile(r"^\[info\]   Duration: (\d+):(\d\d):(\d\d\.\d+), start:", re.MULTILINE)
_ADDRESS = re.compile(r" @ 0x[0-9a-f]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInfo:
    """The chosen video stream: upright size as stored (px), pixel aspect, colour, fields, pace.

    `picture` is the demuxer of a still picture ("" for a video); `pace` is None where nobody asked;
    `duration_s` is what the container declares, 0 where it declares nothing; `crop` is the picture
    inside its bars, None without bars; `frames_fps` the rate of a folder of frames.
    """

    stream_index: int
    width: int
    height: int
    pixel_aspect: Fraction
    matrix: str
    hdr: bool
    interlaced: bool
    alpha: bool = False
    picture: str = ""
    pace: Pace | None = None
    duration_s: float = 0.0
    crop: Crop | None = None
    frames_fps: Fraction | None = None

    @property
    def display_size(self) -> tuple[int, int]:
        """(width, height) in px with square pixels; the longer axis shrinks, none ever grows."""
        crop = self.crop
        width, height = (crop.width, crop.height) if crop else (self.width, self.height)
        if self.pixel_aspect >= 1:
            return width, max(1, round(height / self.pixel_aspect))
        return max(1, round(width * self.pixel_aspect)), height


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Which part of a source is decoded: seconds from its first frame, whose tick is `first_pts`.

    `seek` is how far into the file reading may begin, 0 for its start; the part's own start is
    found by the times of frames, wherever that is. The last part of a source ends at infinity.
    """

    start_s: float
    end_s: float
    first_pts: int
    timebase: Fraction
    seek_s: float

    def tick(self, at_s: float) -> int:
        """Return the first tick that is not before a moment of the part's clock."""
        return self.first_pts + -(-Fraction(at_s) // self.timebase)


def plain(line: str) -> str:
    """Return a line of ffmpeg's log without addresses, so that equal faults read equal."""
    return _ADDRESS.sub("", line).strip()


def reason(log: str) -> str:
    """Return the first complaints of ffmpeg's log in one line."""
    return plain(" | ".join(_complaints(log)[:2]))[:300] or "ffmpeg gave no reason"


def _complaints(log: str) -> list[str]:
    return [line for line in log.split("\n") if _COMPLAINT.match(line)]


def chosen(header: str, log: str, *, picture: str = "") -> VideoInfo:
    """Return the largest real video stream that a framecrc header and ffmpeg's log tell of.

    Raises SourceError when there is none.
    """
    mapped = {int(out): int(source) for source, out in _MAPPED.findall(log)}
    if not mapped:
        said = " ".join(_complaints(log))
        no_video = "matches no streams" in said or "does not contain any stream" in said
        raise SourceError(
            "probe",
            "NoVideo" if no_video else "NotAVideo",
            "no video stream" if no_video else reason(log),
        )
    sizes = {int(out): (int(w), int(h)) for out, w, h in _SIZE.findall(header)}
    # The header names every stream's size, though a frame may come from one of them only: going by
    # frames would choose by who was faster.
    if not sizes:
        raise SourceError("probe", "Undecodable", reason(log))
    best = max(sizes, key=lambda out: (sizes[out][0] * sizes[out][1], -out))
    aspects = {int(out): (int(a), int(b)) for out, a, b in _ASPECT.findall(header)}
    above, below = aspects.get(best, (1, 1))
    width, height = sizes[best]
    pixels, words = _colour(log, mapped[best])
    matrix = next((word for word in words if word in MATRICES), "")
    return VideoInfo(
        stream_index=mapped[best],
        width=width,
        height=height,
        pixel_aspect=Fraction(above, below) if above and below else Fraction(1),
        # An untagged video follows the convention of its size, as players have it.
        matrix=matrix or ("bt709" if min(width, height) > 576 and not picture else "smpte170m"),
        hdr=any(word in HDR_TRANSFERS for word in words),
        interlaced=any(word.endswith("first") for word in words) or bool(_FIELDS.search(log)),
        alpha=bool(_ALPHA.match(pixels)),
        picture=picture,
        duration_s=0.0 if picture else _duration_s(log),
    )


def _duration_s(log: str) -> float:
    found = _DURATION.search(log)
    return 3600.0 * int(found[1]) + 60.0 * int(found[2]) + float(found[3]) if found else 0.0


def _colour(log: str, stream_index: int) -> tuple[str, list[str]]:
    for index, pixels, colour, _width, _height in _STREAM.findall(
        _OUTPUT.split(log, maxsplit=1)[0]
    ):
        if int(index) == stream_index:
            return pixels, re.split(r", |/| ", colour)
    return "", []


def packet_times(lines: Iterable[str]) -> "tuple[array[int], Fraction]":
    """Return the ticks of a framecrc file's packets and the seconds of one tick (0: untold).

    They are the times of showing; those of decoding, which come as fast, where some have no other.
    """
    timebase, decoded, shown = Fraction(0), array("q"), array("q")
    for line in lines:
        if found := _TICKS.match(line):
            timebase = Fraction(int(found[1]), int(found[2]))
        elif not line.startswith("#") and line.count(",") >= 5:
            fields = line.split(",")
            decoded.append(int(fields[1]))
            shown.append(int(fields[2]))
    if _NO_TICK in shown:
        shown = array("q", (tick for tick in decoded if tick != _NO_TICK))
    return shown, timebase


def first_shown(log: str) -> tuple[int, Fraction] | None:
    """Return tick and seconds per tick of the first frame that a decoder's log tells of."""
    clock, frame = _CLOCK.search(log), _SHOWN.search(log)
    if not clock or not frame or not int(clock[2]):
        return None
    return int(frame[1]), Fraction(int(clock[1]), int(clock[2]))


def declared_fps(log: Iterable[str]) -> Fraction:
    """Return the frame rate that a decoder's log tells first, 0 when it tells none."""
    found = next(filter(None, map(_RATE.search, log)), None)
    return Fraction(int(found[1]), int(found[2]) or 1) if found else Fraction(0)
