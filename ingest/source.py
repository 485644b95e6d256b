"""What a source is: a video or picture to curate, where it lies, and what people said of it.

Four kinds: a file, an object of a store (s3://), a member of a tar (`member`), and a folder of
pictures that are the frames of one video (`frames_fps`).
"""

import os
import re
from dataclasses import dataclass
from fractions import Fraction
from math import inf
from typing import Literal

from ingest.rates import COMMON_FPS, MAX_DENOMINATOR, MAX_FPS

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3gp", "asf", "avi", "flv", "ivf", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg"),
        *("mts", "mxf", "nut", "ogg", "ogv", "ts", "vob", "webm", "wmv", "y4m"),
    )
)
PICTURE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp"))
TAR_SUFFIX = ".tar"
WILD = frozenset("*?[")
_MEMBER_OF = re.compile(rf"(.*?{re.escape(TAR_SUFFIX)})#", re.DOTALL | re.IGNORECASE)
_DIGITS = re.compile(r"([0-9]+)")
_COMMON_WITHIN = 2e-4  # people write 29.97 or 23.98 and mean 30000/1001 and 24000/1001


class SourceError(ValueError):
    """A source that gives no clips, with the words of its fate."""

    def __init__(self, stage: str, error_class: str, message: str) -> None:
        super().__init__(stage, error_class, message)
        self.stage, self.error_class, self.message = stage, error_class, message

    def __str__(self) -> str:
        return f"{self.stage}: {self.error_class}: {self.message}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Spoken:
    """A caption, and from when to when in its video it holds."""

    text: str
    start_s: float = 0.0
    end_s: float = inf


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What a manifest, a tar or a folder's name says of a source; "" where it is silent."""

    captions: tuple[Spoken, ...] = ()
    label: str = ""
    licence: str = ""
    consent: str = ""

    def joined(self, other: "Said") -> "Said":
        """Return what both say; raises ValueError when they differ in what can be said once."""
        return Said(
            captions=tuple(dict.fromkeys((*self.captions, *other.captions))),
            label=_agreed("label", self.label, other.label),
            licence=_agreed("licence", self.licence, other.licence),
            consent=_agreed("consent", self.consent, other.consent),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """Where in its tar a source lies; with a `problem` (class, message) it can only fail of that.

    `tar_bytes` is the size of the tar when it was listed. A tar that is itself the problem has a
    source too.
    """

    tar: str
    tar_bytes: int = 0
    offset: int = 0
    problem: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A video or picture to curate, as it was when it was listed: absolute path or URI, size, time.

    `etag` is an object store's word for the content; for a folder of frames a digest of their
    names, sizes and times. Frames play at `frames_fps`.
    """

    uri: str
    bytes: int
    mtime_ns: int
    etag: str = ""
    said: Said = Said()
    frames_fps: Fraction | None = None
    member: Member | None = None

    @property
    def key(self) -> str:
        """What tells a source from all others: its URI, and more where that can mean two things.

        A file may be called like a member of a tar: a.tar#b.mp4.
        """
        tar = "" if self.member is None or self.member.tar == self.uri else self.member.tar
        return self.uri if tar == tar_in(self.uri) else f"{self.uri}\0{tar}"

    @property
    def printable_uri(self) -> str:
        """The key as valid Unicode, for tables and people; other bytes appear in hexadecimal."""
        shown = os.fsencode(self.key).decode("utf-8", "backslashreplace")
        return shown.replace("\0", "\\x00")


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What folders mean. With `frames_fps` > 0, one that directly holds pictures is one video.

    `labels = "folder"`: the folder directly below the named root is the class of what lies in it,
    as in UCF-101 and SkyTimelapse. 29.97 means 30000/1001, and so on.
    """

    frames_fps: float = 0.0
    labels: Literal["none", "folder"] = "none"

    def __post_init__(self) -> None:
        """Refuse what is no rate."""
        if not 0 <= self.frames_fps <= MAX_FPS:
            raise ValueError(f"frames_fps={self.frames_fps:g}: 0 (no frame folders) to {MAX_FPS}")
        if self.frames_fps and not self.rate:
            raise ValueError(f"frames_fps={self.frames_fps:g}: below 1/{MAX_DENOMINATOR}")

    @property
    def rate(self) -> Fraction | None:
        """The exact rate of frame folders, None when pictures are pictures."""
        if not self.frames_fps:
            return None
        common = min(COMMON_FPS, key=lambda rate: abs(rate - self.frames_fps))
        if abs(float(common) - self.frames_fps) <= _COMMON_WITHIN * common:
            return common
        return Fraction(self.frames_fps).limit_denominator(MAX_DENOMINATOR)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What listing looks for: files with these suffixes, in folders of this layout."""

    suffixes: frozenset[str]
    layout: Layout

    @classmethod
    def of(cls, layout: Layout, *, pictures: bool) -> "Wanted":
        """Return what is listed; frames of a video are no pictures of their own."""
        stills = pictures and not layout.frames_fps
        return cls(
            suffixes=VIDEO_SUFFIXES | PICTURE_SUFFIXES if stills else VIDEO_SUFFIXES, layout=layout
        )

    def said(self, inside: str) -> Said:
        """Return what the way from the named root to a source (with slashes) says of it."""
        folder, slash, _rest = inside.partition("/")
        labelled = slash and self.layout.labels == "folder"
        # A name need not be valid Unicode; what is stored must be.
        label = os.fsencode(folder).decode("utf-8", "backslashreplace")
        return Said(label=label) if labelled else Said()


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name in small letters, with its dot; "" for none."""
    base = name.rpartition("/")[2]
    stem, dot, suffix = base.rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""


def tar_in(uri: str) -> str:
    """Return the tar of a member's URI, as it is read when nothing else is known; "" for none."""
    found = _MEMBER_OF.match(uri)
    return found[1] if found else ""


def fixed_part(pattern: str) -> str:
    """Return the folder part of a glob before its first wild card: the root that it names."""
    parts = pattern.split("/")
    first = next((at for at, part in enumerate(parts) if WILD & set(part)), len(parts))
    return "/".join(parts[: min(first, len(parts) - 1)])


def natural(name: str) -> tuple[list[tuple[float, str]], str]:
    """Return the key that sorts frame_2 before frame_10."""
    split = enumerate(_DIGITS.split(name))
    return [(int(part), "") if at % 2 else (inf, part) for at, part in split if part], name


def _agreed(what: str, one: str, other: str) -> str:
    if one and other and one != other:
        raise ValueError(f"two different values of {what}: {one!r} and {other!r}")
    return one or other
