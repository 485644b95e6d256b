"""Manifests: tables that name videos and say things of them, as CSV, TSV, JSON Lines or Parquet.

One row is one saying about one video; a video may have many. `start_s` and `end_s` say where in
the video the row's caption holds: a video is always read in full.
"""

import csv
import io
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.objects import SCHEME
from ingest.places import split
from ingest.sayings import COLUMNS, LICENCE, SayingError, json_object, saying, text_of
from ingest.source import Said

NAME, OTHER_NAMES = "video", ("path", "file", "file_name", "uri", "url")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = frozenset((*SEPARATORS, ".jsonl", ".parquet"))
ALIKE = 0.8  # of a column's name and one that we know: a slip, and its words would be lost


def read(place: str, suffix: str) -> dict[str, Said]:
    """Return what a manifest says by the absolute path or URI of each video, in its order.

    Names are relative to the manifest's folder. Raises FileNotFoundError, or ValueError that names
    the manifest and the line (of a Parquet file: the row, from 1) of the first wrong row.
    """
    found: dict[str, Said] = {}
    known: set[frozenset[str]] = set()
    for line, row in _numbered(place, suffix):
        try:
            columns = frozenset(row)
            if columns not in known:
                _check_columns(columns)
                known.add(columns)
            uri = resolved(text_of(row, _name_column(columns)), place)
            found[uri] = found.get(uri, Said()).joined(saying(row))
        except ValueError as error:
            raise ValueError(f"{place}:{line}: {error}") from error
    return found


def content(place: str) -> bytes:
    """Return the bytes of a manifest; raises FileNotFoundError, StorageError."""
    if not place.startswith(SCHEME):
        return Path(place).read_bytes()
    root, key = split(place)
    return root.read(key)


def text(place: str) -> str:
    """Return the text of a manifest; raises ValueError naming the line that is not UTF-8."""
    data = content(place)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{place}:{line}: not UTF-8") from error


def resolved(name: str, place: str) -> str:
    """Return the absolute path or URI of a name in the manifest at `place`; raises ValueError."""
    if not name or "\0" in name:
        raise SayingError("it names no video")
    if name.startswith(SCHEME):
        split(name)
        return name
    if "://" in name:
        raise SayingError(f"{name}: only files and {SCHEME} can be read; fetch it first")
    if not place.startswith(SCHEME):
        return os.path.abspath(Path(place).parent / name)  # noqa: PTH100 - resolve() follows links
    root, key = split(place)
    inside = posixpath.normpath(posixpath.join("/", posixpath.dirname(key), name))
    return f"{root.uri}{inside}"


def _numbered(place: str, suffix: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if suffix == ".parquet":
        return _parquet(place)
    return _json_lines(place) if suffix == ".jsonl" else _cells(place, SEPARATORS[suffix])


def _cells(place: str, separator: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.reader(io.StringIO(text(place), newline=""), delimiter=separator, strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            if not header:
                header = _header(cells)
            elif cells:
                yield reader.line_num, _row(header, cells)
    except (csv.Error, SayingError) as error:
        raise ValueError(f"{place}:{reader.line_num}: {error}") from error


def _header(cells: list[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    if len(set(header)) != len(header):
        raise SayingError("a column is named twice")
    _check_columns(frozenset(header))
    return header


def _row(header: list[str], cells: list[str]) -> dict[str, str]:
    if len(cells) != len(header):
        raise SayingError(f"{len(cells)} cells, but {len(header)} columns")
    return dict(zip(header, cells, strict=True))


def _json_lines(place: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text(place).split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json_object(line)
        except SayingError as error:
            raise ValueError(f"{place}:{number}: {error}") from error


def _parquet(place: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        file = pq.ParquetFile(pa.BufferReader(content(place)))
        columns = file.schema_arrow.names
        _check_columns(frozenset(columns))
        wanted = [name for name in columns if name in (NAME, *OTHER_NAMES, *COLUMNS)]
        number = 0
        for batch in file.iter_batches(columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, SayingError) as error:
        raise ValueError(f"{place}: {error}") from error


def _name_column(columns: Iterable[str]) -> str:
    """Return the column that names the video; it was checked that there is one."""
    return next(name for name in (NAME, *OTHER_NAMES) if name in columns)


def _check_columns(columns: frozenset[str]) -> None:
    others = [name for name in OTHER_NAMES if name in columns]
    if NAME not in columns and len(others) != 1:
        has = ", ".join(sorted(columns))
        raise SayingError(f"one column {NAME}, {', '.join(OTHER_NAMES)} is wanted; it has {has}")
    unknown = {name.lower(): name for name in columns - {NAME, *OTHER_NAMES, *COLUMNS}}
    missing = [name for name in COLUMNS if name not in columns]
    if set(LICENCE) & columns:
        missing = [name for name in missing if name not in LICENCE]
    for name in missing:
        for slip in get_close_matches(name, unknown, n=1, cutoff=ALIKE):
            raise SayingError(f"column {unknown[slip]!r}: did you mean {name!r}?")
