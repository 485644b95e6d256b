"""Folders of pictures that are the frames of one video, on a disk or in a store."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from ingest.clip import digest_of
from ingest.files import StorageError, storage_error
from ingest.objects import SCHEME, Entry
from ingest.places import Facts, InStore, OnDisk, copy, place_of, split
from ingest.source import PICTURE_SUFFIXES, Said, Source, SourceError, natural, suffix_of

SAME_FORMAT = {".jpeg": ".jpg"}
DOWNLOADS = 8  # at a time: frames are small, and a store answers slowly


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """A picture in a folder; 0 bytes and time 0 when it cannot even be looked at."""

    name: str
    facts: Facts


def is_frame(name: str) -> bool:
    """Whether a name in a folder is that of a picture; hidden ones do not count."""
    return not name.startswith(".") and suffix_of(name) in PICTURE_SUFFIXES


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder or a link to one; a link that leads to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def of_entries(entries: Iterable["os.DirEntry[str]"]) -> list[Frame]:
    """Return the frames among the entries of a folder, in natural order."""
    frames = [
        Frame(name=entry.name, facts=_facts(entry))
        for entry in entries
        if is_frame(entry.name) and not is_folder(entry)
    ]
    return sorted(frames, key=lambda frame: natural(frame.name))


def of_objects(entries: Iterable[Entry], prefix: str) -> list[Frame]:
    """Return the frames that lie directly below `prefix` (with its slash), in natural order."""
    named = ((entry.name.removeprefix(prefix), entry) for entry in entries)
    frames = [Frame(name=n, facts=Facts.of(e)) for n, e in named if "/" not in n and is_frame(n)]
    return sorted(frames, key=lambda frame: natural(frame.name))


def source_of(uri: str, frames: Sequence[Frame], fps: Fraction, said: Said) -> Source:
    """Return the source that a folder with frames is."""
    return Source(
        uri=uri,
        bytes=sum(frame.facts.bytes for frame in frames),
        mtime_ns=max((frame.facts.mtime_ns for frame in frames), default=0),
        etag=_digest(frames),
        said=said,
        frames_fps=fps,
    )


def list_frames(uri: str) -> list[Frame]:
    """Return the frames of a folder as it is now; raises OSError."""
    if not uri.startswith(SCHEME):
        with os.scandir(uri) as entries:
            return of_entries(entries)
    root, key = split(uri)
    return of_objects(root.names(key), f"{key}/" if key else "")


def check(frames: Sequence[Frame], max_bytes: float) -> str:
    """Return the suffix that all frames share; raises SourceError for what is no video."""
    if not frames:
        raise SourceError("open", "EmptyFolder", "no picture in the folder")
    suffixes = sorted({suffix_of(frame.name) for frame in frames})
    formats = {SAME_FORMAT.get(suffix, suffix) for suffix in suffixes}
    if len(formats) > 1:
        raise SourceError("open", "MixedFrames", f"pictures of several kinds: {' '.join(suffixes)}")
    for frame in frames:
        if not frame.facts.bytes:
            raise SourceError("open", "EmptyFile", f"frame {frame.name!r} has 0 bytes")
    size = sum(frame.facts.bytes for frame in frames)
    if size > max_bytes:
        message = f"{size} bytes, more than max_source_bytes={max_bytes}"
        raise SourceError("open", "TooLarge", message)
    return formats.pop()


def unchanged(source: Source) -> list[Frame]:
    """Return the frames; raises SourceError when some came, went or changed since they were listed."""
    try:
        frames = list_frames(source.uri)
    except StorageError:
        raise
    except OSError as error:
        raise SourceError("read", "Vanished", "the folder vanished while it was read") from error
    if _digest(frames) != source.etag:
        raise SourceError("read", "Changed", "the folder changed after it was listed")
    return frames


def sha256(hashes: Sequence[str], fps: Fraction) -> str:
    """Return the hex sha256 of a video in frames, from theirs: names and place do not matter."""
    return digest_of({"frames": list(hashes), "fps": [fps.numerator, fps.denominator]})


def bring(source: Source, frames: Sequence[Frame], suffix: str, folder: Path) -> str:
    """Give `folder` the frames as 00000001.png and so on; return that as a pattern of names.

    Frames on a disk are linked to, those of a store are copied. Raises SourceError, StorageError.
    """
    named = [(frame, folder / f"{at:08d}{suffix}") for at, frame in enumerate(frames, 1)]
    if source.uri.startswith(SCHEME):
        with ThreadPoolExecutor(DOWNLOADS) as pool:
            list(
                pool.map(lambda pair: copy(_place(source, pair[0]), *_all(pair[0]), pair[1]), named)
            )
    else:
        try:
            for frame, path in named:
                path.symlink_to(f"{source.uri}/{frame.name}")
        except OSError as error:
            raise storage_error(error, folder) from error
    # ffmpeg takes a single percent sign in the folder's name for the beginning of a pattern too.
    return f"{folder}/".replace("%", "%%") + f"%08d{suffix}"


def chunks(source: Source, frame: Frame) -> Iterator[bytes]:
    """Yield the bytes of a frame; raises SourceError."""
    return _place(source, frame).chunks(0, frame.facts.bytes, frame.facts.etag)


def _place(source: Source, frame: Frame) -> OnDisk | InStore:
    return place_of(f"{source.uri.rstrip('/')}/{frame.name}")


def _all(frame: Frame) -> tuple[int, int, str]:
    return 0, frame.facts.bytes, frame.facts.etag


def _facts(entry: "os.DirEntry[str]") -> Facts:
    try:
        status = entry.stat()
    except OSError:
        return Facts(bytes=0, mtime_ns=0)
    size = status.st_size if entry.is_file() else 0  # a fifo has none to offer
    return Facts(bytes=size, mtime_ns=status.st_mtime_ns)


def _digest(frames: Sequence[Frame]) -> str:
    return digest_of(
        [[os.fsencode(f.name).hex(), f.facts.bytes, f.facts.mtime_ns, f.facts.etag] for f in frames]
    )
