"""Finding videos, and pictures where stills are wanted, on disk and saying who they are.

Folders are walked in full, links to folders at most once each. What looks like a video but cannot
be one (a folder called x.mp4) is listed too: every input gets a fate, none is dropped here.
"""

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3gp", "asf", "avi", "flv", "ivf", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg"),
        *("mts", "mxf", "nut", "ogg", "ogv", "ts", "vob", "webm", "wmv", "y4m"),
    )
)
PICTURE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp"))


class SourceError(ValueError):
    """A source that gives no clips, with the words of its fate."""

    def __init__(self, stage: str, error_class: str, message: str) -> None:
        super().__init__(stage, error_class, message)
        self.stage, self.error_class, self.message = stage, error_class, message

    def __str__(self) -> str:
        return f"{self.stage}: {self.error_class}: {self.message}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A file to curate: absolute path, size in bytes and modification time when it was listed."""

    uri: str
    bytes: int
    mtime_ns: int

    @property
    def printable_uri(self) -> str:
        """The path as valid Unicode, for tables and people; other bytes appear in hexadecimal."""
        return os.fsencode(self.uri).decode("utf-8", "backslashreplace")


def _walk(folder: Path, seen: set[tuple[int, int]], suffixes: frozenset[str]) -> Iterator[Path]:
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError:
        yield folder  # its fate will say that nobody could look inside
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = Path(entry.path)
        if path.suffix.lower() in suffixes:
            yield path
        if entry.is_dir():
            yield from _walk(path, seen, suffixes)


def _matches(pattern: str, suffixes: frozenset[str]) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        return list(_walk(path, set(), suffixes))
    if os.path.lexists(path):
        return [path]
    found: list[Path] = []
    for name in sorted(glob.glob(str(path), recursive=True)):  # noqa: PTH207 - Path.glob refuses absolute patterns
        inside = Path(name)
        is_folder = inside.is_dir() and inside.suffix.lower() not in suffixes
        found += _walk(inside, set(), suffixes) if is_folder else [inside]
    return found


def _source(path: Path) -> Source:
    uri = os.path.abspath(path)  # noqa: PTH100 - resolve() would follow the link the user named
    try:
        status = path.stat()
    except OSError:  # a dangling link or a vanished file: its fate says so
        return Source(uri=uri, bytes=0, mtime_ns=0)
    return Source(uri=uri, bytes=status.st_size, mtime_ns=status.st_mtime_ns)


def list_sources(patterns: Sequence[str], *, pictures: bool = False) -> list[Source]:
    """List the videos behind folders, globs and single files, sorted by path, each once.

    With `pictures`, for a contract of stills, pictures in folders are listed too.
    Raises FileNotFoundError naming the first pattern that matches nothing.
    """
    suffixes = VIDEO_SUFFIXES | PICTURE_SUFFIXES if pictures else VIDEO_SUFFIXES
    wanted = "video or picture" if pictures else "video"
    found: dict[str, Source] = {}
    for pattern in patterns:
        paths = _matches(pattern, suffixes)
        if not paths:
            raise FileNotFoundError(
                f"source {pattern!r}: no {wanted} found; check the path, or name a file explicitly"
            )
        for path in paths:
            source = _source(path)
            found.setdefault(source.uri, source)
    return [found[uri] for uri in sorted(found)]


def sha256_file(path: str | Path) -> str:
    """Return the hex sha256 of a file, read as a stream; raises OSError."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(source: Source) -> str:
    """Return the hex sha256 of a source, or "" when it cannot be read; its fate will say why."""
    try:
        # A fifo or device would block or never end.
        return sha256_file(source.uri) if Path(source.uri).is_file() else ""
    except OSError:
        return ""


def check_readable(source: Source, max_bytes: int) -> None:
    """Raise SourceError unless the source is a file with content, within the size limit."""
    path = Path(source.uri)
    try:
        if path.is_dir():
            raise SourceError("open", "IsADirectoryError", "a folder, not a file")
        if path.exists() and not path.is_file():
            raise SourceError("open", "NotAFile", "neither a file nor a folder")
        with path.open("rb") as file:
            if not file.read(1):
                raise SourceError("open", "EmptyFile", "0 bytes")
        size = path.stat().st_size
    except OSError as error:
        raise SourceError("open", type(error).__name__, error.strerror or str(error)) from error
    if size > max_bytes:
        message = f"{size} bytes, more than max_source_bytes={max_bytes}"
        raise SourceError("open", "TooLarge", message)


def check_unchanged(source: Source) -> None:
    """Raise SourceError when the file is no longer the one that was listed."""
    try:
        status = Path(source.uri).stat()
    except OSError as error:
        raise SourceError("read", "Vanished", "the file vanished while it was read") from error
    if (status.st_size, status.st_mtime_ns) != (source.bytes, source.mtime_ns):
        raise SourceError("read", "Changed", "the file changed after it was listed")
