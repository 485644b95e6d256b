"""What is in a source, whatever its kind: whether it can be read, its hash, a file on this machine."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import inf
from pathlib import Path

from ingest import frames
from ingest.clip import digest_of
from ingest.files import StorageError
from ingest.places import InStore, OnDisk, copy, place_of
from ingest.scratch import room, shared, shared_path
from ingest.source import PICTURE_SUFFIXES, VIDEO_SUFFIXES, Source, SourceError, suffix_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Local:
    """Where a decoder finds a source: a file, or with a rate a pattern of names of its frames."""

    path: str
    frames_fps: Fraction | None = None


def check_readable(source: Source, max_bytes: int) -> None:
    """Raise SourceError unless the source is there with content, within the size limit."""
    if source.frames_fps is not None:
        frames.check(_frames(source), max_bytes)
        return
    if source.member is not None and source.member.problem is not None:
        raise SourceError("open", *source.member.problem)
    size = _place(source).facts().bytes
    if source.member is not None:
        size = source.bytes
    if not size:
        raise SourceError("open", "EmptyFile", "0 bytes")
    if size > max_bytes:
        message = f"{size} bytes, more than max_source_bytes={max_bytes}"
        raise SourceError("open", "TooLarge", message)


def check_unchanged(source: Source) -> None:
    """Raise SourceError when the source is no longer the one that was listed."""
    if source.frames_fps is not None:
        frames.unchanged(source)
        return
    try:
        now = _place(source).now()
    except StorageError:
        raise
    except OSError as error:
        raise SourceError("read", "Vanished", "the file vanished while it was read") from error
    size = source.bytes if source.member is None else source.member.tar_bytes
    if (now.bytes, now.mtime_ns, now.etag) != (size, source.mtime_ns, source.etag):
        raise SourceError("read", "Changed", "the file changed after it was listed")


def fingerprint(source: Source, *, max_bytes: float = inf) -> str:
    """Return the hex sha256 of a source, or "" when it cannot be read; its fate will say why.

    One of more than `max_bytes` is not read at all, for it can only fail of that. A member of a tar
    has the hash of its own bytes, a folder of frames one made of theirs and of its rate. Raises
    StorageError when an object store is out of reach: no fault of the source.
    """
    try:
        if source.frames_fps is not None:
            listed = _frames(source)
            frames.check(listed, min(source.bytes, max_bytes))
            hashes = [_sha256(frames.chunks(source, frame)) for frame in listed]
            return frames.sha256(hashes, source.frames_fps)
        if source.member is not None and source.member.problem is not None:
            return ""
        place = _place(source)
        facts = place.facts()
        size = facts.bytes if source.member is None else source.bytes
        if size > max_bytes:
            return ""
        return _sha256(place.chunks(_offset(source), size, source.etag))
    except SourceError:
        return ""


@contextmanager
def local(
    source: Source, scratch: Path | str, *, max_bytes: int, reading: tuple[int, int] = (0, 1)
) -> Iterator[Local]:
    """Give a source as a file or frames on this machine; what was copied to `scratch` goes after.

    A copy that is read several times, `reading` being which of how many, goes after all of them. Raises
    SourceError for a source that cannot be read, is too large or has changed, and StorageError when
    `scratch` is full or a store is out of reach.
    """
    check_readable(source, max_bytes)
    plain = source.frames_fps is None and source.member is None
    on_disk = plain and _place(source) == OnDisk(source.uri)
    if on_disk and "\n" not in source.uri:
        yield Local(path=source.uri)
        return
    if source.frames_fps is None and not on_disk:
        same = [os.fsencode(source.key).hex(), source.bytes, source.mtime_ns, source.etag]
        path = shared_path(Path(scratch), digest_of(same), _known_suffix(source.uri))
        with shared(path, source.bytes, partial(_fetch, source), reading=reading):
            check_unchanged(source)
            yield Local(path=str(path))
        return
    with room(Path(scratch)) as folder:
        if source.frames_fps is not None:
            listed = frames.unchanged(source)
            path = frames.bring(source, listed, frames.check(listed, max_bytes), folder)
        else:  # what follows a line break in a name could pass for a line of the decoder's log
            path = str(folder / "source")
            Path(path).symlink_to(source.uri)
        yield Local(path=path, frames_fps=source.frames_fps)


def _fetch(source: Source, path: Path) -> None:
    copy(_place(source), _offset(source), source.bytes, source.etag, path)
    check_unchanged(source)


def _place(source: Source) -> OnDisk | InStore:
    return place_of(source.uri if source.member is None else source.member.tar)


def _offset(source: Source) -> int:
    return 0 if source.member is None else source.member.offset


def _frames(source: Source) -> list[frames.Frame]:
    try:
        return frames.list_frames(source.uri)
    except StorageError:
        raise
    except OSError as error:
        raise SourceError("open", type(error).__name__, error.strerror or str(error)) from error


def _known_suffix(name: str) -> str:
    suffix = suffix_of(name)
    return suffix if suffix in VIDEO_SUFFIXES | PICTURE_SUFFIXES else ""


def _sha256(chunks: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for chunk in chunks:
        total.update(chunk)
    return total.hexdigest()
