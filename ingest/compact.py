"""Packing small shards into bigger ones; no clip changes, nor its place in any view.

In steps that may run anywhere: `plan` says which payloads go together, `rewrite` copies one group,
`commit` lets the dataset follow. A process that dies leaves shards that no row names, nothing else.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa

from ingest import purge
from ingest.columns import among, hex_ids
from ingest.moves import commit_moves, relocated, schema, shards_in_use, shards_of_view
from ingest.objects import Root
from ingest.repack import DATA, Repacker, facts, is_shard
from ingest.shards import CorruptPayload, read_payload
from ingest.store import Dataset, ReadOnly
from ingest.views import open_view, views, write

TARGET_BYTES = 128 << 20
COMMIT_EVERY_S = 30.0
THREADS = 8
Progress = Callable[[int, int], None]
ORDER = [(name, "ascending") for name in ("kind", "source_sha256", "start_pts", "clip_id")]
PLACES = """
    SELECT shard AS old_shard, clip_id, crc32, min(place) AS "offset", min(bytes) AS length,
        min(kind) AS kind, min(source) AS source_sha256, min(start) AS start_pts
    FROM (
        SELECT k.shard, k.id AS clip_id, k.crc32, k.offset AS place, k.length AS bytes,
            coalesce(k.payload_kind, '') AS kind, coalesce(k.source_sha256, '') AS source,
            coalesce(k.start_pts, 0) AS start
        FROM ledger k WHERE k.fate = 'kept' AND k.shard IS NOT NULL
        UNION ALL
        SELECT l.shard, l.clip_id, l.crc32, l.offset, l.length, l.payload_kind,
            coalesce(c.source, ''), coalesce(c.start, 0)
        FROM latents l LEFT JOIN (
            SELECT id, min(source_sha256) AS source, min(start_pts) AS start
            FROM ledger WHERE kind = 'clip' GROUP BY id
        ) c ON c.id = l.clip_id
    ) GROUP BY shard, clip_id, crc32
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compacted:
    """Shards that were replaced and made, clips and payload bytes that moved, views that followed.

    In a dry run, shards, clips and bytes that would be.
    """

    shards_before: int
    shards_after: int
    clips: int
    bytes: int
    views: int = 0


def compact(
    dataset: Dataset,
    *,
    target_bytes: int = TARGET_BYTES,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Compacted:
    """Rewrite small shards, and those with payloads that no row names, near the target in size.

    A source's clips lie together afterwards. Old shards stay until `collect`. Run again, nothing is
    left to do. `progress` hears the bytes done, and in all. Raises CorruptPayload naming shard and
    clip (what was committed before is right and stays), StorageError.
    """
    if not dataset.is_head:
        raise ReadOnly(f"{dataset.root}: only the newest version is packed; open it without `at`")
    dataset.refresh()
    purged = dataset.purged()
    groups = plan(dataset, target_bytes)
    done = _counted(groups)
    if dry_run:
        return done
    if groups:
        _move(dataset, groups, progress)
        dataset.log_operation("compact", asdict(done))
    followed = follow(dataset)
    if dataset.purged() != purged:  # somebody took clips down meanwhile: not to be kept by us
        purge.complete(dataset)
    for table in [dataset.table(name) for name in dataset.versions()]:
        if table is not None:
            table.compact()
    return replace(done, views=followed)


def plan(dataset: Dataset, target_bytes: int) -> list[pa.Table]:
    """Return the groups of payloads that are to be a shard each, in order; see PLACES.

    Raises CorruptPayload when a shard is gone.
    """
    live = dataset.query(PLACES)
    sizes = {e.name: e.bytes for e in dataset.root.names(DATA) if is_shard(e.name)}
    counted = live.group_by("old_shard").aggregate([([], "count_all")])
    counts = dict(zip(*(counted.column(n).to_pylist() for n in counted.schema.names), strict=True))
    for shard in counts.keys() - sizes.keys():
        at = np.flatnonzero(among(live.column("old_shard"), [shard]))[0]
        raise CorruptPayload(
            f"shard {dataset.root.join(shard)}, clip {live.column('clip_id')[at]}: the file is "
            "gone; restore it, or a version that does not name it"
        )
    big = [shard for shard in counts if sizes[shard] >= target_bytes / 2]
    with ThreadPoolExecutor(THREADS) as pool:
        held = list(pool.map(lambda shard: _count(dataset.root, shard), big))
    whole = {shard for shard, count in zip(big, held, strict=True) if count == counts[shard]}
    chosen = among(live.column("old_shard"), counts.keys() - whole)
    groups = _cut(live.filter(pa.array(chosen)).sort_by(ORDER), target_bytes)
    return [group for group in groups if not _settled(dataset.root, group)]


def _count(root: Root, shard: str) -> int:
    return facts(root, shard, ["clip_id"]).num_rows


def _cut(rows: pa.Table, target_bytes: int) -> list[pa.Table]:
    """Return slices of rows of one kind whose payloads together reach the target, none far below."""
    groups: list[pa.Table] = []
    for kind in rows.column("kind").unique().to_pylist():
        same = rows.filter(pa.array(among(rows.column("kind"), [kind])))
        sums = np.cumsum(same.column("length").to_numpy())
        bounds = [0]
        while bounds[-1] < len(sums):
            before = sums[bounds[-1] - 1] if bounds[-1] else 0
            bounds.append(min(len(sums), int(np.searchsorted(sums, before + target_bytes)) + 1))
        if len(bounds) > 2 and sums[-1] - sums[bounds[-2] - 1] < target_bytes / 2:
            del bounds[-2]  # the rest goes with the last full one, else it would be small again
        groups += [same.slice(a, b - a) for a, b in pairwise(bounds)]
    return groups


def _settled(root: Root, group: pa.Table) -> bool:
    """Whether a group is exactly what one shard holds already."""
    shards = group.column("old_shard").unique().to_pylist()
    return len(shards) == 1 and _count(root, shards[0]) == group.num_rows


def rewrite(root: Root, group: pa.Table) -> pa.Table:
    """Copy a group's verified payloads into one new shard; return their moves.

    Raises CorruptPayload naming shard and clip, FileNotFoundError, StorageError.
    """
    shards = group.column("old_shard").unique().to_pylist()
    told = {
        (shard, fact["clip_id"].hex(), fact["payload_crc32"]): fact
        for shard in shards
        for fact in facts(root, shard).to_pylist()
    }
    with Repacker(root, shards) as packer:
        for row in group.to_pylist():
            shard, name, crc32 = row["old_shard"], row["clip_id"], row["crc32"]
            if (shard, name, crc32) not in told:
                raise CorruptPayload(f"shard {root.join(shard)}, clip {name}: is not in it")
            place = row["offset"], row["length"], crc32
            payload = read_payload(root, shard, *place, clip_id=name)
            packer.append(shard, told[shard, name, crc32], bytes(payload))
        return packer.close()


def commit(dataset: Dataset, moves: Sequence[pa.Table]) -> None:
    """Let the dataset follow the moves of rewritten groups.

    A group with a clip that was taken down meanwhile is dropped, and its new shard removed.
    """
    purged = dataset.purged()
    fine = [one for one in moves if not among(one.column("clip_id"), purged).any()]
    commit_moves(dataset, pa.concat_tables([schema().empty_table(), *fine]))
    if len(fine) < len(moves):
        written = {name for one in moves for name in one.column("shard").unique().to_pylist()}
        for name in written - shards_in_use(dataset.root):
            dataset.root.delete(name)


def follow(dataset: Dataset) -> int:
    """Let every view name the places where the newest version has its payloads; return how many.

    Order and digest of a view stay. A payload that the newest version does not have stays, too.
    """
    dataset.refresh()
    live, count = dataset.query(PLACES), 0
    known = set(live.column("old_shard").unique().to_pylist())
    for digest in views(dataset.root):
        view, _digest = open_view(dataset.root, digest)
        astray = shards_of_view(view) - known
        moves = _towards(live, view.filter(pa.array(among(view.column("shard"), astray))))
        if moves.num_rows:
            write(dataset.root, relocated(view, moves, "clip_id"))
            count += 1
    return count


def _towards(live: pa.Table, astray: pa.Table) -> pa.Table:
    """Return the moves of a view's rows to where the same payloads live now."""
    keys = pa.table(
        {
            "old_shard": astray.column("shard").cast(pa.utf8()),
            "clip_id": hex_ids(astray.column("clip_id")),
            "crc32": astray.column("crc32"),
        }
    )
    wanted = live.filter(pa.array(among(live.column("clip_id"), keys.column("clip_id"))))
    places = wanted.group_by(["clip_id", "crc32"], use_threads=False).aggregate(
        [("old_shard", "first"), ("offset", "first")]
    )
    found = keys.join(
        places.rename_columns(["clip_id", "crc32", "shard", "offset"]),
        ["clip_id", "crc32"],
        join_type="inner",
        use_threads=False,
    )
    return found.select(schema().names)


def _move(dataset: Dataset, groups: list[pa.Table], progress: Progress | None) -> None:
    waiting: list[pa.Table] = []
    since_s, done, total = time.monotonic(), 0, _bytes(groups)
    for number, group in enumerate(groups, 1):
        waiting.append(rewrite(dataset.root, group))
        # One commit costs as much for a thousand clips as for a million.
        if number == len(groups) or time.monotonic() - since_s > COMMIT_EVERY_S:
            commit(dataset, waiting)
            waiting, since_s = [], time.monotonic()
        done += _bytes([group])
        if progress is not None:
            progress(done, total)


def _bytes(groups: Sequence[pa.Table]) -> int:
    return sum(int(group.column("length").to_numpy().sum()) for group in groups)


def _counted(groups: Sequence[pa.Table]) -> Compacted:
    return Compacted(
        shards_before=len({s for g in groups for s in g.column("old_shard").unique().to_pylist()}),
        shards_after=len(groups),
        clips=sum(group.num_rows for group in groups),
        bytes=_bytes(groups),
    )
