"""From a stored clip to the frames that training sees: which frames, which window, which mirror.

All random draws are a hash of (seed, epoch, clip_id), so a clip looks the same on any rank, in any
worker and after any resume. Letters: T frames, H height, W width, C channels.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

DRAWS_VERSION = b"kinoray.frames.v1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Frames:
    """What training wants of a clip, in uint8 THWC of `width` x `height` px.

    Args:
        width: of the result.
        height: of the result.
        frames: how many, 0 for all that there are.
        stride: every stride-th frame.
        start: where the stretch of frames lies in the clip.
        crop: where the largest window of the target's aspect lies in the picture.
        flip_share: share of clips shown mirrored, in [0, 1].
        low: factor of the low-resolution pair that is averaged from the result; 1 for none.
    """

    width: int
    height: int
    frames: int = 0
    stride: int = 1
    start: Literal["first", "centre", "random"] = "first"
    crop: Literal["centre", "random"] = "centre"
    flip_share: float = 0.0
    low: int = 1

    def __post_init__(self) -> None:
        """Refuse what no clip can give."""
        if self.width < 1 or self.height < 1 or self.frames < 0 or self.stride < 1:
            raise ValueError(
                f"{self.width}x{self.height}, frames={self.frames}, stride={self.stride}: "
                "sizes and stride are at least 1, frames at least 0 (all)"
            )
        if self.start not in ("first", "centre", "random") or self.crop not in ("centre", "random"):
            raise ValueError(
                f"start={self.start!r}: first, centre or random; crop={self.crop!r}: centre or "
                "random"
            )
        if not 0.0 <= self.flip_share <= 1.0:
            raise ValueError(f"flip_share={self.flip_share}: must lie in [0, 1]")
        if self.low < 1 or self.width % self.low or self.height % self.low:
            raise ValueError(f"low={self.low}: must divide {self.width}x{self.height}")

    @property
    def is_random(self) -> bool:
        """Whether a clip may look different in another epoch."""
        random = self.start == "random" or self.crop == "random"
        return random or 0.0 < self.flip_share < 1.0

    def count(self, frame_count: int) -> int:
        """Return how many frames a clip of `frame_count` gives; raises ValueError when too few."""
        wanted = self.frames or (frame_count - 1) // self.stride + 1
        span = (wanted - 1) * self.stride + 1
        if wanted < 1 or span > frame_count:
            raise ValueError(
                f"{wanted} frames at stride {self.stride} span {span}, the clip has "
                f"{frame_count}; ask for fewer or select longer clips"
            )
        return wanted

    def shapes(self, frame_count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the THWC shapes of the frames and of their low pair (no frames when low is 1)."""
        count = self.count(frame_count)
        if self.low == 1:
            return (count, self.height, self.width, 3), (0, 0, 0, 3)
        low = (count, self.height // self.low, self.width // self.low, 3)
        return (count, self.height, self.width, 3), low


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """What is taken of one clip: frame indices, window (left, top, width, height), mirrored."""

    indices: range
    window: tuple[int, int, int, int]
    flip: bool


def draws(seed: int, epoch: int, clip_id: str) -> tuple[float, ...]:
    """Return four numbers in [0, 1): for start, left, top and flip.

    They are the four little-endian words of sha256(version, seed, epoch, clip id), their upper
    53 bits over 2^53.
    """
    mask = (1 << 64) - 1
    data = DRAWS_VERSION + struct.pack("<QQ", seed & mask, epoch & mask) + bytes.fromhex(clip_id)
    words = struct.unpack("<4Q", hashlib.sha256(data).digest())
    return tuple((word >> 11) * 2.0**-53 for word in words)


def _place(how: str, freedom: int, draw: float) -> int:
    return {"first": 0, "centre": freedom // 2, "random": int(draw * (freedom + 1))}[how]


def cut_of(row: Mapping[str, Any], frames: Frames, *, seed: int, epoch: int) -> Cut:
    """Decide what is taken of the clip of a view's row. Raises ValueError that names the clip."""
    start, left, top, flip = draws(seed, epoch, row["clip_id"])
    try:
        count = frames.count(row["frame_count"])
    except ValueError as error:
        raise ValueError(f"clip {row['clip_id']}: {error}") from error
    span = (count - 1) * frames.stride + 1
    first = _place(frames.start, row["frame_count"] - span, start)
    width, height = row["width"], row["height"]
    scale = min(width / frames.width, height / frames.height)
    cut_width = max(1, min(width, round(frames.width * scale)))
    cut_height = max(1, min(height, round(frames.height * scale)))
    place = (
        _place(frames.crop, width - cut_width, left),
        _place(frames.crop, height - cut_height, top),
    )
    return Cut(
        indices=range(first, first + span, frames.stride),
        window=(*place, cut_width, cut_height),
        flip=flip < frames.flip_share,
    )


def render(
    payload: bytes | memoryview,
    row: Mapping[str, Any],
    cut: Cut,
    high_THWC: np.ndarray,
    low_THWC: np.ndarray,
) -> None:
    """Decode what `cut` takes of a payload into arrays of the shapes that `Frames.shapes` gives.

    Raises ValueError when the payload is not what its row says.
    """
    # Heavy, and a process that only fetches payloads never needs them.
    import cv2  # noqa: PLC0415

    from ingest.decode import payload_frames  # noqa: PLC0415

    stored = row["frame_count"], row["height"], row["width"]
    indices = list(cut.indices) if len(cut.indices) < row["frame_count"] else None
    stored_THWC = payload_frames(payload, kind=row["payload_kind"], indices=indices, shape=stored)
    wanted = (len(cut.indices), *stored[1:], 3)
    if stored_THWC.shape != wanted:
        raise ValueError(f"payload decodes to {stored_THWC.shape}, its row says {wanted}")
    left, top, width, height = cut.window
    shrinks = width >= high_THWC.shape[2] and height >= high_THWC.shape[1]
    # Area averaging only shrinks; to enlarge, OpenCV would fall back to nearest blocks.
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    cut_THWC = stored_THWC[:, top : top + height, left : left + width]
    if cut_THWC.shape == high_THWC.shape:
        high_THWC[:] = cut_THWC
    else:
        for frame_HWC, out_HWC in zip(cut_THWC, high_THWC, strict=True):
            cv2.resize(frame_HWC, out_HWC.shape[1::-1], dst=out_HWC, interpolation=how)
    for index, out_HWC in enumerate(high_THWC):
        if cut.flip:
            cv2.flip(out_HWC, 1, dst=out_HWC)
        if len(low_THWC):
            low_HWC = low_THWC[index]
            cv2.resize(out_HWC, low_HWC.shape[1::-1], dst=low_HWC, interpolation=cv2.INTER_AREA)
