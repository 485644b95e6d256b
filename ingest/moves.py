"""Payloads that come to lie elsewhere, and all that names them: ledger, latents, tags, views.

A payload is known by its shard, its clip and its checksum; a move gives it another shard and offset.
"""

from collections.abc import Collection, Mapping
from functools import partial

import numpy as np
import pyarrow as pa

from ingest import refs
from ingest.columns import among, hex_ids, in_place
from ingest.objects import Root
from ingest.rewrite import read_parquet, rewrite
from ingest.shards import Location
from ingest.store import Dataset
from ingest.tables import Table
from ingest.views import open_view, views

# The tables whose rows name payloads, and their column of the clip's id.
NAMING = {refs.LEDGER: "id", f"{refs.ANNOTATED}/latents": "clip_id"}
KEY = ["old_shard", "clip_id", "crc32"]


def schema() -> pa.Schema:
    """Return the columns of moves: a payload's old shard, clip and checksum; its new place."""
    text, number = pa.utf8(), pa.int64()
    kinds = {"old_shard": text, "clip_id": text, "crc32": number, "shard": text, "offset": number}
    return pa.schema(list(kinds.items()))


def moves_table(places: Mapping[tuple[str, str, int], Location]) -> pa.Table:
    """Return moves to the places of payloads, given by old shard, clip and checksum."""
    rows = [(*key, place.shard, place.offset) for key, place in places.items()]
    columns = zip(*rows, strict=True) if rows else [()] * len(schema())
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema(), strict=True)], schema())


def relocated(table: pa.Table, moves: pa.Table, column: str) -> pa.Table:
    """Return rows at their new places; `column` holds the clip's id, as hex text or as bytes."""
    if not moves.num_rows:
        return table
    at = pa.array(np.flatnonzero(among(table.column("shard"), moves.column("old_shard").unique())))
    there = table.select(["shard", column, "crc32"]).take(at)
    keys = {
        "old_shard": there.column("shard").cast(pa.utf8()),
        "clip_id": hex_ids(there.column(column)),
        "crc32": there.column("crc32"),
        "at": at,
    }
    mine = among(moves.column("old_shard"), keys["old_shard"].unique())
    found = pa.table(keys).join(
        moves.filter(pa.array(mine)), KEY, join_type="inner", use_threads=False
    )
    for name in ("shard", "offset") if found.num_rows else ():
        table = in_place(table, name, found.column("at").to_numpy(), found.column(name))
    return table


def commit_moves(dataset: Dataset, moves: pa.Table) -> None:
    """Let the rows of the newest version follow the moves.

    Rows that lie elsewhere by now, or name nothing any more, stay as they are.
    """
    old = moves.column("old_shard").unique()
    for name, column in NAMING.items():
        table = dataset.table(name)
        if table is not None and moves.num_rows:
            rewrite(
                table,
                partial(relocated, moves=moves, column=column),
                reads=["shard"],
                touches=lambda rows: bool(among(rows.column("shard"), old).any()),
            )


def shards_of(table: Table) -> set[str]:
    """Return the shards that the rows of a table name."""
    return set(table.rows(["shard"]).column("shard").unique().drop_null().to_pylist())


def shards_of_view(view: pa.Table) -> set[str]:
    """Return the shards that a view names."""
    return {shard for chunk in view.column("shard").chunks for shard in chunk.unique().to_pylist()}


def shards_in_use(root: Root) -> set[str]:
    """Return the shards that the newest version, a tag or a view names; raises NotATable."""
    versions = [refs.head(root), *(tag.tables for tag in refs.tags(root))]
    places = {
        (place.path, place.version)
        for tables in versions
        for name, place in tables.items()
        if name in NAMING
    }
    found: set[str] = set()
    for path, version in sorted(places):
        found |= shards_of(Table.open(root, path, None if version < 0 else version))
    for digest in views(root):
        found |= shards_of_view(open_view(root, digest)[0])
    return found


def shards_in_files(root: Root, *, but: Collection[str] = ()) -> set[str]:
    """Return the shards that any stored file of a table names, save some files.

    These are of versions that somebody may still read, and of all that were not collected yet.
    """
    found: set[str] = set()
    for table in NAMING:
        for name in [entry.name for entry in root.names(table)]:
            if name.endswith(".parquet") and "/_delta_log/" not in name and name not in but:
                found |= _named_in(root, name)
    return found


def _named_in(root: Root, name: str) -> set[str]:
    try:
        rows = read_parquet(root, name, ["shard"])
    except (FileNotFoundError, pa.ArrowInvalid):  # removed meanwhile, or never finished
        return set()
    return set(rows.column("shard").unique().drop_null().to_pylist())
