"""Views and tags repeat what a dataset said; after a takedown they are made anew without it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from ingest import refs, upkeep
from ingest.columns import among, hex_ids, raw_ids
from ingest.moves import NAMING, relocated, shards_of_view
from ingest.objects import Root
from ingest.repack import facts
from ingest.select import Selection
from ingest.store import Dataset
from ingest.tables import Table
from ingest.takedown import Taken, clips_left, erased, hidden, tells
from ingest.views import freeze, open_view, views, write

PLACE = ["shard", "clip_id", "crc32"]


def refreeze(root: Root, taken: Taken, moves: pa.Table) -> dict[str, str]:
    """Let views follow the moves, and freeze those that hold what is taken down without it.

    Returns the new digest of each such view, "" when nothing is left of it; the old files stay.
    """
    raw, new = raw_ids(taken.clips), {}
    for digest in views(root):
        view, _digest = open_view(root, digest)
        gone = among(view.column("clip_id"), raw)
        moved = relocated(view.filter(pa.array(~gone)) if gone.any() else view, moves, "clip_id")
        if gone.any():
            new[digest] = _frozen(root, moved) if moved.num_rows else ""
        elif moved is not view:
            write(root, moved)
    return new


def _frozen(root: Root, view: pa.Table) -> str:
    told: dict[str, Any] = json.loads((view.schema.metadata or {})[b"kinoray.selection"])
    listed: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in told.items()}
    columns = {name: view.column(name) for name in view.schema.names}
    columns |= {name: view.column(name).cast(pa.utf8()) for name in ("shard", "payload_kind")}
    columns["clip_id"] = pa.chunked_array([hex_ids(view.column("clip_id"))])
    # A view is named by the hashes of its payloads, but does not hold them; the shards do.
    clips = pa.table(columns).join(_hashes(root, view), PLACE, join_type="inner", use_threads=False)
    return freeze(root, clips, Selection(**listed)).digest


def _hashes(root: Root, view: pa.Table) -> pa.Table:
    """Return the payload hashes of all clips of a view's shards, by shard, clip and checksum."""
    found = []
    for shard in sorted(shards_of_view(view)):
        told = facts(root, shard, ["clip_id", "payload_sha256", "payload_crc32"])
        columns = {
            "shard": pa.repeat(shard, told.num_rows),
            "clip_id": hex_ids(told.column("clip_id")),
            "crc32": told.column("payload_crc32").cast(pa.int64()),
            "payload_sha256": hex_ids(told.column("payload_sha256")),
        }
        found.append(pa.table(columns))
    every = pa.concat_tables(found).group_by([*PLACE, "payload_sha256"], use_threads=False)
    return every.aggregate([])


def retag(root: Root, taken: Taken, moves: pa.Table) -> list[str]:
    """Give tags that hold what is taken down tables of their own, without it; return their names.

    The tables of the newest version, in which the old rows still lie, are then not needed for them.
    """
    changed = []
    for tag in refs.tags(root):
        places = dict(tag.tables)
        for name, place in tag.tables.items():
            old = Table.open(root, place.path, place.version)
            rows = old.rows()
            ledger = name == refs.LEDGER
            left = clips_left(rows, taken) if ledger else {}
            new = hidden(rows, taken, left) if ledger else erased(rows, taken)
            if name in NAMING:
                new = relocated(new, moves, NAMING[name])
            if new is not rows:
                places[name] = _own(old, f"{refs.TAGS}/{tag.name}/{name}", new)
        if places != dict(tag.tables):
            digest = Dataset(root, places).digest()
            refs.write_tag(root, replace(tag, digest=digest, tables=places), move=True)
            changed.append(tag.name)
    return changed


def telling(root: Root, tag: refs.Tag, taken: Taken) -> bool:
    """Whether a tag holds what is to be taken down."""
    tables = (Table.open(root, place.path, place.version) for place in tag.tables.values())
    return any(tells(table.rows(), taken) for table in tables)


def _own(old: Table, path: str, rows: pa.Table) -> refs.Place:
    key = old.settings["kinoray.key"]
    own = Table.create(old.root, path, old.schema(), key=key, settings=old.settings)
    upkeep.replace_rows(own, rows)
    return refs.Place(path=path, version=own.version)


def forget(root: Root) -> None:
    """Delete the files of all versions but the newest and the tagged ones, and what logs say of them."""
    keep: dict[str, list[int]] = {p.path: [] for n, p in refs.head(root).items() if n != refs.LOG}
    for tag in refs.tags(root):
        for place in tag.tables.values():
            keep.setdefault(place.path, []).append(place.version)
    for path, versions in sorted(keep.items()):
        table = Table.open(root, path)
        # Not what no version names: that may be of somebody who is just committing.
        upkeep.vacuum(table, keep=versions, retention_hours=0, leftovers=False)
        upkeep.forget_history(table)


def remove_views(root: Root, old: Mapping[str, str]) -> None:
    """Remove the files of views that others took the places of."""
    for digest, new in old.items():
        if digest != new:
            root.delete(f"views/{digest}.arrow")
