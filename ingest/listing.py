"""Sources in folders and globs of this machine, found without opening any file.

Folders are walked in full, links to folders at most once each. What looks like a video but cannot
be one (a folder called x.mp4) is listed too: every input gets a fate, none is dropped here.
"""

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ingest import frames
from ingest.source import TAR_SUFFIX, Said, Source, Wanted, fixed_part, suffix_of
from ingest.tar_members import members


def matches(pattern: str, wanted: Wanted) -> Iterator[Source]:
    """Yield what is behind a folder, a file or a glob; nothing when there is nothing."""
    path = os.path.abspath(Path(pattern).expanduser())  # noqa: PTH100 - resolve() would follow links
    if os.path.lexists(path):
        walk = _Walk(wanted, path)
        yield from walk.folder(path) if Path(path).is_dir() else walk.file(path)
        return
    walk = _Walk(wanted, fixed_part(path))
    for found in sorted(glob.glob(path, recursive=True)):  # noqa: PTH207 - Path.glob refuses absolute patterns
        if Path(found).is_dir() and suffix_of(found) not in wanted.suffixes:
            yield from walk.folder(found)
        else:
            yield from walk.file(found)


def named(path: str, wanted: Wanted, said: Said) -> Source:
    """Return the source at an absolute path that somebody named, whatever is there."""
    try:
        status = Path(path).stat()
        if wanted.layout.rate and Path(path).is_dir():
            return frames.source_of(path, frames.list_frames(path), wanted.layout.rate, said)
    except OSError:  # a dangling link or a vanished file: its fate says so
        return Source(uri=path, bytes=0, mtime_ns=0, said=said)
    return Source(uri=path, bytes=status.st_size, mtime_ns=status.st_mtime_ns, said=said)


@dataclass
class _Walk:
    wanted: Wanted
    root: str
    seen: set[tuple[int, int]] = field(default_factory=set)

    def folder(self, path: str) -> Iterator[Source]:
        """Yield the sources in a folder, in full."""
        try:
            status = Path(path).stat()
            if (status.st_dev, status.st_ino) in self.seen:
                return
            self.seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:  # its fate will say that nobody could look inside
            yield named(path, self.wanted, Said())
            return
        if self.wanted.layout.rate:
            pictures = frames.of_entries(entries)
            if pictures:
                said = self._said(path)
                yield frames.source_of(path, pictures, self.wanted.layout.rate, said)
        for entry in entries:
            if not entry.name.startswith("."):
                yield from self._entry(entry)

    def _entry(self, entry: "os.DirEntry[str]") -> Iterator[Source]:
        suffix, is_folder = suffix_of(entry.name), frames.is_folder(entry)
        if suffix in self.wanted.suffixes:
            try:
                status = entry.stat()
                size, mtime_ns = status.st_size, status.st_mtime_ns
            except OSError:  # a dangling link or a vanished file: its fate says so
                size = mtime_ns = 0
            said = self._said(entry.path)
            yield Source(uri=entry.path, bytes=size, mtime_ns=mtime_ns, said=said)
        if is_folder:
            yield from self.folder(entry.path)
        elif suffix == TAR_SUFFIX:
            yield from members(entry.path, self.wanted, self._said(entry.path))

    def file(self, path: str) -> Iterator[Source]:
        """Yield a file that was named, whatever its suffix, or what a tar holds."""
        if suffix_of(path) == TAR_SUFFIX and not Path(path).is_dir():
            yield from members(path, self.wanted, self._said(path))
        else:
            yield named(path, self.wanted, self._said(path))

    def _said(self, path: str) -> Said:
        return self.wanted.said(path.removeprefix(f"{self.root.rstrip('/')}/"))
