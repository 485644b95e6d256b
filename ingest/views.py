"""Kept clips with their captions, and the frozen selection of them that training reads.

A view is sorted by clip_id and named by what it says, not by where the bytes lie, so that neither
the order of ingestion nor a repacking of shards changes the order of training.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ingest.clip import digest_of
from ingest.files import atomic_write
from ingest.schema import SCORES, view_schema

CLIP_COLUMNS = [
    "source_uri",
    "source_sha256",
    "start_s",
    "end_s",
    "shard",
    "offset",
    "length",
    "crc32",
    "fps_num",
    "fps_den",
    "frame_count",
    "width",
    "height",
    "payload_kind",
    "payload_sha256",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A frozen selection: its file, the digest of what it says, how many clips."""

    path: Path
    digest: str
    num_clips: int


def kept_clips(ledger: pa.Table, captions: pa.Table) -> pa.Table:
    """Join kept ledger rows with the caption of lowest rank made for the same payload."""
    best: dict[tuple[str, str], tuple[int, str, str]] = {}
    for row in captions.to_pylist():
        key = row["clip_id"], row["payload_sha256"]
        said = row["rank"], row["producer"], row["caption"]
        best[key] = min(best.get(key, said), said)
    clips: dict[str, dict[str, object]] = {}
    wanted = ["id", "kind", "fate", "unit_id", *CLIP_COLUMNS, *SCORES]
    kept = [
        row
        for row in ledger.select(wanted).to_pylist()
        if row["kind"] == "clip" and row["fate"] == "kept"
    ]
    for row in sorted(kept, key=lambda row: (row["id"], row["unit_id"])):
        _rank, producer, text = best.get((row["id"], row["payload_sha256"]), (0, "", ""))
        shown = {name: row[name] for name in (*CLIP_COLUMNS, *SCORES)}
        # Two recipes may keep the same clip; it is one clip.
        entry = {"clip_id": row["id"], **shown, "caption": text, "caption_producer": producer}
        clips.setdefault(row["id"], entry)
    return pa.Table.from_pylist(list(clips.values()), schema=_schema(ledger.schema))


def _schema(ledger: pa.Schema) -> pa.Schema:
    text = pa.utf8()
    return pa.schema(
        [
            pa.field("clip_id", text, nullable=False),
            *(ledger.field(name) for name in (*CLIP_COLUMNS, *SCORES)),
            pa.field("caption", text, nullable=False),
            pa.field("caption_producer", text, nullable=False),
        ]
    )


def freeze(root: Path, clips: pa.Table) -> View:
    """Write rows of `kept_clips` as root/views/<digest>.arrow, sorted by clip_id.

    Raises ValueError for an empty selection, StorageError when it cannot be written.
    """
    if not clips.num_rows:
        raise ValueError(f"{root}: no clip is selected; loosen the keep rule or add sources")
    rows = sorted(clips.to_pylist(), key=lambda row: row["clip_id"])
    digest = digest_of([[row["clip_id"], row["payload_sha256"], row["caption"]] for row in rows])
    schema = view_schema()
    for row in rows:
        row["clip_id"] = bytes.fromhex(row["clip_id"])
    wanted = [{name: row[name] for name in schema.names} for row in rows]
    table = pa.Table.from_pylist(wanted, schema=schema.with_metadata({"kinoray.view": digest}))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    path = root / "views" / f"{digest}.arrow"
    atomic_write(path, sink.getvalue().to_pybytes())
    return View(path=path, digest=digest, num_clips=len(rows))


def open_view(path: Path) -> tuple[pa.Table, str]:
    """Map a view file; return its rows and its digest. Raises ValueError when it is none."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        return table, (table.schema.metadata or {})[b"kinoray.view"].decode()
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(f"{path}: not a view of a dataset; freeze one first") from error
