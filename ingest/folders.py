"""Clips as plain files with one table that names them: what people browse, and what hubs publish.

The table's column `file_name` leads to each clip, as in the "video folder" layout.
"""

import json
import os
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ingest import passport
from ingest.files import TEMPORARY, atomic_write, storage_error
from ingest.offers import MEDIA, Malformed, Offered, check_name, json_object, written_at
from ingest.sheets import Line, lines

TABLE = "metadata.parquet"
FILES = "clips"
NAMES = ("file_name", "filename", "path", "file", "video")
ROW_GROUP = 4096


def file_name(row: Mapping[str, Any]) -> str:
    """Return where a clip's file lies in the folder: spread by the first two digits of its id."""
    extension = passport.extension(row["payload_kind"])
    return f"{FILES}/{row['clip_id'][:2]}/{row['clip_id']}.{extension}"


def write_clip(folder: Path, row: Mapping[str, Any], payload: bytes | memoryview) -> bool:
    """Write a clip's file; return False when the very same is there; raises StorageError."""
    path = folder / file_name(row)
    alike = path.is_file() and path.stat().st_size == row["length"]
    if alike and zlib.crc32(path.read_bytes()) == row["crc32"]:
        return False
    temporary = path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(payload)  # forced to disk all together, before the table names them
        temporary.replace(path)
    except OSError as error:
        raise storage_error(error, path) from error
    return True


def write_table(folder: Path, passports: pa.Table) -> bytes:
    """Write the table that names the clips and return its bytes; raises StorageError."""
    names = [file_name(row) for row in passport.rows(passports.select(["clip_id", "payload_kind"]))]
    table = passports.drop_columns(list(passport.LOCATION))
    table = table.add_column(0, "file_name", pa.array(names, pa.utf8()))
    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink, row_group_size=ROW_GROUP, compression="zstd")
    data = sink.getvalue().to_pybytes()
    os.sync()
    atomic_write(folder / TABLE, data)
    return data


class FolderPart:
    """A folder with a table, to import: the clips that the table names, then those it does not."""

    def __init__(self, folder: Path, table: Path, sha256: str) -> None:
        self.folder, self.name, self.sha256, self.problem = folder, table.name, sha256, ""
        self.at = written_at(table)
        self._inside = folder.resolve()
        self._sheets: list[str] = []
        self._seen: set[str] = set()
        self.offers = [self._offered(line) for line in lines(table)]
        self.offers += [self._unnamed(name) for name in self._files() if name not in self._seen]

    def _offered(self, line: Line) -> Offered:
        name, problem = "", line.problem
        if not problem:
            name = next((v for key in NAMES if isinstance(v := line.values.get(key), str)), "")
            problem = self._wrong(name) if name else f"names no file in {', '.join(NAMES)}"
        self._sheets.append(json.dumps(line.values, default=str))
        return self._offer(name, line.place, problem)

    def _wrong(self, name: str) -> str:
        if found := check_name(name):
            return found
        if str(PurePosixPath(name)) in self._seen:
            return "the file is named twice"
        self._seen.add(str(PurePosixPath(name)))
        path = self.folder / name
        try:
            status = path.stat()
            inside = path.resolve().is_relative_to(self._inside)
        except OSError as error:
            return (error.strerror or str(error)).lower()
        if not inside:
            return "its link leads outside"
        return "" if stat.S_ISREG(status.st_mode) else "not a plain file"

    def _unnamed(self, name: str) -> Offered:
        self._sheets.append("{}")
        return self._offer(name, name, self._wrong(name))

    def _offer(self, name: str, place: str, problem: str) -> Offered:
        return Offered(
            name=name or place,
            at=len(self._sheets) - 1,
            length=0 if problem else (self.folder / name).stat().st_size,
            problem=problem,
        )

    def _files(self) -> list[str]:
        found = []
        for parent, _folders, names in os.walk(self.folder):
            place = Path(parent).relative_to(self.folder)
            found += [(place / n).as_posix() for n in names if Path(n).suffix[1:].lower() in MEDIA]
        return sorted(name for name in found if "/." not in f"/{name}")

    def sheet(self, offered: Offered) -> dict[str, Any]:
        """Return the row of the table about a clip; raises Malformed."""
        return json_object(self._sheets[offered.at])

    def payload(self, offered: Offered) -> bytes:
        """Return the bytes of a clip's file; raises OSError."""
        data = (self.folder / offered.name).read_bytes()
        if len(data) != offered.length:
            raise Malformed("the file changed while it was imported")
        return data
