"""Telling pictures from videos by their first bytes, and refusing what is no single whole picture.

A name proves nothing, and ffmpeg would take an animation's first frame or half a file for a picture.
"""

from pathlib import Path

from ingest.sources import SourceError

HEAD_BYTES = 1 << 16
PNG, JPEG, WEBP, BMP = "png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe"
PNG_END = b"IEND\xaeB`\x82"
_WEBP_ANIMATED = 0x02  # in the flags of the extended header


def demuxer_of(path: str | Path) -> str:
    """Return ffmpeg's name for a picture's format, or "" when the file is no picture we know.

    Raises SourceError for an animation, a file whose end is missing, or one that cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(HEAD_BYTES)
            size = file.seek(0, 2)
            file.seek(max(0, size - HEAD_BYTES))
            tail = file.read(HEAD_BYTES)
    except OSError as error:
        raise SourceError("open", type(error).__name__, error.strerror or str(error)) from error
    demuxer = _format(head)
    if _animated(demuxer, head):
        message = "more than one picture in a file: make it a video, or keep one picture of it"
        raise SourceError("probe", "Animated", message)
    if _cut_short(demuxer, head, tail, size):
        raise SourceError("probe", "Truncated", f"{size} bytes, the end of the picture is missing")
    return demuxer


def _format(head: bytes) -> str:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if head.startswith(b"\xff\xd8\xff"):
        return JPEG
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WEBP
    return BMP if head.startswith(b"BM") and head[6:10] == bytes(4) else ""


def _animated(demuxer: str, head: bytes) -> bool:
    if demuxer == PNG:  # the count of frames comes before the pixels
        return b"acTL" in head.split(b"IDAT", maxsplit=1)[0]
    extended = demuxer == WEBP and head[12:16] == b"VP8X" and len(head) > 20
    return extended and bool(head[20] & _WEBP_ANIMATED)


def _cut_short(demuxer: str, head: bytes, tail: bytes, size: int) -> bool:
    if demuxer == PNG:
        return PNG_END not in tail
    if demuxer == JPEG:  # some cameras write more after the end of the picture
        return b"\xff\xd9" not in tail
    return demuxer == WEBP and size < 8 + int.from_bytes(head[4:8], "little")
