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

# Titles and tags of a file are in the log too, and may read like any of these: they end where ffmpeg
# says what it does with the streams, before it has decoded anything.
MAPPING = b"[info] Stream mapping:"
_MAPPING = re.compile("^" + re.escape(MAPPING.decode()), re.MULTILINE)
SHOWN = r"^\[Parsed_showinfo_\d+ @ 0x[0-9a-f]+\] \[info\] "
COMPLAINT = r"^(?:\[[^\]]*\] )*\[(?:error|fatal)\]"
CLOCK = r"config in time_base: (\d+)/(\d+), frame_rate: (\d+)/(\d+)"
FRAME = r"n: *(\d+) pts: *(NOPTS|-?\d+) (?:.*? duration: *(\d+) )?"
_STREAM = re.compile(
    r"^\[info\]   Stream #0:(\d+).*?: Video: \w+.*?, \w+(?:\(([^)]*)\))?,? .*?\d{1,6}x\d{1,6}(.*)",
    re.MULTILINE,
)
_MAPPED = re.compile(r"^\[info\]   Stream #0:(\d+) -> #0:\d+", re.MULTILINE)
_SIZE = re.compile(r"^#dimensions 0: (\d+)x(\d+)", re.MULTILINE)
_ASPECT = re.compile(r"^#sar 0: (\d+)/(\d+)", re.MULTILINE)
_FIELDS = re.compile(SHOWN + r"n: *0 .* i:[TB] ", re.MULTILINE)
_ALPHA = re.compile(
    SHOWN + r"n: *0 .* fmt:(?:rgba|bgra|argb|abgr|ya\d|yuva|gbrap|pal8)", re.MULTILINE
)
# Whatever else is said at that moment may follow the word at once.
_TRANSFER = re.compile(SHOWN + r".*color_trc:([a-z0-9-]+)", re.MULTILINE)
_CLOCK = re.compile(SHOWN + CLOCK, re.MULTILINE)
_FRAME = re.compile(SHOWN + FRAME, re.MULTILINE)
_COMPLAINT = re.compile(COMPLAINT)
_TICKS = re.compile(r"^#tb \d+: (\d+)/(\d+)")
_NO_TICK = -(1 << 63)
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


def _told(log: str) -> tuple[str, str]:
    """Return what a log says before and after the stream mapping; the latter is ffmpeg's alone.

    Raises SourceError for a file whose tags say it, too.
    """
    parts = _MAPPING.split(log)
    if len(parts) > 2:
        raise SourceError("probe", "Disguised", "a tag of the file reads like ffmpeg's log")
    return parts[0], "".join(parts[1:])


def mapped(log: str) -> list[int]:
    """Return the indices of the streams that ffmpeg took."""
    return [int(index) for index in _MAPPED.findall(_told(log)[1])]


def listed(log: str) -> list[int]:
    """Return the indices of the video streams that a file says to have; pictures beside are none."""
    found = _STREAM.findall(_told(log)[0])
    return list(
        dict.fromkeys(int(index) for index, _words, rest in found if "(attached pic)" not in rest)
    )


def nothing_in(log: str) -> SourceError:
    """Return why there is nothing to decode in the file that a log tells of."""
    said = " ".join(_complaints(log))
    if "matches no streams" in said or "does not contain any stream" in said:
        return SourceError("probe", "NoVideo", "no video stream")
    return SourceError("probe", "Undecodable" if mapped(log) else "NotAVideo", reason(log))


def chosen(header: str, log: str, *, picture: str = "") -> VideoInfo:
    """Return the one stream that a framecrc header and ffmpeg's log of its first frame tell of.

    Raises SourceError when there is none.
    """
    work, indices, size = _told(log)[1], mapped(log), _SIZE.search(header)
    if not indices or not size:
        raise nothing_in(log)
    width, height = int(size[1]), int(size[2])
    aspect = _ASPECT.search(header)
    above, below = (int(aspect[1]), int(aspect[2])) if aspect else (1, 1)
    transfer, words = _TRANSFER.search(work), _words(log, indices[0])
    # The first of matrix/primaries/transfer; one word where all three are called the same.
    matrix = next((w for w in (word.split("/")[0] for word in words) if w in MATRICES), "")
    # An untagged video follows the convention of its size, as players have it.
    usual = "bt709" if min(width, height) > 576 and not picture else "smpte170m"
    return VideoInfo(
        stream_index=indices[0],
        width=width,
        height=height,
        pixel_aspect=Fraction(above, below) if above and below else Fraction(1),
        matrix=matrix or usual,
        hdr=bool(transfer and transfer[1].startswith(HDR_TRANSFERS)),
        interlaced=any(word.endswith("first") for word in words) or bool(_FIELDS.search(work)),
        alpha=bool(_ALPHA.search(work)),
        picture=picture,
        duration_s=0.0 if picture else _duration_s(log),
    )


def _duration_s(log: str) -> float:
    found = _DURATION.search(log)
    return 3600.0 * int(found[1]) + 60.0 * int(found[2]) + float(found[3]) if found else 0.0


def _words(log: str, stream_index: int) -> list[str]:
    """Return what a file says of a stream's colour and fields; no more than a claim."""
    told = _STREAM.findall(_told(log)[0])
    return next((words.split(", ") for index, words, _ in told if int(index) == stream_index), [])


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
    work = _told(log)[1]
    clock, frame = _CLOCK.search(work), _FRAME.search(work)
    if not clock or not frame or not int(clock[2]) or frame[2] == "NOPTS":
        return None
    return int(frame[2]), Fraction(int(clock[1]), int(clock[2]))


def declared_fps(log: Iterable[str]) -> Fraction:
    """Return the frame rate that a decoder's log tells first, 0 when it tells none."""
    found = next(filter(None, map(_CLOCK.search, log)), None)
    return Fraction(int(found[3]), int(found[4]) or 1) if found else Fraction(0)
