"""Where something of what is taken down is: in shards, views, tables, or any file at all."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from ingest import refs, upkeep
from ingest.columns import among, hex_ids, raw_ids
from ingest.files import TEMPORARY
from ingest.objects import Entry, Root
from ingest.repack import DATA, facts, is_shard
from ingest.rewrite import read_parquet
from ingest.scan import Probe, Scan
from ingest.shards import CorruptPayload
from ingest.tables import Table
from ingest.takedown import KEY, TELLS, Taken, tells
from ingest.views import open_view, views

YOUNG_S = 600.0
THREADS = 8
AGAIN = "it may be just being written; run again in ten minutes"
_COLUMNS = [*KEY, *TELLS, "clip_id", "source_sha256"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Holding:
    """A shard with payloads of what is taken down: whose, how many others, and its age."""

    clips: frozenset[str]
    sources: frozenset[str]
    others: int
    young: bool


def holding(root: Root, taken: Taken) -> tuple[dict[str, Holding], list[str]]:
    """Return the shards that hold something of it, named by anything or not, and trouble."""
    entries = [entry for entry in root.names(DATA) if is_shard(entry.name)]
    clips, sources = raw_ids(taken.clips), raw_ids(taken.sources)

    def look(entry: Entry) -> Holding | str | None:
        try:
            told = facts(root, entry.name, ["clip_id", "source_sha256"])
        except CorruptPayload as error:
            return f"{error}; it may hold something of this"
        except FileNotFoundError:  # removed meanwhile
            return None
        hit = among(told.column("clip_id"), clips) | among(told.column("source_sha256"), sources)
        if not hit.any():
            return None
        mine = told.filter(pa.array(hit))
        return Holding(
            clips=_ids(mine, "clip_id"),
            sources=_ids(mine, "source_sha256"),
            others=int((~hit).sum()),
            young=_young(entry),
        )

    with ThreadPoolExecutor(THREADS) as pool:
        seen = list(zip(entries, pool.map(look, entries), strict=True))
    found = {entry.name: one for entry, one in seen if isinstance(one, Holding)}
    return found, [one for _, one in seen if isinstance(one, str)]


def _ids(rows: pa.Table, name: str) -> frozenset[str]:
    return frozenset(hex_ids(rows.column(name).drop_null()).to_pylist())


def search(root: Root, taken: Taken, probes: Sequence[Probe]) -> list[str]:
    """Search everything below the root; remove what nobody needs, return the rest with reasons."""
    found, left = holding(root, taken)
    for shard, one in found.items():
        left.append(
            f"{shard}: holds {len(one.clips)} clips of this and {one.others} others; {AGAIN}"
        )
    raw = raw_ids(taken.clips)
    for digest in views(root):
        if among(open_view(root, digest)[0].column("clip_id"), raw).any():
            left.append(f"views/{digest}.arrow: was frozen meanwhile; run again")
    left += _in_tables(root, taken)
    entries = [entry for entry in root.names() if entry.name not in found]
    for entry, name in Scan(probes).files(root, entries):
        left += _removed(root, entry, f"the bytes of clip {name} are in it")
    return sorted(set(left))


def _in_tables(root: Root, taken: Taken) -> Iterator[str]:
    """Look into every file of every table, also those that no version names."""
    named = _named_files(root)
    for folder in (refs.LEDGER, refs.ANNOTATED, refs.TAGS):
        for entry in list(root.names(folder)):
            if "/_delta_log/" in entry.name:
                if "/_commit_" in entry.name and not _young(entry):
                    root.delete(entry.name)  # a commit whose writer died
            elif not entry.name.endswith(".json") and _speaks(root, entry, taken):
                why = "rows of this are in it"
                if entry.name in named:
                    yield f"{entry.name}: {why}; they came meanwhile, run again"
                else:
                    yield from _removed(root, entry, why)


def _named_files(root: Root) -> set[str]:
    places = {(place.path, place.version) for place in refs.head(root).values()}
    places |= {(p.path, p.version) for tag in refs.tags(root) for p in tag.tables.values()}
    opened = (Table.open(root, path, None if v < 0 else v) for path, v in sorted(places))
    return {name for table in opened for name in upkeep.files(table)}


def _speaks(root: Root, entry: Entry, taken: Taken) -> bool:
    """Whether a file of a table says something of it; one that cannot be read may."""
    try:
        return tells(read_parquet(root, entry.name, _COLUMNS), taken)
    except FileNotFoundError:
        return False
    except pa.ArrowInvalid:
        return True


def _removed(root: Root, entry: Entry, why: str) -> Iterator[str]:
    """Remove what a writer left behind; yield a line for what is not ours to remove, or too young."""
    tables = (refs.LEDGER, refs.ANNOTATED, refs.TAGS)
    if is_shard(entry.name):
        yield f"{entry.name}: {why}, as another clip's; take that one down too"
    elif TEMPORARY not in entry.name and not entry.name.startswith(tables):
        yield f"{entry.name}: {why}; it is no file of a dataset, remove it by hand"
    elif _young(entry):
        yield f"{entry.name}: {why}; {AGAIN}"
    else:
        root.delete(entry.name)


def _young(entry: Entry) -> bool:
    return entry.modified_s > time.time() - YOUNG_S
