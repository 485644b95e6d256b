"""The only place that starts ffmpeg: probe a source, decode it once as a stream, encode frames.

The decoder is a child process under limits of time, processor and memory that may read one local
file and nothing else: no network, and no format that points at other files (playlists, concat).
`fps=round=up` gives slot n the last frame with pts <= n/fps, which is the frame on screen then.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import isfinite
from typing import Any

import ffmpeg
import numpy as np

from ingest import child, planes
from ingest.bars import LEAST_FRAMES, Crop, find_bars, may_have_bars
from ingest.clip import Prep
from ingest.pace import measured
from ingest.rates import Pace
from ingest.sources import SourceError
from ingest.streams import (
    Part,
    VideoInfo,
    chosen,
    first_shown,
    listed,
    mapped,
    nothing_in,
)

PROTOCOLS = "file,pipe"
SOURCE_PLACE = "source"
DEMUXERS = (
    "aac,asf,av1,avi,dv,flv,h264,hevc,ivf,m4v,matroska,mov,mp3,mpeg,mpegts,mpegvideo,mxf,nut,obu,"
    "ogg,rm,vc1,wav,webm,yuv4mpegpipe"
)
# full_chroma_int is no luxury: the shortcut to RGB without it darkens by a level (seen on dark film).
SCALE_FLAGS = "area+accurate_rnd+full_chroma_int+bitexact"
# What comes with a frame would be told in the midst of what is asked of it, and tags once more.
SHOW = ("sidedata", {"mode": "delete"}), ("showinfo", {"checksum": 0})
FIRST = {"vf": "sidedata=mode=delete,showinfo=checksum=0", "frames:v": 1}
UNTOLD = {"map_metadata": -1, "map_chapters": -1}
MOST_LISTED = 8  # streams that are asked one by one, of a file that ffmpeg would not begin with
BAR_FRAMES = 5
BAR_PIXELS = 50_000_000  # in all of them: five of 4K, two of 8K, which this process must hold


def _input(
    prep: Prep,
    picture: str = "",
    *,
    seek_s: float = 0.0,
    keyframes: bool = False,
    frames_fps: Fraction | None = None,
) -> Any:
    # A picture's demuxer is forced: the one that ffmpeg finds by name reads patterns of names.
    forced: dict[str, Any] = {"f": picture, "err_detect": "crccheck"} if picture else {}
    if frames_fps:  # numbered pictures, all of one kind
        forced = {"f": "image2", "framerate": frames_fps, "start_number": 1}
    if seek_s > 0:  # to a keyframe before: what comes too early is dropped by its time
        forced |= {"ss": f"{seek_s:.6f}", "noaccurate_seek": None}
    if keyframes:
        forced |= {"skip_frame": "nokey"}
    return ffmpeg.input(
        SOURCE_PLACE,
        **forced,
        protocol_whitelist=PROTOCOLS,
        format_whitelist=forced.get("f", DEMUXERS),
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
    return [child.executable(), *child.GLOBAL, *args]


def probe(
    uri: str, prep: Prep, picture: str = "", *, frames_fps: Fraction | None = None
) -> VideoInfo:
    """Choose the largest real video stream and decode its first frame; raises SourceError.

    `picture` is the demuxer of a file known to be one; with `frames_fps`, `uri` is a pattern of names
    of numbered pictures that are the frames of a video. For a contract of native frames a video's
    pace is measured, which reads the file once more but decodes nothing.
    """
    opened = _input(prep, picture, frames_fps=frames_fps)
    header, log = _first_frames(uri, opened["V"], prep)
    alone = len(mapped(log)) == 1
    info = chosen(header, log, picture=picture) if alone else _largest(uri, opened, prep, log)
    if frames_fps:
        return replace(info, frames_fps=frames_fps, pace=Pace(fps=frames_fps, steady=True))
    if picture or not prep.contract.native:
        return info
    stream = _input(prep)[str(info.stream_index)]
    times = ffmpeg.output(stream, "pipe:1", c="copy", f="framecrc", **UNTOLD)
    both = ffmpeg.merge_outputs(times, ffmpeg.output(stream, "-", f="null", **FIRST, **UNTOLD))
    return replace(info, pace=measured(_command(both, uri), prep))


def _first_frames(uri: str, pads: Any, prep: Prep) -> tuple[str, str]:
    output = ffmpeg.output(pads, "pipe:1", f="framecrc", **FIRST, **UNTOLD)
    out, err = child.ask(_command(output, uri), prep)
    return out.decode("utf-8", "replace"), err.decode("utf-8", "replace")


def _largest(uri: str, opened: Any, prep: Prep, log: str) -> VideoInfo:
    """Return the largest of the streams that give a frame, each asked by itself.

    Asked together, one that gives nothing holds up all, and the log does not tell them apart.
    """
    found, failed = [], None
    for index in mapped(log) or listed(log)[:MOST_LISTED]:
        try:
            found.append(chosen(*_first_frames(uri, opened[str(index)], prep)))
        except SourceError as error:
            failed = failed or error
    if found:
        return max(found, key=lambda info: (info.width * info.height, -info.stream_index))
    raise failed or nothing_in(log)


def first_tick(uri: str, info: VideoInfo, prep: Prep) -> tuple[int, Fraction]:
    """Return the tick of a stream's first frame and the seconds of a tick; raises SourceError."""
    stream = _input(prep)[str(info.stream_index)]
    output = ffmpeg.output(stream, "-", f="null", **FIRST, **UNTOLD)
    _out, log = child.ask(_command(output, uri), prep)
    found = first_shown(log.decode("utf-8", "replace"))
    if found is None:
        raise SourceError("probe", "NoClock", "ffmpeg told no time of the first frame")
    return found


def bars_of(uri: str, info: VideoInfo, prep: Prep) -> Crop | None:
    """Return the picture inside a video's bars, judged by a few of its frames; see bars.

    They are keyframes all over it, where it can be sought and has several. Else, unless the one that
    there is shows that there are no bars, they are one of each of its first seconds.
    """
    size = (info.width // 2 * 2, info.height // 2 * 2)
    num = max(LEAST_FRAMES, min(BAR_FRAMES, BAR_PIXELS // (info.width * info.height)))
    spread = [info.duration_s * (2 * k + 1) / (2 * num) for k in range(num)]
    seekable = info.duration_s and not info.frames_fps
    inputs = [_input(prep, seek_s=at_s, keyframes=True) for at_s in spread if seekable]
    firsts = [i[str(info.stream_index)].filter("trim", end_frame=1) for i in inputs]
    found = _frames(uri, firsts, size, info, prep) if firsts else []
    distinct = {_hash(frame): frame for frame in found}
    if len(distinct) < LEAST_FRAMES and all(may_have_bars(planes.luma(f)) for f in found):
        begin = _input(prep, frames_fps=info.frames_fps)[str(info.stream_index)]
        begin = begin.filter("trim", duration=num)
        found = _frames(uri, [begin.filter("fps", 1)], size, info, prep)
        distinct = {_hash(frame): frame for frame in found}
    crop = find_bars([planes.luma(frame) for frame in distinct.values()])
    least_px = prep.payload_short_side_px // 4
    return crop if crop and min(crop.width, crop.height) >= least_px else None


def _hash(frame: np.ndarray) -> bytes:
    return hashlib.sha256(frame.data).digest()


def _frames(
    uri: str, streams: Sequence[Any], size: tuple[int, int], info: VideoInfo, prep: Prep
) -> list[np.ndarray]:
    matrix = {} if info.matrix == "gbr" else {"in_color_matrix": info.matrix}
    alike = [
        one.filter("setpts", "N/TB")
        .filter("scale", *size, flags=SCALE_FLAGS, out_range="tv", **matrix)
        .filter("setsar", 1)
        .filter("format", "yuv420p")
        for one in streams
    ]
    joined = ffmpeg.concat(*alike) if len(alike) > 1 else alike[0]
    output = joined.output("pipe:1", f="rawvideo", pix_fmt="yuv420p", fps_mode="passthrough")
    width, height = size
    most = (BAR_FRAMES + 1) * width * height * 3 // 2
    out, _log = child.ask(_command(output, uri), prep, max_bytes=most)
    whole = np.frombuffer(out, np.uint8)
    count = whole.size // (width * height * 3 // 2)
    return list(whole[: count * width * height * 3 // 2].reshape(count, height * 3 // 2, width))


def decode_command(
    uri: str, info: VideoInfo, prep: Prep, size: tuple[int, int], part: Part | None = None
) -> list[str]:
    """Arguments that write `size` frames of the stream to the standard output; see planes.

    They come at the rate of the contract; for native frames and pictures, each as it was decoded.
    """
    seek_s = part.seek_s if part else 0.0
    opened = _input(prep, info.picture, seek_s=seek_s, frames_fps=info.frames_fps)
    frames = opened[str(info.stream_index)]
    for name, settings in SHOW:
        frames = frames.filter(name, **settings)
    frames = _inside(_from_zero(frames, info, prep, part), info)
    if info.alpha and info.picture:
        frames = _on_white(frames)
    frames = _clocked(frames, info, prep, part)
    # What is RGB already has no matrix, and the filter refuses the word for it.
    matrix = {} if info.matrix == "gbr" else {"in_color_matrix": info.matrix}
    if not prep.contract.is_still:
        matrix |= {"out_color_matrix": "bt709", "out_range": "tv"}
    frames = frames.filter("scale", *size, flags=SCALE_FLAGS, **matrix).filter("setsar", 1)
    only = {"frames:v": 1} if info.picture else {}
    form = "rgb24" if prep.contract.is_still else "yuv420p"
    raw = {"f": "rawvideo", "pix_fmt": form, "fps_mode": "passthrough"}
    return _command(frames.output("pipe:1", **raw, **only, **UNTOLD), uri)


def _from_zero(frames: Any, info: VideoInfo, prep: Prep, part: Part | None) -> Any:
    """Count time from the source's first frame; what comes after may have ticks of its own."""
    if info.picture or prep.contract.native:
        return frames
    if part is None:
        return frames.filter("setpts", "PTS-STARTPTS")
    # A part begins at whole seconds, which are ticks of this clock; those of a file may lie beside.
    fine = f"1/{part.timebase.denominator}"
    return frames.filter("setpts", f"PTS-({part.first_pts})").filter("settb", fine)


def _inside(frames: Any, info: VideoInfo) -> Any:
    """Weave fields into frames, then take what is inside the bars.

    The one needs whole frames, as crops move lines of colour to the other field. Both would read
    past the end of a frame that is smaller than the first: frames of that size pass unchanged here.
    """
    if not (info.interlaced or info.crop):
        return frames
    frames = frames.filter("scale", info.width, info.height, flags=SCALE_FLAGS, interl=-1)
    if info.interlaced:
        frames = frames.filter("bwdif", mode="send_frame", deint="interlaced")
    if inside := info.crop:
        frames = frames.filter("crop", inside.width, inside.height, inside.left, inside.top)
    return frames


def _clocked(frames: Any, info: VideoInfo, prep: Prep, part: Part | None) -> Any:
    """Bring frames to the contract's rate, from the source's first frame or the part's start."""
    if info.picture or prep.contract.native:
        if part:
            clock = f"{part.timebase.numerator}/{part.timebase.denominator}"
            end = {"end_pts": part.tick(part.end_s)} if isfinite(part.end_s) else {}
            frames = frames.filter("settb", clock)
            frames = frames.filter("trim", start_pts=part.tick(part.start_s), **end)
        # The log has the times; the output would mind repeats, also those that rounding makes.
        return frames.filter("setpts", "N/TB")
    fps = prep.contract.stream_fps(Fraction(0))
    if part is None:
        return frames.filter("fps", fps, round="up")
    frames = frames.filter("fps", fps, round="up", start_time=part.start_s)
    if not isfinite(part.end_s):
        return frames
    return frames.filter("trim", end_frame=round((part.end_s - part.start_s) * fps))


def _on_white(frames: Any) -> Any:
    # The colours of what is transparent mean nothing; most such pictures were made for white pages.
    both = frames.filter("format", "rgba").filter_multi_output("split")
    white = both[0].filter("drawbox", color="white", t="fill", replace=1)
    return ffmpeg.overlay(white, both[1], format="rgb")


def encode_command(
    place: str,
    *,
    size: tuple[int, int],
    fps: int | Fraction,
    options: dict[str, object],
    frames: dict[str, object],
    filters: Sequence[tuple[str, dict[str, object]]],
) -> list[str]:
    """Arguments that make a file at `place` of frames of `size` (width, height) from the standard input.

    `frames` has what ffmpeg must be told of them: pix_fmt, and colours where they are YUV.
    """
    stream = ffmpeg.input(
        "pipe:0", f="rawvideo", s=f"{size[0]}x{size[1]}", framerate=fps, threads=1, **frames
    )
    for name, settings in filters:
        stream = stream.filter(name, **settings)
    output = stream.output(f"file:{place}", **options).overwrite_output()
    args = ["-filter_complex_threads", "1", *ffmpeg.get_args(output)]
    return [child.executable(), *child.GLOBAL, *args]
