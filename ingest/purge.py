"""Taking clips and sources down: after it their bytes and words are nowhere below the root.

First the intention is logged. Every step after it may die and be repeated, and each takedown also
completes all earlier ones. What stays is one fate for each clip and source, and the log.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from ingest import moves, refs
from ingest.columns import among, raw_ids
from ingest.copies import forget, refreeze, remove_views, retag, telling
from ingest.objects import Root
from ingest.remnants import Holding, holding, search
from ingest.repack import Repacker, contents
from ingest.scan import Probe, probe
from ingest.store import Dataset, ReadOnly
from ingest.tables import Table
from ingest.takedown import OPERATION, Taken, erase, hide
from ingest.views import open_view, views

PASSES = 2
SHOWN = 3


class UnknownName(ValueError):
    """A source or clip that no version of the dataset knows."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Purged:
    """What a takedown did, or in a dry run would do.

    `sources` are hashes, `clips` ids, those of the sources too; `shards` were rewritten or removed;
    `views` gives for each digest that held one of them that of the view in its place ("" for none);
    `tags` got tables of their own. `left` says where something of them still is, and what to do.
    """

    sources: tuple[str, ...]
    clips: tuple[str, ...]
    shards: tuple[str, ...] = ()
    views: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether nothing of them was found any more, below the root."""
        return not self.left


def purge(
    dataset: Dataset,
    *,
    sources: Collection[str] = (),
    clips: Collection[str] = (),
    reason: str,
    dry_run: bool = False,
) -> Purged:
    """Take sources (by sha256, with all their clips) and clips (by id) down for good.

    One that died is completed by running any takedown, or `complete`. Raises UnknownName,
    CorruptPayload when a clip that shares a shard is damaged, StorageError.
    """
    if not dataset.is_head:
        raise ReadOnly(f"{dataset.root}: takedown is from all versions; open it without `at`")
    if not reason.strip():
        raise ValueError("reason: say why; it is kept in the log")
    dataset.refresh()
    asked = _known(dataset, Taken(frozenset(sources), frozenset(clips)))
    if dry_run:
        return _outlook(dataset, asked)
    told = {"sources": sorted(asked.sources), "clips": sorted(asked.clips), "reason": reason}
    if not _covers(Taken.of(dataset), asked):
        dataset.log_operation(OPERATION, {**told, "views": {}, "tags": []})
    done = complete(dataset)
    since = _views_since(dataset, asked) | dict(done.views)
    result = replace(done, sources=tuple(told["sources"]), clips=tuple(told["clips"]), views=since)
    ended = {"views": since, "tags": result.tags, "left": result.left}
    dataset.log_operation(OPERATION, {**told, **ended})
    return result


def complete(dataset: Dataset) -> Purged:
    """Finish every takedown that was begun, and search the whole tree for what they took down."""
    taken, probes = Taken.of(dataset), _probes_of(dataset)
    done = Purged(sources=tuple(sorted(taken.sources)), clips=tuple(sorted(taken.clips)))
    for _ in range(PASSES if taken.sources or taken.clips else 0):
        taken, one = _enforce(dataset, taken, probes)
        left = tuple(sorted({*one.left, *search(dataset.root, taken, probes)}))
        done = Purged(
            sources=done.sources,
            clips=tuple(sorted(taken.clips)),
            shards=(*done.shards, *one.shards),
            views={**done.views, **one.views},
            tags=tuple(sorted({*done.tags, *one.tags})),
            left=left,
        )
        if done.clean:
            break
    dataset.refresh()
    return done


def _enforce(dataset: Dataset, taken: Taken, probes: list[Probe]) -> tuple[Taken, Purged]:
    """Take everything down once; `probes` grows by the payloads that were met."""
    root = dataset.root
    hide(Table.open(root, refs.LEDGER), taken)
    found, left = holding(root, taken)
    inside = {name for one in found.values() for name in one.clips}
    taken = taken.with_clips(_clips_of(root, taken.sources) | inside)
    erase_annotations(dataset, taken)
    known = len(probes)
    moved, gone = strip(root, taken, found, probes)
    if probes[known:]:  # before the shards go: a repeat could not read them
        said = [one.settings() for one in probes[known:]]
        dataset.log_operation(OPERATION, {**_nothing(), "probes": said})
    moves.commit_moves(dataset, moved)
    new, tags = refreeze(root, taken, moved), retag(root, taken, moved)
    if new or tags:  # before the old ones go: a repeat would not find them
        told = {"clips": sorted(inside), "views": new, "tags": tags}
        dataset.log_operation(OPERATION, {**_nothing(), **told})
    remove_views(root, new)
    left += remove_shards(root, gone)
    forget(root)  # last: what old versions name is known not to be somebody's who is still writing
    shards = tuple(sorted(gone))
    return taken, Purged(
        sources=(), clips=(), shards=shards, views=new, tags=tuple(tags), left=tuple(left)
    )


def erase_annotations(dataset: Dataset, taken: Taken) -> int:
    """Delete captions, labels, latents and rights of what is taken down; return how many rows."""
    dataset.refresh()
    names = [name for name in dataset.versions() if name.startswith(refs.ANNOTATED)]
    tables = [dataset.table(name) for name in names]
    return sum(erase(table, taken) for table in tables if table is not None)


def strip(
    root: Root, taken: Taken, found: Mapping[str, Holding], probes: list[Probe]
) -> tuple[pa.Table, list[str]]:
    """Copy the other clips of shards into new ones; return the moves, and the shards to remove.

    A young shard that nothing ever named may be somebody's who is about to commit: where it holds
    other clips too, it is left alone.
    """
    used, gone = moves.shards_in_use(root), []
    once = moves.shards_in_files(root) if found else set()
    found_moves = [moves.schema().empty_table()]
    for shard, one in sorted(found.items()):
        if shard in used | once or not one.others or not one.young:
            found_moves.append(_stripped(root, shard, taken, probes, named=shard in used))
            gone.append(shard)
    return pa.concat_tables(found_moves), gone


def _stripped(
    root: Root, shard: str, taken: Taken, probes: list[Probe], *, named: bool
) -> pa.Table:
    with Repacker(root, [shard]) as packer:
        for fact, payload in contents(root, shard):
            name, source = fact["clip_id"].hex(), (fact["source_sha256"] or b"").hex()
            if name in taken.clips or source in taken.sources:
                found = probe(name, payload)
                probes += [found] if found else []
            elif named:
                packer.append(shard, fact, payload)
        return packer.close()


def remove_shards(root: Root, gone: Collection[str]) -> list[str]:
    """Delete shards that nothing names any more; return a line for each that something does."""
    used = moves.shards_in_use(root)
    for shard in gone:
        if shard not in used:
            root.delete(shard)
    return [
        f"{name}: is named by rows that it does not hold; verify" for name in gone if name in used
    ]


def _known(dataset: Dataset, asked: Taken) -> Taken:
    """Return what is asked with the clips of the sources; raises UnknownName."""
    names, past = set[str](), Taken.of(dataset)
    for table in _ledgers(dataset.root):
        rows = table.rows(["id", "source_sha256"])
        names.update(*(rows.column(name).unique().to_pylist() for name in rows.schema.names))
    unknown = (asked.sources | asked.clips) - names - past.sources - past.clips
    if unknown:  # what only an old version names may still be in a shard
        found, _trouble = holding(dataset.root, Taken(unknown, unknown))
        inside = frozenset[str]().union(*(one.clips for one in found.values()))
        unknown = unknown.difference(inside, *(one.sources for one in found.values()))
        asked = asked.with_clips(inside)
    if unknown:
        shown = ", ".join(sorted(unknown)[:SHOWN])
        raise UnknownName(
            f"{dataset.root}: knows no source or clip {shown}; a source is named by its sha256, a "
            "clip by its id: see `kinoray dataset query`"
        )
    return asked.with_clips(_clips_of(dataset.root, asked.sources))


def _clips_of(root: Root, sources: Collection[str]) -> set[str]:
    """Return the ids of all clips of sources, in the newest version and in tags."""
    found: set[str] = set()
    for table in _ledgers(root):
        rows = table.rows(["kind", "id", "source_sha256"])
        mine = among(rows.column("source_sha256"), sources) & among(rows.column("kind"), ["clip"])
        found.update(rows.column("id").filter(pa.array(mine)).to_pylist())
    return found


def _ledgers(root: Root) -> list[Table]:
    places = {(refs.LEDGER, -1)}
    for tag in refs.tags(root):
        place = tag.tables[refs.LEDGER]
        places.add((place.path, place.version))
    return [Table.open(root, path, None if v < 0 else v) for path, v in sorted(places)]


def _nothing() -> dict[str, Any]:
    return {"sources": [], "clips": [], "reason": "", "views": {}, "tags": []}


def _probes_of(dataset: Dataset) -> list[Probe]:
    """Return what earlier takedowns looked for, also those that died: once each."""
    log = (row["detail"] for row in dataset.history() if row["operation"] == OPERATION)
    return list(dict.fromkeys(Probe.told(one) for row in log for one in row.get("probes", ())))


def _covers(past: Taken, asked: Taken) -> bool:
    return asked.sources <= past.sources and asked.clips <= past.clips


def _views_since(dataset: Dataset, asked: Taken) -> dict[str, str]:
    """Return what took the place of which view since this was first asked."""
    new: dict[str, str] = {}
    begun = Taken()
    for row in dataset.history():
        if row["operation"] == OPERATION:
            told: dict[str, Any] = row["detail"]
            begun = Taken(begun.sources | set(told["sources"]), begun.clips | set(told["clips"]))
            new |= told["views"] if _covers(begun, asked) else {}
    return new


def _outlook(dataset: Dataset, asked: Taken) -> Purged:
    root, raw = dataset.root, raw_ids(asked.clips)
    found, left = holding(root, asked)
    held = {d: among(open_view(root, d)[0].column("clip_id"), raw).any() for d in views(root)}
    return Purged(
        sources=tuple(sorted(asked.sources)),
        clips=tuple(sorted(asked.clips)),
        shards=tuple(sorted(found)),
        views={digest: "" for digest, does in held.items() if does},
        tags=tuple(tag.name for tag in refs.tags(root) if telling(root, tag, asked)),
        left=tuple(left),
    )
