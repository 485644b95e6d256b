"""What the dataset commands do: read the keys, call ingest, show what came out, end with the exit code."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jobs import config, render

T = TypeVar("T")
ROWS_SHOWN = 100
CELL_CHARS = 60
IDS_SHOWN = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class At:
    """Which version: a tag or a number, empty for the newest."""

    at: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TagKeys:
    """Whether the tag is taken away."""

    remove: bool = False


def info(place: str, keys: Sequence[str], *, as_json: bool) -> None:
    """Show what a dataset is and holds."""
    from ingest import refs
    from ingest.store import Dataset

    dataset = Dataset.open(place, _keys(At, keys, "info").at)
    names = [tag.name for tag in refs.tags(dataset.root)]
    told = {
        "root": str(dataset.root),
        "contract": dataset.contract.describe(),
        "digest": dataset.digest(),
        **dataset.info(),
    }
    if as_json:
        _end(told | {"versions": dataset.versions(), "tags": names}, as_json=True)
    rows = [
        (name, f"{value:.6g}" if isinstance(value, float) else str(value))
        for name, value in told.items()
    ]
    rows += [(f"version of {name}", str(version)) for name, version in dataset.versions().items()]
    render.table([*rows, ("tags", ", ".join(names) or "none")])


def query(place: str, sql: str, keys: Sequence[str], *, as_json: bool) -> None:
    """Show what one SELECT finds."""
    from ingest.store import Dataset

    found = Dataset.open(place, _keys(At, keys, "query").at).query(sql)
    if as_json:
        _end({"columns": found.column_names, "rows": found.to_pylist()}, as_json=True)
    shown = found.slice(0, ROWS_SHOWN).to_pylist()
    render.table(
        [tuple(found.column_names), *(tuple(_cell(v) for v in row.values()) for row in shown)]
    )
    if found.num_rows > ROWS_SHOWN:
        render.say(f"kinoray: {found.num_rows} rows, {ROWS_SHOWN} shown; --json gives all")


def report(place: str, out: Path, keys: Sequence[str], *, as_json: bool) -> None:
    """Write the page of a dataset."""
    from ingest.store import Dataset
    from jobs import dataset_report

    dataset = Dataset.open(place, _keys(At, keys, "report").at)
    _end({"report": str(dataset_report.write(dataset, out))}, as_json=as_json)


def _keys(schema: type[T], texts: Sequence[str], command: str) -> T:
    return config.build(schema, config.keys(texts), name=f"dataset {command}")


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
    text = " ".join(text.split())
    return text if len(text) <= CELL_CHARS else f"{text[: CELL_CHARS - 3]}..."


def _end(values: dict[str, Any], *, as_json: bool, code: int = 0) -> None:
    render.result(values, as_json=as_json)
    sys.exit(code)
