"""The passport of a clip: all that is said about it, as it travels with an export.

Where the clip lies in its dataset is left out, so that a repacking of shards changes no export.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from ingest import clips
from ingest.clip import Contract, Prep
from ingest.schema import FAILED, ledger_schema
from ingest.select import Selection
from ingest.store import Dataset

LOCATION = ("shard", "offset")
ORIGIN = (
    "stream_index",
    "timebase_num",
    "timebase_den",
    "start_pts",
    "end_pts",
    "shot_index",
    "source_bytes",
    "prep_digest",
    "keep_digest",
)
# All that was said, by whom, beside the one caption and label that hold; JSON lists.
LISTS = {
    "captions": ("producer", "caption", "rank"),
    "labels": ("producer", "label"),
    "rights": ("producer", "at", "licence", "consent"),
}
SLICE_ROWS = 1024
EXTENSIONS = {"h264_mp4": "mp4", "png": "png"}


class OtherVersion(ValueError):
    """Clips were prepared by another version of this program, which gave them other ids."""

    exit_code = 2


def schema() -> pa.Schema:
    """Return the columns of a passport; captions, labels and rights are JSON lists as text."""
    ledger = ledger_schema()
    fields = [*clips.schema(), *(ledger.field(name) for name in ORIGIN)]
    texts = [pa.field(name, pa.utf8(), nullable=False) for name in LISTS]
    return pa.schema([f for f in [*fields, *texts] if f.name not in LOCATION])


def passports(dataset: Dataset, selection: Selection) -> pa.Table:
    """Return the passports of a selection sorted by clip_id, with shard and offset as last columns.

    Raises ValueError for an empty selection.
    """
    chosen = dataset.select(selection)
    if not chosen.num_rows:
        raise ValueError(f"{dataset.root}: no clip is selected; loosen the condition")
    told = {name: chosen.column(name) for name in chosen.schema.names}
    told |= _origins(dataset, chosen)
    told |= _said(dataset, chosen)
    full = pa.schema([*schema(), *(chosen.schema.field(name) for name in LOCATION)])
    return pa.table([told[name] for name in full.names], schema=full)


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a passport as JSON values, the lists as lists and without the location."""
    values = {name: value for name, value in row.items() if name not in LOCATION}
    return values | {name: json.loads(row[name]) for name in LISTS}


def as_json(row: Mapping[str, Any]) -> bytes:
    """Return a passport as the bytes of a JSON file; equal passports give equal bytes."""
    return (json.dumps(plain(row), sort_keys=True, ensure_ascii=False) + "\n").encode()


def extension(payload_kind: str) -> str:
    """Return the file extension of payloads of a kind."""
    return EXTENSIONS.get(payload_kind, "bin")


def stored_prep(dataset: Dataset) -> dict[str, Any]:
    """Return the stored fields of the preparation that a dataset was made with."""
    ledger = dataset.table("ledger")
    return json.loads(ledger.settings["kinoray.prep"]) if ledger else {}


def made_with(dataset: Dataset) -> Prep:
    """Return the preparation that a dataset was made with; raises OtherVersion."""
    return prep_of(stored_prep(dataset), dataset.prep_digest)


def prep_of(settings: Mapping[str, Any], prep_digest: str) -> Prep:
    """Return a preparation from its stored fields; raises OtherVersion unless its digest is that."""
    try:
        prep = Prep(**{**settings, "contract": Contract(**settings["contract"])})
    except (ValueError, TypeError, KeyError) as error:
        raise OtherVersion(f"a preparation of another version of Kinoray: {error}") from error
    if prep.digest() != prep_digest:
        raise OtherVersion("a preparation of another version of Kinoray: its digest differs")
    return prep


def rows(table: pa.Table, first: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the rows from number `first`, a few at a time in memory."""
    for start in range(first, table.num_rows, SLICE_ROWS):
        yield from table.slice(start, SLICE_ROWS).to_pylist()


def digest(passports: Iterable[Mapping[str, Any]]) -> str:
    """Return the hex sha256 of all passports, in their order."""
    said = hashlib.sha256(b"kinoray passports 1\0")
    for row in passports:
        said.update(as_json(row))
    return said.hexdigest()


def _origins(dataset: Dataset, chosen: pa.Table) -> dict[str, pa.ChunkedArray]:
    ledger = dataset.ledger()
    ids = chosen.column("clip_id")
    wanted = set(ids.to_pylist())
    names = [ledger.column(name).to_pylist() for name in ("kind", "fate", "id")]
    is_kept = [k == "clip" and f == "kept" and i in wanted for k, f, i in zip(*names, strict=True)]
    kept = ledger.filter(pa.array(is_kept, pa.bool_())).select(["id", "unit_id", *ORIGIN])
    kept = kept.sort_by([("id", "ascending"), ("unit_id", "ascending")])
    names = kept.column("id").to_pylist()  # two recipes may keep the same clip; it is one clip
    first = [n for n, name in enumerate(names) if not n or name != names[n - 1]]
    kept = kept.take(first)
    if kept.column("id").to_pylist() != ids.to_pylist():
        raise ValueError(f"{dataset.root}: changed while it was read; run again")
    return {name: kept.column(name) for name in ORIGIN}


def _said(dataset: Dataset, chosen: pa.Table) -> dict[str, pa.Array]:
    columns = {}
    for name, shown in LISTS.items():
        by = ["source_sha256"] if name == "rights" else ["clip_id", "payload_sha256"]
        table = dataset.annotation(name)
        wanted = set(chosen.column(by[0]).to_pylist())
        is_said = [key in wanted for key in table.column(by[0]).to_pylist()]
        found: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
        for row in table.filter(pa.array(is_said, pa.bool_())).to_pylist():
            if row.get("status") != FAILED:
                found[tuple(row[key] for key in by)].append({key: row[key] for key in shown})
        keys = zip(*(chosen.column(key).to_pylist() for key in by), strict=True)
        columns[name] = pa.array([_as_text(found.get(key, [])) for key in keys], pa.utf8())
    return columns


def _as_text(said: list[dict[str, Any]]) -> str:
    ordered = sorted(said, key=lambda row: json.dumps(row, sort_keys=True))
    return json.dumps(ordered, sort_keys=True, ensure_ascii=False)
