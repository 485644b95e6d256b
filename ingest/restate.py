"""Rows of an annotation in place of older ones of the same key, and rows that no longer hold.

A row is replaced in the commit that takes the old one away, so that a kill at any moment loses no
word that cost money.
"""

from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa

from ingest.columns import among
from ingest.refs import ANNOTATED
from ingest.rewrite import rewrite
from ingest.schema import ANNOTATIONS
from ingest.store import Dataset, ReadOnly
from ingest.upkeep import widen

Key = tuple[str, ...]


def key_of(name: str, row: Mapping[str, Any]) -> Key:
    """Return the key of a row of an annotation; see schema.ANNOTATIONS."""
    return tuple(row[column] for column in ANNOTATIONS[name][1].split(","))


def restate(
    dataset: Dataset,
    name: str,
    rows: Collection[Mapping[str, Any]],
    *,
    retract: Collection[Key] = (),
) -> None:
    """Put rows in place of those of the same keys, and take those of the keys `retract` away.

    A row whose key is not there (any more) is dropped: what was taken down meanwhile stays so.
    Raises tables.NotOurs, StorageError, store.ReadOnly.
    """
    if not dataset.is_head:
        raise ReadOnly(f"{dataset.root}: an old version is read-only; open it without `at`")
    table = dataset.table(f"{ANNOTATED}/{name}")
    if table is None or not (rows or retract):
        return
    make, key = ANNOTATIONS[name]
    columns = key.split(",")
    widen(table, make())
    new, gone = {key_of(name, row): row for row in rows}, set(retract)
    clips = {key[0] for key in (*new, *gone)}

    def keys(held: pa.Table) -> list[Key]:
        return list(zip(*(held.column(c).to_pylist() for c in columns), strict=True))

    def touches(held: pa.Table) -> bool:
        return any(key in new or key in gone for key in keys(_of(held, clips)))

    def change(held: pa.Table) -> pa.Table:
        there = keys(held)
        stays = [key not in new and key not in gone for key in there]
        told = [dict(new[key]) for key in there if key in new]
        fresh = pa.Table.from_pylist(told, schema=make()).cast(held.schema)
        return pa.concat_tables([held.filter(pa.array(stays, pa.bool_())), fresh])

    rewrite(table, change, reads=columns, touches=touches)


def _of(held: pa.Table, clips: Collection[str]) -> pa.Table:
    # First by clip, on whole columns: most files of a large table hold none of them.
    return held.filter(pa.array(among(held.column("clip_id"), clips)))
