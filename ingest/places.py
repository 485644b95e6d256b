"""One file on a disk or one object in a store, read the same way; trouble becomes a source's fate."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ingest.files import StorageError, storage_error
from ingest.objects import CHUNK_BYTES, SCHEME, Entry, Root, Superseded
from ingest.source import SourceError


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Size, time of the last change, and in a store the etag: equal facts, equal content."""

    bytes: int
    mtime_ns: int
    etag: str = ""

    @classmethod
    def of(cls, entry: Entry) -> "Facts":
        """Return the facts of an object."""
        return cls(bytes=entry.bytes, mtime_ns=int(entry.modified_s * 1e9), etag=entry.etag)


@dataclass(frozen=True, slots=True)
class OnDisk:
    """A path that ought to be a file."""

    uri: str

    def facts(self) -> Facts:
        """Return the facts; raises SourceError unless this is a file that can be read."""
        path = Path(self.uri)
        with _fate("open"):
            if path.is_dir():
                raise SourceError("open", "IsADirectoryError", "a folder, not a file")
            # A fifo or device would block or never end.
            if path.exists() and not path.is_file():
                raise SourceError("open", "NotAFile", "neither a file nor a folder")
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
        return Facts(bytes=status.st_size, mtime_ns=status.st_mtime_ns)

    def now(self) -> Facts:
        """Return the facts without opening the file; raises OSError."""
        status = Path(self.uri).stat()
        return Facts(bytes=status.st_size, mtime_ns=status.st_mtime_ns)

    def chunks(self, start: int, length: int, _etag: str = "") -> Iterator[bytes]:
        """Yield up to `length` bytes from `start`; raises SourceError."""
        with _fate("read"), Path(self.uri).open("rb") as file:
            while length > 0:
                chunk = os.pread(file.fileno(), min(CHUNK_BYTES, length), start)
                if not chunk:
                    return
                start, length = start + len(chunk), length - len(chunk)
                yield chunk

    def read_at(self, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`; raises OSError."""
        with Path(self.uri).open("rb") as file:
            return os.pread(file.fileno(), length, start)


@dataclass(frozen=True, slots=True)
class InStore:
    """An object, s3://bucket/key."""

    uri: str

    def facts(self) -> Facts:
        """Return the facts; raises SourceError when there is no such object for us."""
        root, key = split(self.uri)
        with _fate("open"):
            return Facts.of(root.entry(key))

    def now(self) -> Facts:
        """Return the facts; raises OSError."""
        root, key = split(self.uri)
        return Facts.of(root.entry(key))

    def chunks(self, start: int, length: int, etag: str = "") -> Iterator[bytes]:
        """Yield `length` bytes from `start`; raises SourceError, also when the etag is another."""
        root, key = split(self.uri)
        strong = "" if etag.startswith("W/") else etag  # a weak one never matches
        with _fate("read"):
            if length:
                yield from root.stream(key, etag=strong, start=start, length=length)

    def read_at(self, start: int, length: int) -> bytes:
        """Return `length` bytes from `start` that exist; raises OSError."""
        root, key = split(self.uri)
        return root.read_range(key, start, length)


def place_of(uri: str) -> OnDisk | InStore:
    """Return the place of a path or URI."""
    return InStore(uri) if uri.startswith(SCHEME) else OnDisk(uri)


def split(uri: str) -> tuple[Root, str]:
    """Return a bucket and a key in it, "" for the bucket itself; raises ValueError without a bucket."""
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise ValueError(f"source {uri!r}: name a bucket: {SCHEME}bucket/prefix")
    return Root(f"{SCHEME}{bucket}"), key


def copy(place: OnDisk | InStore, start: int, length: int, etag: str, path: Path) -> None:
    """Copy a range of a file to a new one at `path`; raises SourceError, StorageError."""
    written = 0
    with _writing(path), path.open("xb") as file:
        for chunk in place.chunks(start, length, etag):
            written += file.write(chunk)
    if written != length:
        raise SourceError("read", "Truncated", f"{written} of {length} bytes came")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(error, path) from error


@contextmanager
def _fate(stage: str) -> Iterator[None]:
    """Make what is wrong with one file a SourceError; a store out of reach stays a StorageError."""
    try:
        yield
    except SourceError:
        raise
    except Superseded as error:
        raise SourceError("read", "Changed", "the object changed after it was listed") from error
    except StorageError as error:
        if error.errno != errno.EACCES:
            raise
        raise SourceError(stage, "PermissionError", error.strerror or str(error)) from error
    except OSError as error:
        raise SourceError(stage, type(error).__name__, error.strerror or str(error)) from error
    except ValueError as error:  # a key that the store's library takes for no path
        raise SourceError(stage, "InvalidName", str(error).splitlines()[0]) from error
