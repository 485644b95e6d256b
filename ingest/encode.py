"""Frames to files: the payload of a clip, a video for people to watch, a lossless one, a poster.

One thread and bit-exact flags, so that the same frames give the same bytes on every machine with
the same ffmpeg; no B frames and no edit list, so that every reader counts from 0 and sees no less.
"""

import numpy as np

from ingest import ffmpeg
from ingest.clip import Prep

EXACT: dict[str, object] = {
    "threads": 1,
    "fflags": "+bitexact",
    "flags": "+bitexact",
    "map_metadata": -1,
    "fps_mode": "passthrough",
}
MP4: dict[str, object] = {"f": "mp4", "movflags": "+faststart", "use_editlist": 0, "bf": 0}
BT709: dict[str, object] = {
    "pix_fmt": "yuv420p",
    "colorspace": "bt709",
    "color_primaries": "bt709",
    "color_trc": "bt709",
    "color_range": "tv",
}
TO_BT709: tuple[str, dict[str, object]] = (
    "scale",
    {
        "flags": "area+accurate_rnd+full_chroma_int+bitexact",
        "out_color_matrix": "bt709",
        "out_range": "tv",
    },
)


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
        "x264-params": "open-gop=0",
        **BT709,
    }


def encode_clip(frames_THWC: np.ndarray, prep: Prep) -> bytes:
    """Encode uint8 THWC frames (even height and width) as the H.264 payload of one clip."""
    data, size = _packed(frames_THWC)
    options = _h264(prep.crf, prep.preset, prep.gop) | MP4 | EXACT
    return ffmpeg.encode(
        data, size=size, fps=prep.contract.fps, options=options, filters=(TO_BT709,)
    )


def encode_video(frames_THWC: np.ndarray, fps: int, *, lossless: bool) -> bytes:
    """Encode uint8 THWC frames as MP4: exact RGB for measuring, or yuv420p for any player.

    The viewing form drops an odd last row or column, since players take even sizes only.
    """
    if lossless:
        data, size = _packed(frames_THWC)
        options = {"vcodec": "libx264rgb", "crf": 0, "preset": "veryfast", "g": 16} | MP4 | EXACT
        return ffmpeg.encode(data, size=size, fps=fps, options=options | {"pix_fmt": "rgb24"})
    height, width = (side // 2 * 2 for side in frames_THWC.shape[1:3])
    data, size = _packed(frames_THWC[:, :height, :width])
    options = _h264(16, "veryfast", fps) | MP4 | EXACT
    return ffmpeg.encode(data, size=size, fps=fps, options=options, filters=(TO_BT709,))


def poster(frame_HWC: np.ndarray) -> bytes:
    """Encode one uint8 HWC frame as a JPEG."""
    data, size = _packed(frame_HWC[None])
    options = {"f": "image2pipe", "vcodec": "mjpeg", "q:v": 3, "frames:v": 1} | EXACT
    # JPEG is full range; said on both sides, else swscale shrinks and stretches the levels again.
    to_full: tuple[str, dict[str, object]] = (
        "scale",
        {"out_range": "pc", "flags": "area+accurate_rnd+full_chroma_int"},
    )
    return ffmpeg.encode(
        data, size=size, fps=1, options=options | {"pix_fmt": "yuvj444p"}, filters=(to_full,)
    )
