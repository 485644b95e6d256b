"""What people say about clips in a file: labels, captions, rights, brought into a dataset.

A row names a clip, or a source and with it all of its clips; it counts for the clips there are now,
so the same file can be applied again when there are more.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow as pa

from ingest.caption import clean
from ingest.schema import ANNOTATIONS
from ingest.sheets import lines
from ingest.sources import sha256_file
from ingest.store import Dataset, ReadOnly, now
from ingest.upkeep import merge_update, widen

Name = Literal["labels", "captions", "rights"]
VALUES: Mapping[str, tuple[str, ...]] = {
    "labels": ("label",),
    "captions": ("caption",),
    "rights": ("licence", "consent"),
}
OTHER_WORDS = {"license": "licence"}
KEYS = ("clip_id", "source_sha256", "source_uri")
SHOWN = 5
FILE_RANK = -1  # what a person says in a file goes before what was found or made up at curation


class BadAnnotation(ValueError):
    """A file of annotations that contradicts itself or says nothing."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotated:
    """What a file did: its rows, how many clips (for rights: sources) they speak of, what changed.

    `unknown` rows name nothing in this dataset, the first few are in `examples`; `added` and
    `changed` count rows of the annotation.
    """

    rows: int
    named: int
    unknown: int
    examples: tuple[str, ...]
    added: int
    changed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """A row of the file: what it names, and its values by column, those that the file has."""

    place: str
    key: str
    name: str
    values: dict[str, str]


def annotate_file(
    dataset: Dataset, path: Path, *, name: Name, producer: str = "", rank: int = FILE_RANK
) -> Annotated:
    """Apply a CSV, JSON Lines or Parquet file of labels, captions or rights; again changes nothing.

    A row has one of clip_id, source_sha256 or source_uri (the path, or its last parts where only one
    source ends so), and `label`, `caption`, or `licence` and `consent` (one that the file lacks stays
    as it is). `producer` (default "file:<file name>") is who says so: what it said before of the
    same clips is replaced. Of rights the statement made last holds, whoever made it. Captions of
    lower `rank` are preferred.

    Raises BadAnnotation naming the row, sheets.NotASheet, FileNotFoundError, store.ReadOnly,
    StorageError.
    """
    if name not in VALUES:
        raise BadAnnotation(f"{name}: a file holds one of {', '.join(VALUES)}")
    if not dataset.is_head:
        raise ReadOnly(f"{dataset.root}: an old version is read-only; open it without `at`")
    rows = _rows(path, name)
    dataset.refresh()
    said, unknown = _expanded(rows, dataset, by="source_sha256" if name == "rights" else "clip_id")
    who, app_id = producer or f"file:{path.name}", f"annotate/{name}/{sha256_file(path)}"
    if name == "rights":
        fresh, changed = _statements(dataset, said, who), []
    else:
        fresh, changed = _words(dataset, name, said, {"producer": who, "rank": rank})
    _write(dataset, name, fresh, changed, app_id)
    if fresh or changed:
        told = {"name": name, "file": path.name, "producer": who, "unknown": len(unknown)}
        counts = {"added": len(fresh), "changed": len(changed)}
        dataset.log_operation("annotate", told | counts)
    return Annotated(
        rows=len(rows),
        named=len(said),
        unknown=len(unknown),
        examples=tuple(unknown[:SHOWN]),
        added=len(fresh),
        changed=len(changed),
    )


def _rows(path: Path, name: str) -> list[_Row]:
    found = []
    for line in lines(path):
        values = {OTHER_WORDS.get(key, key): value for key, value in line.values.items()}
        problem = line.problem
        key = next((key for key in KEYS if values.get(key)), "")
        told = {column: values[column] for column in VALUES[name] if column in values}
        if not key or not isinstance(values[key], str):
            problem = problem or f"names no clip and no source ({', '.join(KEYS)})"
        if not told:
            problem = problem or f"has no column {' or '.join(VALUES[name])}"
        texts = {column: _text(value, column) for column, value in told.items()}
        empty = [column for column, text in texts.items() if text is None]
        if empty:
            problem = problem or f"{empty[0]} is not text, or empty"
        if problem:
            raise BadAnnotation(f"{path.parent / line.place}: {problem}; nothing was applied")
        said = {column: text or "" for column, text in texts.items()}
        found.append(_Row(place=line.place, key=key, name=values[key], values=said))
    return found


def _text(value: object, column: str) -> str | None:
    """Return a value as cleaned text, None for one that cannot be meant; rights may be unknown."""
    if column in VALUES["rights"] and value is None:
        return ""
    if column == "label" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = clean(value) if isinstance(value, str) else None
    return text if text or column in VALUES["rights"] else None


def _expanded(
    rows: list[_Row], dataset: Dataset, *, by: str
) -> tuple[dict[str, tuple[_Row, dict[str, Any]]], list[str]]:
    """Return which row speaks of which clip or source (`by`), and the names that mean nothing here.

    Raises BadAnnotation when two rows speak differently of one.
    """
    names = _Names(dataset)
    said: dict[str, tuple[_Row, dict[str, Any]]] = {}
    unknown = []
    for row in rows:
        clips = names.find(row.key, row.name)
        if not clips:
            unknown.append(row.name)
        for clip in clips:
            other, _ = said.setdefault(clip[by], (row, clip))
            if other.values != row.values:
                raise BadAnnotation(
                    f"{other.place} and {row.place}: speak differently of {by} {clip[by]}; "
                    "nothing was applied"
                )
    return said, unknown


class _Names:
    """The clips of a dataset by every name that a file may give them."""

    def __init__(self, dataset: Dataset) -> None:
        columns = [*KEYS, "payload_sha256", *VALUES["rights"]]
        self._by: dict[str, dict[str, list[dict[str, Any]]]] = {k: defaultdict(list) for k in KEYS}
        self._uris: dict[str, set[str]] = defaultdict(set)
        for row in dataset.kept_clips().select(columns).to_pylist():
            for key in KEYS:
                self._by[key][row[key]].append(row)
            self._uris[PurePosixPath(row["source_uri"] or "").name].add(row["source_uri"])

    def find(self, key: str, name: str) -> list[dict[str, Any]]:
        """Return the clips that a name means, none when it means none or more than one source."""
        found = self._by[key].get(name, [])
        if found or key != "source_uri":
            return found
        parts = PurePosixPath(name.replace("\\", "/")).parts
        ends = [
            uri
            for uri in self._uris.get(parts[-1] if parts else "", ())
            if PurePosixPath(uri).parts[-len(parts) :] == parts
        ]
        return self._by[key][ends[0]] if len(ends) == 1 else []


def _words(
    dataset: Dataset,
    name: str,
    said: Mapping[str, tuple[_Row, dict[str, Any]]],
    who: dict[str, Any],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the labels or captions that are new, and those in which the producer corrects itself."""
    make, key = ANNOTATIONS[name]
    columns = make().names
    before = {tuple(r[k] for k in key.split(",")): r for r in dataset.annotation(name).to_pylist()}
    fresh, changed = [], []
    for row, clip in said.values():
        full = {**clip, **who, **row.values}
        wanted = {column: full.get(column) for column in columns}
        known = before.get(tuple(wanted[k] for k in key.split(",")))
        if known is None:
            fresh.append(wanted)
        elif known != wanted:
            changed.append(wanted)
    return fresh, changed


def _statements(
    dataset: Dataset, said: Mapping[str, tuple[_Row, dict[str, Any]]], who: str
) -> list[dict[str, Any]]:
    """Return a statement for every source whose rights, as they hold now, are others."""
    moment, found = moment_after(dataset.annotation("rights")), []
    for source, (row, clip) in said.items():
        held = {column: clip[column] for column in VALUES["rights"]}
        if held | row.values != held:
            by = {"source_sha256": source, "producer": who, "at": moment}
            found.append(by | held | row.values)
    return found


def moment_after(rights: pa.Table) -> str:
    """Return now, or just after the last statement where that is later by the clock of another machine."""
    latest, moment = max(rights.column("at").to_pylist(), default=""), now()
    if latest < moment:
        return moment
    after = datetime.fromisoformat(latest) + timedelta(microseconds=1)
    return after.isoformat(timespec="microseconds")


def _write(
    dataset: Dataset,
    name: str,
    fresh: list[dict[str, Any]],
    changed: list[dict[str, Any]],
    app_id: str,
) -> None:
    make, key = ANNOTATIONS[name]
    if fresh:
        rows = pa.Table.from_pylist(fresh, schema=make())
        number = dataset.next_annotation(name, app_id)
        dataset.annotate(name, rows, app_id=app_id, batch=number)
    table = dataset.table(f"annotations/{name}")
    if changed and table is not None:
        columns = key.split(",")
        update = [column for column in make().names if column not in columns]
        rows = pa.Table.from_pylist(changed, schema=make())
        widen(table, make())
        merge_update(table, rows, on={name: name for name in columns}, update=update)
