"""The keys of the dataset commands."""

import math
from dataclasses import dataclass, field
from typing import Literal

from ingest.clip import Contract
from ingest.select import Selection


@dataclass(frozen=True, kw_only=True, slots=True)
class At:
    """Which version: a tag or a number, empty for the newest."""

    at: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verify:
    """What is compared, and with how many threads."""

    at: str = ""
    how: Literal["crc", "sha256", "decode"] = "crc"
    threads: int = 4

    def __post_init__(self) -> None:
        """Check the number."""
        if self.threads < 1:
            raise ValueError("threads: at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tag:
    """Whether the tag is taken away."""

    remove: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Compact:
    """How big shards are to be."""

    target_bytes: int = 128 << 20

    def __post_init__(self) -> None:
        """Check the size."""
        if self.target_bytes < 1:
            raise ValueError("target_bytes: at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Collect:
    """What is too young to be removed: longer than any run takes."""

    older_than_s: float = 7 * 86400.0

    def __post_init__(self) -> None:
        """Check the age."""
        if not 0 <= self.older_than_s < math.inf:
            raise ValueError("older_than_s: at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Delete:
    """What is taken down and why; the reason is kept for ever."""

    source: tuple[str, ...] = ()
    clip: tuple[str, ...] = ()
    reason: str
    tracking_uri: str = ""

    def __post_init__(self) -> None:
        """Check that there is something to do and a reason."""
        if not self.source and not self.clip:
            raise ValueError("source or clip: name what is to be taken down")
        if not self.reason.strip():
            raise ValueError("reason: say why, it is kept in the log")


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """Which clips of which version, and in what form."""

    at: str = ""
    format: Literal["webdataset", "folder", "lance"] = "webdataset"
    select: Selection = field(default_factory=Selection)
    shard_bytes: int = 512 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Import:
    """What is brought in: clips in some form, or what a file says of clips that are there."""

    as_: Literal["clips", "labels", "captions", "rights"] = "clips"
    format: Literal["auto", "webdataset", "folder", "lance"] = "auto"
    contract: Contract | None = None
    workers: int = 2
    producer: str = ""
    rank: int = -1
