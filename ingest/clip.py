"""The clip contract, how clips are prepared, and who a clip is.

A clip is exactly `frames` frames from inside one shot, at the contract's rate. Its id is a hash of
where it comes from and how it is prepared, so it is known before anything is encoded and equal on
every retry.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Literal

LOOK_FPS = 16  # cuts are found in this many frames a second: what the thresholds of Prep are for
MAX_INTERVAL = 10_000
PREP_VERSION = 3  # raise it when the same Prep starts to give other pixels or other windows
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
    """What every clip of a dataset is: so many frames, and which ones of a source.

    With a number as `fps` a source is resampled to it: frame k of a clip is what was on screen k/fps
    seconds after its start. With fps = "native" nothing is resampled: a clip is every `interval`-th
    frame of the source as decoded, and plays at the source's own rate divided by `interval` (at the
    average rate where a source has no constant one). With frames = 1 clips are stills, which have no
    rate; sources may be pictures then, and `fps` and `interval` only say how many a video gives.
    """

    frames: int = 80
    fps: int | Literal["native"] = 16
    interval: int = 1

    def __post_init__(self) -> None:
        """Refuse a contract that no clip can hold, or that could be meant in two ways."""
        if isinstance(self.fps, str) and self.fps != "native":
            raise ValueError(f'contract: fps={self.fps!r} is neither a whole number nor "native"')
        if self.frames < 1 or (not isinstance(self.fps, str) and self.fps < 1):
            raise ValueError(
                f"contract: frames={self.frames} and fps={self.fps} must both be at least 1"
            )
        if not 1 <= self.interval <= MAX_INTERVAL:
            raise ValueError(
                f"contract: interval={self.interval} must be within 1 to {MAX_INTERVAL}"
            )
        if self.interval > 1 and not self.native:
            raise ValueError(
                f"contract: interval={self.interval} skips frames of the source, so it needs "
                f'fps="native"; for fewer frames a second lower fps={self.fps} instead'
            )

    @property
    def native(self) -> bool:
        """Whether clips hold the source's own frames, not resampled ones."""
        return self.fps == "native"

    @property
    def is_still(self) -> bool:
        """Whether a clip is one still image."""
        return self.frames == 1

    @property
    def step(self) -> int:
        """A clip takes every `step`-th of the frames that are decoded and looked at.

        Stills may lie seconds apart, between which nobody could tell a cut from a change.
        """
        if self.is_still and isinstance(self.fps, int):
            return -(-LOOK_FPS // self.fps)
        return self.interval

    @property
    def span(self) -> int:
        """How many decoded frames in a row a clip reaches over, the first and last included."""
        return (self.frames - 1) * self.step + 1

    def stream_fps(self, source_fps: Fraction) -> Fraction:
        """Return how many frames a second are decoded of a source that has `source_fps`."""
        return source_fps if isinstance(self.fps, str) else Fraction(self.fps * self.step)

    def payload_fps(self, source_fps: Fraction) -> Fraction:
        """Return the exact frames per second at which a clip of a source plays; 0 for a still."""
        return Fraction(0) if self.is_still else self.stream_fps(source_fps) / self.step

    def seconds(self, fps: Fraction | float) -> float:
        """Return how long a clip plays at `fps` frames per second; 0 for a still."""
        return 0.0 if self.is_still else float(self.frames / fps)

    def describe(self) -> str:
        """Return the contract in a few words for people."""
        every = "every frame" if self.interval == 1 else f"1 of {self.interval} frames"
        rate = f"{every} of the source" if self.native else f"{self.fps} fps"
        if self.is_still:
            return f"stills (from videos: {rate})"
        return f"{self.frames} frames, {rate}" if self.native else f"{self.frames} frames at {rate}"

    def settings(self) -> dict[str, int | str]:
        """Return the fields as stored and hashed; `Contract(**settings)` is this contract again.

        A field that is younger than stored datasets is left out at its default, so that their
        digests stay.
        """
        younger = {"interval": self.interval} if self.interval > 1 else {}
        return {"frames": self.frames, "fps": self.fps, **younger}


@dataclass(frozen=True, kw_only=True, slots=True)
class Prep:
    """How sources become payloads. Fields named in LIMITS guard the machine and change no pixel."""

    contract: Contract = field(default_factory=Contract)
    payload_short_side_px: int = 256
    crf: int = 20  # two levels below it files are a third larger, for 0.4 dB
    preset: Preset = "veryfast"
    gop: int = 16
    cut_trim_frames: int = 4  # at the contract's fps; for "native" and stills at LOOK_FPS
    cut_ratio: float = 1.5  # a jump at a cut, over the jumps around it
    cut_min_levels: float = 6.0  # the smallest jump that can be a cut
    cut_sure_levels: float = 45.0  # from here on the jumps around it do not count
    cut_likeness: float = 0.6  # correlation below which two frames are two pictures
    dissolve_residual: float = 0.35  # at most this part of a mixture is of neither; 0 finds none
    black_levels: float = 16.0
    detector: str = ""  # the digest of a shot detector that is not ours; curate fills it in
    crop_bars: bool = True
    max_unit_s: int = 300  # longer sources are worked on in parts, which end shots
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
        if self.max_unit_s < 10:
            raise ValueError(f"max_unit_s={self.max_unit_s}: must be at least 10")
        if self.gop < 1 or self.cut_trim_frames < 0:
            raise ValueError("gop must be at least 1 and cut_trim_frames at least 0")

    def digest(self) -> str:
        """Return the hex sha256 of everything that decides pixels and window positions."""
        values = {name: value for name, value in asdict(self).items() if name not in LIMITS}
        values["contract"] = self.contract.settings()
        if not self.detector:  # younger than stored datasets, whose digests stay
            del values["detector"]
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


def payload_kind(contract: Contract) -> str:
    """Return the kind of the payloads that curation stores under a contract."""
    return "png" if contract.is_still else "h264_mp4"


def payload_size(
    width: int, height: int, short_side_px: int, *, even: bool = True
) -> tuple[int, int]:
    """Return (width, height) of the payload: short side at most `short_side_px`, never enlarged.

    Both are even, as video codecs want; without `even` no row or column is lost to that.
    """
    scale = min(1.0, short_side_px / min(width, height))
    unit = 2 if even else 1

    def fitted(side: int) -> int:
        wanted = max(unit, int(side * scale / unit + 0.5) * unit)
        return min(wanted, max(unit, side // unit * unit))

    return fitted(width), fitted(height)


def played_s(frame_count: int, fps_num: int, fps_den: int) -> float:
    """Return how many seconds a stored clip plays, from its row's columns; 0 for a still."""
    return frame_count * fps_den / fps_num if fps_num else 0.0
