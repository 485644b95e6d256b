"""Frozen training selections.

A view is sorted by clip_id and named by what it says, not by where the bytes lie, so that neither
the order of ingestion nor a repacking of shards changes the order of training.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ingest.objects import Root
from ingest.schema import view_schema
from ingest.select import Selection

VIEWS = "views"


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A frozen selection: its name below the root, the digest of what it says, how many clips."""

    name: str
    digest: str
    num_clips: int


class EmptySelection(ValueError):
    """No clip meets a selection."""

    exit_code = 2


class NotAView(ValueError):
    """The file is no view of a dataset."""

    exit_code = 2


def freeze(root: Root, clips: pa.Table, selection: Selection) -> View:
    """Write rows of `clips` as views/<digest>.arrow, sorted by clip_id.

    Raises ValueError for an empty selection, StorageError when it cannot be written.
    """
    if not clips.num_rows:
        raise EmptySelection(f"{root}: no clip is selected; loosen the condition or add sources")
    rows = clips.sort_by("clip_id")
    digest = view_digest(rows)
    schema = view_schema().with_metadata(
        {
            "kinoray.view": digest,
            "kinoray.selection": json.dumps(selection.plain(), sort_keys=True),
        }
    )
    ids = pa.array([bytes.fromhex(name) for name in rows.column("clip_id").to_pylist()])
    columns = [(ids if f.name == "clip_id" else _column(rows, f.name)).cast(f.type) for f in schema]
    write(root, pa.Table.from_arrays(columns, schema=schema))
    return View(name=f"{VIEWS}/{digest}.arrow", digest=digest, num_clips=rows.num_rows)


def write(root: Root, table: pa.Table) -> None:
    """Store a view's table, in place of an older one of the same digest."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    digest = (table.schema.metadata or {})[b"kinoray.view"].decode()
    root.replace(f"{VIEWS}/{digest}.arrow", sink.getvalue().to_pybytes())


def open_view(place: Root | Path | str, digest: str = "") -> tuple[pa.Table, str]:
    """Return the rows of a view, mapped where it is a local file, and its digest.

    `place` is a local file, or the root of a dataset when `digest` names a view of it.
    Raises NotAView, FileNotFoundError.
    """
    name = f"{VIEWS}/{digest}.arrow"
    root = Root.of(place)
    where = root.join(name) if digest else str(root)
    try:
        if root.is_local:
            table = pa.ipc.open_file(pa.memory_map(where)).read_all()
        else:
            table = pa.ipc.open_file(pa.BufferReader(root.read(name))).read_all()
        return table, (table.schema.metadata or {})[b"kinoray.view"].decode()
    except (pa.ArrowInvalid, KeyError) as error:
        raise NotAView(f"{where}: not a view of a dataset; freeze one first") from error


def views(root: Root) -> list[str]:
    """Return the digests of all views, sorted."""
    names = [Path(e.name) for e in root.names(VIEWS)]
    return sorted(p.stem for p in names if p.suffix == ".arrow" and not p.name.startswith("."))


def _column(rows: pa.Table, name: str) -> pa.Array | pa.ChunkedArray:
    column = rows.column(name)
    dictionary = name in ("shard", "payload_kind")
    return column.combine_chunks().dictionary_encode() if dictionary else column


def view_digest(rows: pa.Table) -> str:
    """Return the hex sha256 of the ids, payloads, captions and labels, column by column."""
    said = hashlib.sha256(b"kinoray view 2\0")
    for name in ("clip_id", "payload_sha256", "caption", "label"):
        column = pa.concat_arrays(rows.column(name).cast(pa.large_utf8()).chunks)
        offsets = np.frombuffer(column.buffers()[1], np.int64)[: len(column) + 1]
        said.update(np.diff(offsets).astype("<i8").tobytes())
        said.update(memoryview(column.buffers()[2] or b"")[offsets[0] : offsets[-1]])
    return said.hexdigest()
