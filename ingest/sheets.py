"""Tables that people write: rows of a CSV, JSON Lines or Parquet file, each with its place.

A broken row does not hide the others: it comes with its problem instead of its values.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SUFFIXES = (".csv", ".jsonl", ".parquet")
LINE_BYTES = 16 << 20
BATCH_ROWS = 1024


class NotASheet(ValueError):
    """A file that cannot be read as a table at all."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A row: where it stands ("labels.csv:7"), its values by column, or what is wrong with it."""

    place: str
    values: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def lines(path: Path) -> Iterator[Line]:
    """Yield the rows of a file in order; raises NotASheet naming the file, FileNotFoundError."""
    readers = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise NotASheet(f"{path}: a table in {', '.join(SUFFIXES)} is needed")
    try:
        yield from readers[path.suffix.lower()](path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise NotASheet(f"{path}: cannot be read as a table: {line}") from error


def _csv(path: Path) -> Iterator[Line]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        names = reader.fieldnames or []
        if len(set(names)) != len(names):
            raise NotASheet("a column is named twice")
        for row in reader:
            place = f"{path.name}:{reader.line_num}"
            if None in row or None in row.values():
                yield Line(place=place, problem=f"not {len(names)} columns")
            else:
                yield Line(place=place, values=dict(row))


def _jsonl(path: Path) -> Iterator[Line]:
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(LINE_BYTES):
            number += 1
            place = f"{path.name}:{number}"
            if len(raw) == LINE_BYTES:
                raise NotASheet(f"line {number} is longer than {LINE_BYTES} bytes")
            if raw.strip():
                yield _json_line(raw, place)


def _json_line(raw: bytes, place: str) -> Line:
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return Line(place=place, problem=f"not JSON: {error}")
    if not isinstance(values, dict):
        return Line(place=place, problem="not a JSON object")
    return Line(place=place, values=values)


def _parquet(path: Path) -> Iterator[Line]:
    with pq.ParquetFile(path) as file:
        number = 0
        for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
            for row in batch.to_pylist():
                yield Line(place=f"{path.name}:{number}", values=row)
                number += 1
