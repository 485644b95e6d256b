"""The only place that starts ffmpeg: probe a source, decode it once as a stream, encode frames.

The decoder is a child process under limits of time, processor and memory that may read one local
file and nothing else: no network, and no format that points at other files (playlists, concat).
`fps=round=up` gives slot n the last frame with pts <= n/fps, which is the frame on screen then.
"""

import contextlib
import os
import re
import resource
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import ffmpeg
import imageio_ffmpeg

from ingest.clip import Prep
from ingest.sources import SourceError

GLOBAL = ("-hide_banner", "-nostdin", "-nostats", "-loglevel", "repeat+level+info")
PROTOCOLS = "file,pipe"
SOURCE_PLACE = "source"
DEMUXERS = (
    "aac,asf,av1,avi,dv,flv,h264,hevc,ivf,m4v,matroska,mov,mp3,mpeg,mpegts,mpegvideo,mxf,nut,obu,"
    "ogg,rm,vc1,wav,webm,yuv4mpegpipe"
)
HDR_TRANSFERS = ("smpte2084", "arib-std-b67")
MATRICES = ("bt709", "bt470bg", "smpte170m", "fcc", "smpte240m", "bt2020nc", "bt2020c", "gbr")
# full_chroma_int is no luxury: the shortcut to RGB without it darkens by a level (seen on dark film).
SCALE_FLAGS = "area+accurate_rnd+full_chroma_int+bitexact"
PROBE_TIMEOUT_S = 120.0
ENCODE_TIMEOUT_S = 600.0

_STREAM = re.compile(
    r"Stream #0:(\d+).*?: Video: \w+.*?, (\w+)(?:\(([^)]*)\))?,? .*?(\d{1,6})x(\d{1,6})"
)
_MAPPED = re.compile(r"Stream #0:(\d+) -> #0:(\d+)")
_SIZE = re.compile(r"^#dimensions (\d+): (\d+)x(\d+)", re.MULTILINE)
_ASPECT = re.compile(r"^#sar (\d+): (\d+)/(\d+)", re.MULTILINE)
_FIELDS = re.compile(r" i:[TB] ")
_ADDRESS = re.compile(r" @ 0x[0-9a-f]+")


class EncodeError(RuntimeError):
    """The encoder refused frames that the contract allows: a fault of ours or of the machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInfo:
    """The chosen video stream: upright size as stored (px), pixel aspect, colour, fields."""

    stream_index: int
    width: int
    height: int
    pixel_aspect: Fraction
    matrix: str
    hdr: bool
    interlaced: bool

    @property
    def display_size(self) -> tuple[int, int]:
        """(width, height) in px with square pixels; the longer axis shrinks, none ever grows."""
        if self.pixel_aspect >= 1:
            return self.width, max(1, round(self.height / self.pixel_aspect))
        return max(1, round(self.width * self.pixel_aspect)), self.height


@cache
def executable() -> str:
    """Path of the ffmpeg binary: the bundled one, or the one named by IMAGEIO_FFMPEG_EXE."""
    return imageio_ffmpeg.get_ffmpeg_exe()


@cache
def version() -> str:
    """First line that ffmpeg says about itself."""
    done = subprocess.run(
        [executable(), "-version"], capture_output=True, check=True, timeout=PROBE_TIMEOUT_S
    )
    return done.stdout.decode().splitlines()[0]


def limit(pid: int, prep: Prep) -> None:
    """Bound memory and processor time of a running child."""
    cpu_s = int(prep.decode_timeout_s) + 1
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_AS, (prep.memory_bytes, prep.memory_bytes))
        resource.prlimit(pid, resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))


def _input(prep: Prep) -> Any:
    return ffmpeg.input(
        SOURCE_PLACE,
        protocol_whitelist=PROTOCOLS,
        format_whitelist=DEMUXERS,
        max_pixels=prep.max_pixels,
        max_error_rate=1,
        threads=1,
        copyts=None,
        reinit_filter=0,
    )


def _command(output: Any, uri: str) -> list[str]:
    # file: keeps a leading dash, a colon or a percent sign in a name from meaning anything. The
    # name joins last, because the graph library takes only valid Unicode.
    args = [f"file:{uri}" if arg == SOURCE_PLACE else arg for arg in ffmpeg.get_args(output)]
    return [executable(), *GLOBAL, *args]


def plain(line: str) -> str:
    """Return a line of ffmpeg's log without addresses, so that equal faults read equal."""
    return _ADDRESS.sub("", line).strip()


def _reason(log: str) -> str:
    lines = [line for line in log.splitlines() if "[error]" in line or "[fatal]" in line]
    return plain(" | ".join(lines[:2]))[:300] or "ffmpeg gave no reason"


def probe(uri: str, prep: Prep) -> VideoInfo:
    """Choose the largest real video stream and decode its first frame; raises SourceError."""
    pads = _input(prep)["V"]
    show = {"vf": "showinfo=checksum=0", "frames:v": 1}
    command = _command(ffmpeg.output(pads, "pipe:1", f="framecrc", **show), uri)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as child:
        limit(child.pid, prep)
        try:
            out, err = child.communicate(timeout=PROBE_TIMEOUT_S)
        except subprocess.TimeoutExpired as slow:
            raise SourceError(
                "probe", "Timeout", f"no first frame within {PROBE_TIMEOUT_S:g} s"
            ) from slow
        finally:
            child.kill()
    log = err.decode("utf-8", "replace")
    return _choose(out.decode("utf-8", "replace"), log)


def _choose(header: str, log: str) -> VideoInfo:
    mapped = {int(out): int(source) for source, out in _MAPPED.findall(log)}
    if not mapped:
        no_video = "matches no streams" in log or "does not contain any stream" in log
        raise SourceError(
            "probe",
            "NoVideo" if no_video else "NotAVideo",
            "no video stream" if no_video else _reason(log),
        )
    sizes = {int(out): (int(w), int(h)) for out, w, h in _SIZE.findall(header)}
    # The header names every stream's size, though a frame may come from one of them only: going by
    # frames would choose by who was faster.
    if not sizes:
        raise SourceError("probe", "Undecodable", _reason(log))
    best = max(sizes, key=lambda out: (sizes[out][0] * sizes[out][1], -out))
    aspects = {int(out): (int(a), int(b)) for out, a, b in _ASPECT.findall(header)}
    above, below = aspects.get(best, (1, 1))
    width, height = sizes[best]
    words = _colour_words(log, mapped[best])
    matrix = next((word for word in words if word in MATRICES), "")
    return VideoInfo(
        stream_index=mapped[best],
        width=width,
        height=height,
        pixel_aspect=Fraction(above, below) if above and below else Fraction(1),
        # An untagged source follows the convention of its size, as players have it.
        matrix=matrix or ("bt709" if min(width, height) > 576 else "smpte170m"),
        hdr=any(word in HDR_TRANSFERS for word in words),
        interlaced=any(word.endswith("first") for word in words) or bool(_FIELDS.search(log)),
    )


def _colour_words(log: str, stream_index: int) -> list[str]:
    for index, _pixels, colour, _width, _height in _STREAM.findall(
        log.split("Output #0", maxsplit=1)[0]
    ):
        if int(index) == stream_index:
            return re.split(r", |/| ", colour)
    return []


def decode_command(uri: str, info: VideoInfo, prep: Prep, size: tuple[int, int]) -> list[str]:
    """Arguments that write `size` rgb24 frames at the contract's rate to the standard output."""
    frames = _input(prep)[str(info.stream_index)].filter("showinfo", checksum=0)
    if info.interlaced:
        frames = frames.filter("bwdif", mode="send_frame", deint="interlaced")
    frames = (
        frames.filter("setpts", "PTS-STARTPTS")
        .filter("fps", prep.contract.fps, round="up")
        .filter("scale", *size, flags=SCALE_FLAGS, in_color_matrix=info.matrix)
        .filter("setsar", 1)
    )
    output = frames.output("pipe:1", f="rawvideo", pix_fmt="rgb24", fps_mode="passthrough")
    return _command(output, uri)


def encode(
    frames: bytes | memoryview,
    *,
    size: tuple[int, int],
    fps: int,
    options: dict[str, object],
    filters: Sequence[tuple[str, dict[str, object]]] = (),
) -> bytes:
    """Encode packed rgb24 frames of `size` (width, height) px at `fps` and return the file.

    The file is written to memory, because an MP4 needs a seekable place and a disk is not needed.
    Raises EncodeError with ffmpeg's reason.
    """
    stream = ffmpeg.input(
        "pipe:0", f="rawvideo", pix_fmt="rgb24", s=f"{size[0]}x{size[1]}", framerate=fps, threads=1
    )
    for name, settings in filters:
        stream = stream.filter(name, **settings)
    place = os.memfd_create("kinoray-encode")
    try:
        output = stream.output(f"file:/dev/fd/{place}", **options).overwrite_output()
        done = subprocess.run(
            [executable(), *GLOBAL, "-filter_complex_threads", "1", *ffmpeg.get_args(output)],
            input=frames,
            capture_output=True,
            check=False,
            pass_fds=(place,),
            start_new_session=True,
            timeout=ENCODE_TIMEOUT_S,
        )
        if done.returncode:
            log = done.stderr.decode("utf-8", "replace")
            raise EncodeError(f"ffmpeg could not encode: {_reason(log)}")
        return os.pread(place, os.fstat(place).st_size, 0)
    finally:
        os.close(place)
