"""Fates, and the ledger rows that carry them: each source and candidate clip has exactly one."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from ingest.schema import ledger_schema
from ingest.sources import Source

MESSAGE_CHARS = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Fate:
    """What became of a source or a candidate clip, and why; empty fields are stored as null."""

    name: Literal["kept", "rejected", "failed", "duplicate"]
    rule: str = ""
    score: float | None = None
    threshold: float | None = None
    stage: str = ""
    error_class: str = ""
    message: str = ""
    attempts: int = 1
    duplicate_of: str = ""

    def columns(self) -> dict[str, object]:
        """Return the fate as ledger columns."""
        values = {
            name: None if value == "" else value
            for name, value in asdict(self).items()
            if name != "name"
        }
        if self.message:
            values["message"] = printable(self.message)[:MESSAGE_CHARS]
        return {"fate": self.name, **values}


def printable(text: str) -> str:
    """Return text as one line of valid Unicode without control characters."""
    valid = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(char if char.isprintable() else " " for char in valid).strip()


def source_id(source: Source, source_sha256: str) -> str:
    """Return the id of a source: its bytes' hash, or a hash of its name when it was unreadable."""
    if source_sha256:
        return source_sha256
    name = Path(source.uri).name.encode("utf-8", "surrogateescape")
    return hashlib.sha256(b"unreadable\0" + name).hexdigest()


def source_columns(source: Source, source_sha256: str) -> dict[str, object]:
    """Return the columns that say which source a row belongs to."""
    return {
        "source_uri": source.printable_uri,
        "source_sha256": source_sha256 or None,
        "source_bytes": source.bytes,
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One piece of work: a source or part `index` of `count`, its bytes' hash ("" when unreadable)."""

    unit_id: str
    source: Source
    source_sha256: str
    index: int = 0
    count: int = 1


def base_row(unit: Unit, prep_digest: str, keep_digest: str) -> dict[str, object]:
    """Return the columns that every row of a unit has."""
    return {
        "unit_id": unit.unit_id,
        **source_columns(unit.source, unit.source_sha256),
        "prep_digest": prep_digest,
        "keep_digest": keep_digest,
    }


def source_row(unit: Unit, fate: Fate, prep_digest: str, keep_digest: str) -> dict[str, object]:
    """Return the row of a unit's source, without candidates as yet."""
    return {
        **base_row(unit, prep_digest, keep_digest),
        "kind": "source",
        "id": source_id(unit.source, unit.source_sha256),
        **fate.columns(),
        "num_candidates": 0,
        "num_kept": 0,
        **({"unit_index": unit.index, "num_units": unit.count} if unit.count > 1 else {}),
    }


def to_table(rows: Iterable[Mapping[str, object]]) -> pa.Table:
    """Return rows (column name to value, absent = null) as a table of the ledger's schema."""
    schema = ledger_schema()
    listed = list(rows)
    unknown = {name for row in listed for name in row} - set(schema.names)
    if unknown:
        raise ValueError(f"ledger has no column {', '.join(sorted(unknown))}")
    return pa.Table.from_pylist([dict(row) for row in listed], schema=schema)
