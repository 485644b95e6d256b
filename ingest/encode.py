"""Frames to files: the payload of a clip or a still, a video to watch, a lossless one, a poster.

One thread and bit-exact flags, so that the same frames give the same bytes on every machine with
the same ffmpeg; no B frames and no edit list, so that every reader counts from 0 and sees no less.
"""

import os
from collections.abc import Sequence
from fractions import Fraction

import cv2
import numpy as np

from ingest import child, ffmpeg, planes
from ingest.clip import Prep
from ingest.streams import reason

TIMEOUT_S = 600.0

EXACT: dict[str, object] = {
    "threads": 1,
    "fflags": "+bitexact",
    "flags": "+bitexact",
    "map_metadata": -1,
    "fps_mode": "passthrough",
}
MP4: dict[str, object] = {"f": "mp4", "movflags": "+faststart", "use_editlist": 0, "bf": 0}
COLOURS: dict[str, object] = {
    "colorspace": "bt709",
    "color_primaries": "bt709",
    "color_trc": "bt709",
    "color_range": "tv",
}
BT709: dict[str, object] = {"pix_fmt": "yuv420p", **COLOURS}
TO_BT709: tuple[str, dict[str, object]] = (
    "scale",
    {"flags": ffmpeg.SCALE_FLAGS, "out_color_matrix": "bt709", "out_range": "tv"},
)
CODER = "cavlc"
PNG = {"compression": 3}  # 9 takes four times as long for 3 % less


class EncodeError(RuntimeError):
    """The encoder refused frames that the contract allows: a fault of ours or of the machine."""


def _encoded(
    frames: bytes | memoryview,
    *,
    size: tuple[int, int],
    fps: int | Fraction,
    options: dict[str, object],
    pix_fmt: str = "rgb24",
    filters: Sequence[tuple[str, dict[str, object]]] = (),
) -> bytes:
    """Encode packed frames of `size` (width, height) px at `fps` and return the file.

    YUV frames are BT.709, TV range.

    It is written to memory, because an MP4 needs a seekable place and a disk is not needed. Raises
    EncodeError with ffmpeg's reason.
    """
    place = os.memfd_create("kinoray-encode")
    try:
        command = ffmpeg.encode_command(
            f"/dev/fd/{place}",
            size=size,
            fps=fps,
            options=options,
            # Said of what comes in too: else the frames go through a conversion, which is not lossless.
            frames={"pix_fmt": pix_fmt, **(COLOURS if pix_fmt == "yuv420p" else {})},
            filters=filters,
        )
        code, log = child.feed(command, frames, pass_fds=(place,), limit_s=TIMEOUT_S)
        if code:
            raise EncodeError(f"ffmpeg could not encode: {reason(log)}")
        return os.pread(place, os.fstat(place).st_size, 0)
    finally:
        os.close(place)


def _packed(frames_THWC: np.ndarray) -> tuple[memoryview, tuple[int, int]]:
    if frames_THWC.dtype != np.uint8 or frames_THWC.ndim != 4 or frames_THWC.shape[-1] != 3:
        raise ValueError(
            f"frames are {frames_THWC.dtype} {frames_THWC.shape}; must be uint8 THWC, 3 channels"
        )
    height, width = frames_THWC.shape[1:3]
    return np.ascontiguousarray(frames_THWC).data.cast("B"), (width, height)


def _h264(crf: int, preset: str, gop: int) -> dict[str, object]:
    return {
        "vcodec": "libx264",
        "crf": crf,
        "preset": preset,
        "g": gop,
        "keyint_min": gop,
        "sc_threshold": 0,
        # A seventh more bytes than with CABAC, and two thirds of the time to decode, at the same pixels:
        # a clip is written once and read by every epoch.
        "coder": CODER,
        "x264-params": "open-gop=0",
        **BT709,
    }


def encode_clip(frames: np.ndarray, prep: Prep, *, fps: Fraction | int | None = None) -> bytes:
    """Encode frames, planar or RGB with even sides, as the H.264 payload of one clip.

    It plays at exactly `fps`, which a contract of native frames does not know by itself; without it
    at the contract's. Raises ValueError when nothing tells the rate, or for other arrays.
    """
    rate = prep.contract.fps if fps is None else fps
    if isinstance(rate, str) or rate <= 0:
        raise ValueError(f"fps={fps} with a contract of {rate} frames: give the clip's own rate")
    options = _h264(prep.crf, prep.preset, prep.gop) | MP4 | EXACT
    if planes.is_planar(frames[0]):
        data = np.ascontiguousarray(frames).data.cast("B")
        size = planes.size(frames[0])
        return _encoded(data, size=size, fps=rate, options=options, pix_fmt="yuv420p")
    data, size = _packed(frames)
    return _encoded(data, size=size, fps=rate, options=options, filters=(TO_BT709,))


def encode_still(frame_HWC: np.ndarray) -> bytes:
    """Encode one uint8 RGB frame of any size as PNG, the lossless payload of a still.

    In this process: starting ffmpeg would cost more than all the rest of a still.
    """
    _packed(frame_HWC[None])
    bgr_HWC = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".png", bgr_HWC, [cv2.IMWRITE_PNG_COMPRESSION, PNG["compression"]])
    if not done:
        raise EncodeError(f"OpenCV could not encode a picture of {frame_HWC.shape}")
    return data.tobytes()


def encode_video(frames_THWC: np.ndarray, fps: Fraction | int, *, lossless: bool) -> bytes:
    """Encode uint8 THWC frames as MP4: exact RGB for measuring, or yuv420p for any player.

    The viewing form drops an odd last row or column, since players take even sizes only.
    """
    if lossless:
        data, size = _packed(frames_THWC)
        options = {"vcodec": "libx264rgb", "crf": 0, "preset": "veryfast", "g": 16} | MP4 | EXACT
        return _encoded(data, size=size, fps=fps, options=options | {"pix_fmt": "rgb24"})
    height, width = (side // 2 * 2 for side in frames_THWC.shape[1:3])
    data, size = _packed(frames_THWC[:, :height, :width])
    options = _h264(16, "veryfast", max(1, round(fps))) | MP4 | EXACT
    return _encoded(data, size=size, fps=fps, options=options, filters=(TO_BT709,))


def poster(frame_HWC: np.ndarray) -> bytes:
    """Encode one uint8 HWC frame as a JPEG."""
    data, size = _packed(frame_HWC[None])
    options = {"f": "image2pipe", "vcodec": "mjpeg", "q:v": 3, "frames:v": 1} | EXACT
    # JPEG is full range; said on both sides, else swscale shrinks and stretches the levels again.
    to_full: tuple[str, dict[str, object]] = (
        "scale",
        {"out_range": "pc", "flags": "area+accurate_rnd+full_chroma_int"},
    )
    return _encoded(
        data, size=size, fps=1, options=options | {"pix_fmt": "yuvj444p"}, filters=(to_full,)
    )


def thumbnail(frame_HWC: np.ndarray, *, width_px: int, quality: int = 75) -> bytes:
    """Encode one uint8 HWC frame as a JPEG, at most `width_px` wide."""
    height, width = frame_HWC.shape[:2]
    scale = min(1.0, width_px / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small_HWC = cv2.resize(frame_HWC, size, interpolation=cv2.INTER_AREA)
    bgr_HWC = cv2.cvtColor(small_HWC, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", bgr_HWC, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"a frame of {width}x{height} px has no JPEG")
    return data.tobytes()
