"""Removing what no version in use names: shards, files of old versions, what dead writers left."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil

from ingest import refs, upkeep
from ingest.moves import shards_in_files, shards_in_use
from ingest.objects import Root
from ingest.repack import is_shard
from ingest.store import Dataset, ReadOnly
from ingest.tables import Table

WEEK_S = 7 * 86400.0
HOUR_S = 3600.0
# What a writer that died left behind: its unfinished file, or its trial of the store.
LEFTOVER = re.compile(r"\.(self-test-|(.*\.)?writing-)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """Names below the root that were removed (in a dry run: would be), and their bytes in all.

    `shards` nothing in use names; `temporaries` a writer left; `table_files` are of old versions of
    tables, and of tags that were removed.
    """

    shards: tuple[str, ...]
    temporaries: tuple[str, ...]
    table_files: tuple[str, ...]
    bytes: int


def collect(dataset: Dataset, *, older_than_s: float = WEEK_S, dry_run: bool = False) -> Collected:
    """Remove what neither the newest version, nor a tag, nor a view names, and is older.

    Choose `older_than_s` longer than any run takes: a shard is written long before it is committed,
    and readers of an old version read on. Versions without a tag that are older can no longer be
    restored. Raises NotATable when a tag cannot be read, for then nobody knows what it needs.
    """
    if not dataset.is_head:
        raise ReadOnly(f"{dataset.root}: collecting is for all versions; open it without `at`")
    root, before_s = dataset.root, time.time() - older_than_s
    # First what is there, then who names it: what comes meanwhile is in neither.
    entries = {entry.name: entry for entry in root.names()}
    old = [name for name, entry in entries.items() if entry.modified_s < before_s]
    table_files = _old_versions(root, older_than_s, dry_run=dry_run)
    table_files += _of_lost_tags(root, old)
    used = shards_in_use(root) | shards_in_files(root, but={*table_files})
    shards = sorted(name for name in old if is_shard(name) and name not in used)
    temporaries = sorted(n for n in old if any(LEFTOVER.match(part) for part in n.split("/")))
    found = [*shards, *temporaries, *table_files]
    done = Collected(
        shards=tuple(shards),
        temporaries=tuple(temporaries),
        table_files=tuple(sorted(table_files)),
        bytes=sum(entries[name].bytes for name in found if name in entries),
    )
    if found and not dry_run:
        _delete(root, found, before_s)
        counts = {"shards": len(shards), "temporaries": len(temporaries)}
        told = {**counts, "table_files": len(table_files), "bytes": done.bytes}
        dataset.log_operation("gc", {**told, "older_than_s": older_than_s})
    dataset.refresh()
    return done


def _old_versions(root: Root, older_than_s: float, *, dry_run: bool) -> list[str]:
    """Remove the files of versions that are older and have no tag; return their names."""
    keep: dict[str, list[int]] = {place.path: [] for place in refs.head(root).values()}
    for tag in refs.tags(root):
        for place in tag.tables.values():
            if place.path in keep:
                keep[place.path].append(place.version)
    hours = ceil(older_than_s / HOUR_S)
    gone: list[str] = []
    for path, versions in sorted(keep.items()):
        if not root.folders(path):  # named, but never written
            continue
        # Files that no version names may be of somebody who is just committing, if they are young.
        gone += upkeep.vacuum(
            Table.open(root, path),
            keep=versions,
            retention_hours=hours,
            leftovers=hours > 0,
            dry_run=dry_run,
        )
    return gone


def _of_lost_tags(root: Root, old: Sequence[str]) -> list[str]:
    """Return the files of tables that a takedown made for a tag which is gone by now."""
    names = {tag.name for tag in refs.tags(root)}
    inside = (name.split("/") for name in old if name.startswith(f"{refs.TAGS}/"))
    return ["/".join(parts) for parts in inside if len(parts) > 2 and parts[1] not in names]


def _delete(root: Root, names: Sequence[str], before_s: float) -> None:
    """Delete files that are still old: a shard may have been written again under its name."""
    for folder, inside in groupby(sorted(names), lambda name: name.rpartition("/")[0]):
        now = {entry.name: entry.modified_s for entry in root.names(folder)}
        for name in inside:
            if now.get(name, before_s) < before_s:
                root.delete(name)
