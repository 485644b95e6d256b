"""The clip contract, how clips are prepared, and who a clip is.

A clip is exactly `frames` frames at `fps` from inside one shot. Its id is a hash of where it comes
from and how it is prepared, so it is known before anything is encoded and equal on every retry.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Literal

PREP_VERSION = 1  # raise it when the same Prep starts to give other pixels or other windows
LIMITS = (
    "max_source_bytes",
    "max_pixels",
    "max_gap_s",
    "decode_timeout_s",
    "stall_timeout_s",
    "memory_bytes",
)


def digest_of(value: object) -> str:
    """Return the hex sha256 of `value` as canonical JSON (sorted keys, no spaces, no NaN)."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True
    )
    return hashlib.sha256(text.encode()).hexdigest()


# What x264 knows; a wrong word would otherwise be every video's fate.
Preset = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contract:
    """What every clip of a dataset is: so many frames at one constant rate."""

    frames: int = 80
    fps: int = 16

    def __post_init__(self) -> None:
        """Refuse a contract that no clip can hold."""
        if self.frames < 1 or self.fps < 1:
            raise ValueError(
                f"contract: frames={self.frames} and fps={self.fps} must both be at least 1"
            )

    @property
    def seconds(self) -> float:
        """Length of a clip in seconds."""
        return self.frames / self.fps


@dataclass(frozen=True, kw_only=True, slots=True)
class Prep:
    """How sources become payloads. Fields named in LIMITS guard the machine and change no pixel."""

    contract: Contract = field(default_factory=Contract)
    payload_short_side_px: int = 256
    crf: int = 18
    preset: Preset = "veryfast"
    gop: int = 16
    cut_trim_frames: int = 4
    cut_ratio: float = 3.5
    cut_min_levels: float = 15.0
    cut_sure_levels: float = 45.0
    black_levels: float = 24.0
    max_source_bytes: int = 16 << 30
    max_pixels: int = 8192 * 8192
    max_gap_s: float = 600.0
    decode_timeout_s: float = 3600.0
    stall_timeout_s: float = 60.0
    memory_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        """Refuse values that the encoder would refuse later, once per clip."""
        if self.payload_short_side_px < 16 or self.payload_short_side_px % 2:
            raise ValueError(
                f"payload_short_side_px={self.payload_short_side_px}: must be even, at least 16"
            )
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf={self.crf}: must be within 0 to 51")
        if self.gop < 1 or self.cut_trim_frames < 0:
            raise ValueError("gop must be at least 1 and cut_trim_frames at least 0")

    def digest(self) -> str:
        """Return the hex sha256 of everything that decides pixels and window positions."""
        values = {name: value for name, value in asdict(self).items() if name not in LIMITS}
        return digest_of({"prep_version": PREP_VERSION, **values})


def clip_id(
    *,
    source_sha256: str,
    stream_index: int,
    start_pts: int,
    end_pts: int,
    timebase: Fraction,
    prep_digest: str,
) -> str:
    """Return the hex sha256 that names a clip; `end_pts` is exclusive, pts in source ticks."""
    return digest_of(
        {
            "source_sha256": source_sha256,
            "stream": stream_index,
            "start_pts": start_pts,
            "end_pts": end_pts,
            "timebase": [timebase.numerator, timebase.denominator],
            "prep": prep_digest,
        }
    )


def payload_size(width: int, height: int, short_side_px: int) -> tuple[int, int]:
    """Return (width, height) of the payload: even, short side at most `short_side_px`, never up."""
    scale = min(1.0, short_side_px / min(width, height))

    def even(value: float) -> int:
        return max(2, int(value / 2 + 0.5) * 2)

    payload = even(width * scale), even(height * scale)
    return min(payload[0], max(2, width // 2 * 2)), min(payload[1], max(2, height // 2 * 2))
