"""The only place that starts ffmpeg: probe a source, decode it once as a stream, encode frames.

The decoder is a child process under limits of time, processor and memory that may read one local
file and nothing else: no network, and no format that points at other files (playlists, concat).
`fps=round=up` gives slot n the last frame with pts <= n/fps, which is the frame on screen then.
"""

import contextlib
import os
import resource
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import IO, Any

import ffmpeg
import imageio_ffmpeg

from ingest.clip import Prep
from ingest.rates import Pace, pace_of
from ingest.sources import SourceError
from ingest.streams import VideoInfo, chosen, declared_fps, packet_times, reason

GLOBAL = ("-hide_banner", "-nostdin", "-nostats", "-loglevel", "repeat+level+info")
PROTOCOLS = "file,pipe"
SOURCE_PLACE = "source"
DEMUXERS = (
    "aac,asf,av1,avi,dv,flv,h264,hevc,ivf,m4v,matroska,mov,mp3,mpeg,mpegts,mpegvideo,mxf,nut,obu,"
    "ogg,rm,vc1,wav,webm,yuv4mpegpipe"
)
# full_chroma_int is no luxury: the shortcut to RGB without it darkens by a level (seen on dark film).
SCALE_FLAGS = "area+accurate_rnd+full_chroma_int+bitexact"
PROBE_TIMEOUT_S = 120.0
ENCODE_TIMEOUT_S = 600.0


class EncodeError(RuntimeError):
    """The encoder refused frames that the contract allows: a fault of ours or of the machine."""


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


def _input(prep: Prep, picture: str = "") -> Any:
    # A picture's demuxer is forced: the one that ffmpeg finds by name reads patterns of names.
    forced = {"f": picture, "err_detect": "crccheck"} if picture else {}
    return ffmpeg.input(
        SOURCE_PLACE,
        **forced,
        protocol_whitelist=PROTOCOLS,
        format_whitelist=picture or DEMUXERS,
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


def probe(uri: str, prep: Prep, picture: str = "") -> VideoInfo:
    """Choose the largest real video stream and decode its first frame; raises SourceError.

    `picture` is the demuxer of a file known to be one. For a contract of native frames a video's
    pace is measured, which reads the file once more but decodes nothing.
    """
    pads = _input(prep, picture)["V"]
    show = {"vf": "showinfo=checksum=0", "frames:v": 1}
    command = _command(ffmpeg.output(pads, "pipe:1", f="framecrc", **show), uri)
    with start(command, prep) as child:
        try:
            out, err = child.communicate(timeout=PROBE_TIMEOUT_S)
        except subprocess.TimeoutExpired as slow:
            raise SourceError(
                "probe", "Timeout", f"no first frame within {PROBE_TIMEOUT_S:g} s"
            ) from slow
        finally:
            child.kill()
    info = chosen(out.decode("utf-8", "replace"), err.decode("utf-8", "replace"), picture=picture)
    if picture or not prep.contract.native:
        return info
    return replace(info, pace=_pace(uri, info, prep))


def _pace(uri: str, info: VideoInfo, prep: Prep) -> Pace:
    stream = _input(prep)[str(info.stream_index)]
    times = ffmpeg.output(stream, "pipe:1", c="copy", f="framecrc")
    show = {"vf": "showinfo=checksum=0", "frames:v": 1}
    command = _command(
        ffmpeg.merge_outputs(times, ffmpeg.output(stream, "-", f="null", **show)), uri
    )
    log: list[str] = []
    with start(command, prep) as child:
        if child.stdout is None or child.stderr is None:  # never: both are pipes
            raise RuntimeError("ffmpeg was started without pipes")
        words = threading.Thread(target=_note_rate, args=(child.stderr, log), daemon=True)
        timer = threading.Timer(prep.decode_timeout_s, child.kill)
        words.start()
        timer.start()
        try:
            ticks, timebase = packet_times(line.decode("ascii", "replace") for line in child.stdout)
            in_time = timer.is_alive()
        finally:
            timer.cancel()
            child.kill()
            words.join()
    if not in_time:
        limit_s = prep.decode_timeout_s
        raise SourceError("probe", "Timeout", f"not read within decode_timeout_s={limit_s:g}")
    return pace_of(ticks if timebase else [], timebase, declared_fps(log))


def _note_rate(stream: IO[bytes], log: list[str]) -> None:
    for line in stream:  # to its end, for a full pipe would stop the reading
        if b"frame_rate:" in line and not log:
            log.append(line.decode("utf-8", "replace"))


def start(command: list[str], prep: Prep) -> "subprocess.Popen[bytes]":
    """Start ffmpeg under the limits of `prep`, with its output and its log in pipes."""
    # A session of its own: Ctrl-C at the terminal lets the unit in flight finish.
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    limit(child.pid, prep)
    return child


def decode_command(uri: str, info: VideoInfo, prep: Prep, size: tuple[int, int]) -> list[str]:
    """Arguments that write `size` frames of the stream to the standard output; see planes.

    They come at the rate of the contract; for native frames and pictures, each as it was decoded.
    """
    frames = _input(prep, info.picture)[str(info.stream_index)].filter("showinfo", checksum=0)
    if info.interlaced:
        frames = frames.filter("bwdif", mode="send_frame", deint="interlaced")
    if info.alpha and info.picture:
        frames = _on_white(frames)
    if info.picture or prep.contract.native:
        # The log has the times; the output would mind repeats, also those that rounding makes.
        frames = frames.filter("setpts", "N/TB")
    else:
        fps = prep.contract.stream_fps(Fraction(0))
        frames = frames.filter("setpts", "PTS-STARTPTS").filter("fps", fps, round="up")
    # What is RGB already has no matrix, and the filter refuses the word for it.
    matrix = {} if info.matrix == "gbr" else {"in_color_matrix": info.matrix}
    if not prep.contract.is_still:
        matrix |= {"out_color_matrix": "bt709", "out_range": "tv"}
    frames = frames.filter("scale", *size, flags=SCALE_FLAGS, **matrix).filter("setsar", 1)
    only = {"frames:v": 1} if info.picture else {}
    form = "rgb24" if prep.contract.is_still else "yuv420p"
    output = frames.output("pipe:1", f="rawvideo", pix_fmt=form, fps_mode="passthrough", **only)
    return _command(output, uri)


def _on_white(frames: Any) -> Any:
    # The colours of what is transparent mean nothing; most such pictures were made for white pages.
    both = frames.filter("format", "rgba").filter_multi_output("split")
    white = both[0].filter("drawbox", color="white", t="fill", replace=1)
    return ffmpeg.overlay(white, both[1], format="rgb")


def encode(
    frames: bytes | memoryview,
    *,
    size: tuple[int, int],
    fps: int | Fraction,
    options: dict[str, object],
    pix_fmt: str = "rgb24",
    filters: Sequence[tuple[str, dict[str, object]]] = (),
) -> bytes:
    """Encode packed frames (rgb24, or another raw format) of `size` (width, height) px at `fps` and return the file.

    The file is written to memory, because an MP4 needs a seekable place and a disk is not needed.
    Raises EncodeError with ffmpeg's reason.
    """
    stream = ffmpeg.input(
        "pipe:0", f="rawvideo", pix_fmt=pix_fmt, s=f"{size[0]}x{size[1]}", framerate=fps, threads=1
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
            raise EncodeError(f"ffmpeg could not encode: {reason(log)}")
        return os.pread(place, os.fstat(place).st_size, 0)
    finally:
        os.close(place)
