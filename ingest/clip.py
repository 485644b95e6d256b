"""The clip contract, how clips are prepared, who a clip is, and the columns it is stored in.

A clip is exactly `frames` frames at `fps` from inside one shot. Its id is a hash of where it comes
from and how it is prepared, so it is known before anything is encoded and equal on every retry.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any, Literal

import pyarrow as pa

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


def _field(
    name: str, kind: pa.DataType, *, required: bool = False, **facts: str
) -> "pa.Field[Any]":
    metadata = {f"kinoray.{key}": value for key, value in facts.items()}
    return pa.field(name, kind, nullable=not required, metadata=metadata or None)


SCORE_FIELDS = (
    _field(
        "motion",
        pa.float64(),
        unit="frame diagonals per second",
        range="[0, inf)",
        direction="middle",
    ),
    _field("duplicate_frame_share", pa.float64(), unit="share", range="[0, 1]", direction="lower"),
    _field("luma_mean", pa.float64(), unit="grey level", range="[0, 255]", direction="middle"),
    _field("luma_range", pa.float64(), unit="grey level", range="[0, 255]", direction="higher"),
    _field(
        "sharpness", pa.float64(), unit="grey level squared", range="[0, inf)", direction="higher"
    ),
)
SCORES = tuple(score.name for score in SCORE_FIELDS)


def _place_fields() -> list["pa.Field[Any]"]:
    return [
        _field("stream_index", pa.int32()),
        _field("timebase_num", pa.int32(), unit="seconds per tick = num/den"),
        _field("timebase_den", pa.int32()),
        _field("start_pts", pa.int64(), unit="source tick"),
        _field("end_pts", pa.int64(), unit="source tick, exclusive"),
    ]


def _shape_fields() -> list["pa.Field[Any]"]:
    return [
        _field("fps_num", pa.int32()),
        _field("fps_den", pa.int32()),
        _field("frame_count", pa.int32(), unit="frame"),
        _field("width", pa.int32(), unit="px"),
        _field("height", pa.int32(), unit="px"),
    ]


def payload_schema() -> pa.Schema:
    """Return the columns of a payload shard; `payload` is last and is all of its weight."""
    digest = pa.binary(32)
    color = pa.struct([(name, pa.utf8()) for name in ("range", "primaries", "transfer", "matrix")])
    return pa.schema(
        [
            _field("clip_id", digest, required=True),
            _field("source_uri", pa.utf8()),
            _field("source_sha256", digest),
            *_place_fields(),
            *_shape_fields(),
            _field("color", color),
            _field("payload_kind", pa.dictionary(pa.int8(), pa.utf8())),
            _field("payload_params", pa.utf8(), unit="JSON"),
            _field("payload_sha256", digest, required=True),
            _field("payload_crc32", pa.uint32(), required=True),
            _field("prep_spec_digest", digest),
            _field("payload", pa.large_binary(), required=True),
        ]
    )


def ledger_schema() -> pa.Schema:
    """Return the columns of the ledger: one row per source and per candidate clip, with its fate.

    Hashes are hex text and crc32 is int64, because Delta has neither fixed binaries nor unsigned.
    """
    text = pa.utf8()
    return pa.schema(
        [
            _field("unit_id", text, required=True),
            _field("kind", text, required=True, range="source | clip"),
            _field("id", text, required=True),
            _field("fate", text, required=True, range="kept | rejected | failed | duplicate"),
            _field("rule", text),
            _field("score", pa.float64()),
            _field("threshold", pa.float64()),
            _field("stage", text),
            _field("error_class", text),
            _field("message", text),
            _field("attempts", pa.int32(), required=True),
            _field("duplicate_of", text),
            _field("source_uri", text),
            _field("source_sha256", text),
            _field("source_bytes", pa.int64(), unit="byte"),
            *_place_fields(),
            _field("start_s", pa.float64(), unit="second from the first frame"),
            _field("end_s", pa.float64(), unit="second from the first frame, exclusive"),
            _field("shot_index", pa.int32()),
            *_shape_fields(),
            *SCORE_FIELDS,
            _field("frames_decoded", pa.int64(), unit="source frame"),
            _field("decode_errors", pa.int64()),
            _field("num_candidates", pa.int32()),
            _field("num_kept", pa.int32()),
            _field("payload_kind", text),
            _field("payload_sha256", text),
            _field("shard", text, unit="path below the dataset"),
            _field("offset", pa.int64(), unit="byte"),
            _field("length", pa.int64(), unit="byte"),
            _field("crc32", pa.int64(), range="[0, 2^32)"),
            _field("prep_digest", text),
            _field("keep_digest", text),
        ]
    )


def captions_schema() -> pa.Schema:
    """Return the columns of annotations/captions; a caption is bound to the payload it is of."""
    text = pa.utf8()
    return pa.schema(
        [
            _field("clip_id", text, required=True),
            _field("producer", text, required=True),
            _field("payload_sha256", text, required=True),
            _field("caption", text, required=True),
            _field("rank", pa.int32(), required=True, direction="lower"),
        ]
    )


def view_schema() -> pa.Schema:
    """Return the columns of a frozen training selection; its rows are sorted by clip_id."""
    return pa.schema(
        [
            _field("clip_id", pa.binary(32), required=True),
            _field("shard", pa.utf8(), required=True),
            _field("offset", pa.int64(), required=True, unit="byte"),
            _field("length", pa.int64(), required=True, unit="byte"),
            _field("crc32", pa.int64(), required=True),
            _field("frame_count", pa.int32(), required=True, unit="frame"),
            _field("width", pa.int32(), required=True, unit="px"),
            _field("height", pa.int32(), required=True, unit="px"),
            _field("caption", pa.utf8(), required=True),
        ]
    )
