"""WebDataset tar shards: files of one key lie side by side, key.mp4, key.json, key.txt.

Written with nothing that changes from run to run; read without extracting anything: no name in a
tar ever becomes a name on disk.
"""

import hashlib
import io
import os
import secrets
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from ingest import passport
from ingest.files import TEMPORARY, storage_error, sync_folder
from ingest.offers import (
    MAX_SHEET_BYTES,
    MEDIA,
    Malformed,
    Offered,
    check_name,
    json_object,
    written_at,
)
from ingest.places import OnDisk
from ingest.tar_headers import BLOCK, Headers, entries

SHEETS = ("json", "txt", "cls")


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A finished file of an export."""

    name: str
    bytes: int
    sha256: str
    clips: int


def sample(row: Mapping[str, Any], payload: bytes | memoryview) -> tuple[str, dict[str, bytes]]:
    """Return the key and the files of a clip, from its passport."""
    return row["clip_id"], {
        passport.extension(row["payload_kind"]): bytes(payload),
        "json": passport.as_json(row),
        "txt": row["caption"].encode(),
    }


def bounds(table: pa.Table, first: int, shard_bytes: int) -> Iterator[int]:
    """Yield where each tar from clip `first` ends: before the clip that would make it too big."""
    filled = 0
    for number, row in enumerate(passport.rows(table, first), first):
        sizes = (row["length"], len(passport.as_json(row)), len(row["caption"].encode()))
        size = sum(BLOCK + -(-size // BLOCK) * BLOCK for size in sizes)
        if filled and filled + size > shard_bytes:
            yield number
            filled = 0
        filled += size
    if filled:
        yield table.num_rows


def write_tar(path: Path, samples: Iterable[tuple[str, dict[str, bytes]]]) -> Written:
    """Write samples (key, content by extension) as a tar; the same samples give the same bytes.

    Raises StorageError.
    """
    with _Whole(path) as sink:
        clips = 0
        with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for key, files in samples:
                for extension, data in files.items():
                    entry = tarfile.TarInfo(f"{key}.{extension}")
                    entry.size, entry.mode = len(data), 0o644
                    tar.addfile(entry, io.BytesIO(data))
                clips += 1
    return Written(name=path.name, bytes=sink.written, sha256=sink.hash.hexdigest(), clips=clips)


class _Whole(io.RawIOBase):
    """A file that appears under its name when the block ends well; hashed on the way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.parent / f".{path.name}{TEMPORARY}{secrets.token_hex(8)}"
        self.hash, self.written = hashlib.sha256(), 0
        try:
            self._file = self._temporary.open("xb")
        except OSError as error:
            raise storage_error(error, path) from error

    def write(self, data: Any) -> int:
        self.hash.update(data)
        self.written += len(data)
        try:
            return self._file.write(data)
        except OSError as error:
            raise storage_error(error, self._path) from error

    def tell(self) -> int:
        return self.written

    def __exit__(self, kind: object, *_rest: object) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._temporary.replace(self._path)
                sync_folder(self._path.parent)
        except OSError as error:
            raise storage_error(error, self._path) from error
        finally:
            for end in (self._file.close, self._temporary.unlink):
                with suppress(OSError):  # renamed, or the disk is gone: the first error is the one
                    end()


@dataclass(kw_only=True)
class _Group:
    key: str
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    problem: str = ""


class TarPart:
    """One tar to import: its samples in order. `problem` says what ended the tar early, if anything."""

    def __init__(self, path: Path, name: str, sha256: str) -> None:
        self.path, self.name, self.sha256, self.problem = path, name, sha256, ""
        self.at = written_at(path)
        self._sheets: list[dict[str, tuple[int, int]]] = []
        self.offers = [self._offered(group) for group in self._unique(self._groups())]

    def _groups(self) -> list[_Group]:
        groups: list[_Group] = []
        size = self.path.stat().st_size
        try:
            for entry in entries(Headers(OnDisk(str(self.path)).read_at, size)):
                _add(groups, entry)
        except (tarfile.TarError, OSError, ValueError) as error:
            self.problem = f"not a whole tar: {error}"
        return groups

    @staticmethod
    def _unique(groups: list[_Group]) -> list[_Group]:
        seen: set[str] = set()
        for group in groups:
            if group.key in seen:
                group.problem = group.problem or "the key occurs twice in its tar"
            seen.add(group.key)
        return groups

    def _offered(self, group: _Group) -> Offered:
        media = [name for name in group.files if name in MEDIA]
        others = [name for name in group.files if name not in SHEETS]
        number = len(self._sheets)
        self._sheets.append({n: p for n, p in group.files.items() if n in SHEETS})
        problem = group.problem
        if len(media) > 1:
            problem = problem or f"several payloads: {', '.join(sorted(media))}"
        if not others:
            problem = problem or "no payload"
        extension = next(iter(media or others), "")
        offset, length = group.files.get(extension, (0, 0))
        return Offered(
            name=f"{self.name}/{group.key}.{extension}".rstrip("."),
            at=number,
            offset=offset,
            length=length,
            problem=problem,
        )

    def sheet(self, offered: Offered) -> dict[str, Any]:
        """Return what the tar says about a sample; raises Malformed."""
        files = self._sheets[offered.at]
        values = json_object(self._text("json", files)) if "json" in files else {}
        if "txt" in files and not values.get("caption"):
            values["caption"] = self._text("txt", files)
        if "cls" in files and values.get("label") in (None, ""):
            values["label"] = self._text("cls", files).strip()
        return values

    def _text(self, name: str, files: dict[str, tuple[int, int]]) -> str:
        offset, length = files[name]
        if length > MAX_SHEET_BYTES:
            raise Malformed(f".{name} has {length} bytes, more than {MAX_SHEET_BYTES}")
        try:
            return self._bytes(offset, length).decode()
        except UnicodeDecodeError as error:
            raise Malformed(f".{name} is not UTF-8") from error

    def payload(self, offered: Offered) -> bytes:
        """Return the bytes of a sample's payload; raises OSError."""
        return self._bytes(offered.offset, offered.length)

    def _bytes(self, offset: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            return os.pread(file.fileno(), length, offset)


def _add(groups: list[_Group], entry: tarfile.TarInfo) -> None:
    """Put a member into the group of its key; WebDataset's rule: up to the first dot of the name."""
    folder, _, base = entry.name.rpartition("/")
    stem, _, extension = base.partition(".")
    key = f"{folder}/{stem}" if folder else stem
    if not groups or groups[-1].key != key:
        groups.append(_Group(key=key))
    group, extension = groups[-1], extension.lower()
    if not entry.isreg() or entry.issparse():
        group.problem = group.problem or f".{extension} is a link or no plain file"
    elif extension in group.files:
        group.problem = group.problem or f".{extension} occurs twice"
    else:
        group.files[extension] = (entry.offset_data, entry.size)
    group.problem = group.problem or check_name(entry.name)
