"""What a pass has to do: clips that have no row of the wanted settings, and rows that no longer hold."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ingest.clip import digest_of
from ingest.columns import among
from ingest.refs import ANNOTATED
from ingest.restate import Key, key_of, restate
from ingest.schema import ANNOTATIONS, FAILED, conformed
from ingest.stage import decided
from ingest.store import Dataset
from pipelines.passes import Pass

Row = dict[str, Any]
SLICE = 1024
DEMOTED = 1000  # ranks from here on are of captioners that the latest recipe does not name
# What tells whether a row holds: not the words, and not the vectors, which may be gigabytes.
TELLING = ("clip_id", "producer", "payload_sha256", "settings", "rank", "status", "name")


@dataclass(kw_only=True, slots=True)
class Due:
    """The clips to do, by number in `order`; what of the others is counted, and which have a caption.

    `wanted` are the settings that their rows are to have, `held` the keys of the rows that these take
    the place of. `settled` are changes that need no stage: rows, and the keys that they replace.
    """

    table: pa.Table
    order: list[int] = field(default_factory=list)
    wanted: dict[int, str] = field(default_factory=dict)
    held: dict[int, set[Key]] = field(default_factory=dict)
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    spoken: set[str] = field(default_factory=set)
    settled: list[tuple[list[Row], set[Key]]] = field(default_factory=list)

    def __len__(self) -> int:
        """How many clips are to do."""
        return len(self.order)

    @property
    def clips(self) -> int:
        """How many clips there are in all."""
        return self.table.num_rows

    def facts(self, index: int) -> Row:
        """Return what is known of a clip, its embedding where the stage asked for it."""
        facts = self.table.slice(index, 1).to_pylist()[0]
        vector = self.vectors.get(facts["clip_id"])
        return facts if vector is None else facts | {"embedding": vector}


def due(dataset: Dataset, one: Pass, *, skip: Collection[str] = ()) -> Due:
    """Compare the kept clips with the rows that a pass made before; clips in `skip` are not asked for."""
    clips = dataset.kept_clips()
    found, rows = Due(table=clips), _own_rows(dataset, one)
    judge = _Judge(one, found, _texts(dataset, one) if one.table == "captions" else {})
    held: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        held[row["clip_id"]].append(row)
    for start in range(0, clips.num_rows, SLICE):
        for index, facts in enumerate(clips.slice(start, SLICE).to_pylist(), start):
            mine = held.get(facts["clip_id"], [])
            if facts["clip_id"] in skip:
                judge.skip(mine)
            else:
                judge.look(index, facts, mine)
    if one.vectors is not None:
        _take_vectors(dataset, one.vectors, found)
    # Neighbours in a shard are read one after the other.
    places = clips.select(["shard", "offset"]).to_pydict() if len(found) else {}
    found.order.sort(key=lambda index: (places["shard"][index], places["offset"][index]))
    return found


class _Judge:
    """Says of each clip what its rows need."""

    def __init__(self, one: Pass, found: Due, texts: Mapping[Key, str]) -> None:
        self._pass, self._found, self._texts = one, found, texts
        self._settings, self._producer = one.settings, one.producer
        self._per_clip = hasattr(one.stage, "decides")
        self._num_rows = len(one.stage.scores) if one.table == "scores" else 1

    def skip(self, mine: list[Row]) -> None:
        """Ask nothing of a clip; what was said of it keeps its place behind what is preferred now."""
        self._found.counts["skipped"] += 1
        self._keep(mine, [])

    def look(self, index: int, facts: Row, mine: list[Row]) -> None:
        """Say whether a clip is to do, and what becomes of its rows."""
        try:
            told = decided(self._pass.stage, facts)
        except LookupError:  # nobody here knows; what was said stays
            self._note("unchanged" if mine else "silent", facts, mine)
            self._keep(mine, [])
            return
        if told is None:
            self._note("silent", facts, [])
            self._settle([], [row for row in mine if row["settings"]])
            return
        wanted = digest_of([self._settings, told]) if self._per_clip else self._settings
        current = [row for row in mine if self._is_current(row, facts, wanted)]
        if len(current) != self._num_rows:
            self._found.order.append(index)
            self._found.wanted[index] = wanted
            if mine:
                self._found.held[index] = self._keys(mine)
            return
        failed = current[0].get("status") == FAILED
        self._note("failed" if failed else "unchanged", facts, current)
        self._keep(current, [row for row in mine if row not in current])

    def _is_current(self, row: Row, facts: Row, wanted: str) -> bool:
        return (row["producer"], row["payload_sha256"], row["settings"]) == (
            *(self._producer, facts["payload_sha256"]),
            wanted,
        )

    def _keep(self, current: list[Row], others: list[Row]) -> None:
        """Leave current rows, but for their place in the order of preference, and drop older ones."""
        moved = [row for row in current if "rank" in row and row["rank"] != self._pass.rank]
        moved = [row for row in moved if key_of("captions", row) in self._texts]
        rows = [
            row | {"rank": self._pass.rank, "caption": self._texts[key_of("captions", row)]}
            for row in moved
        ]
        self._settle(rows, [*others, *moved])

    def _settle(self, rows: list[Row], held: list[Row]) -> None:
        if held:
            self._found.settled.append((rows, self._keys(held)))

    def _note(self, outcome: str, facts: Row, rows: list[Row]) -> None:
        self._found.counts[outcome] += 1
        payload = facts["payload_sha256"]
        if any(r.get("status") != FAILED and r["payload_sha256"] == payload for r in rows):
            self._found.spoken.add(facts["clip_id"])

    def _keys(self, rows: Sequence[Row]) -> set[Key]:
        return {key_of(self._pass.table, row) for row in rows}


def _own_rows(dataset: Dataset, one: Pass) -> list[Row]:
    """Return the rows that any version of the pass's stage made, without what they say."""
    rows = _columns(dataset, one.table, TELLING)
    names = rows.column("producer").unique().to_pylist()
    mine = [name for name in names if name.partition("/")[0] == one.stage.name]
    return rows.filter(pa.array(among(rows.column("producer"), mine))).to_pylist()


def _columns(dataset: Dataset, name: str, columns: Sequence[str]) -> pa.Table:
    """Return columns of an annotation, those that it is to have: null where an older table lacks them."""
    make, _key = ANNOTATIONS[name]
    wanted = pa.schema([field for field in make() if field.name in columns])
    table = dataset.table(f"{ANNOTATED}/{name}")
    if table is None:
        return wanted.empty_table()
    stored = set(table.schema().names)
    return conformed(table.rows([name for name in wanted.names if name in stored]), wanted)


def _texts(dataset: Dataset, one: Pass) -> dict[Key, str]:
    """Return the captions whose rank is not the pass's any more, by their keys."""
    rows = _columns(dataset, "captions", (*TELLING, "caption"))
    mine = among(rows.column("producer"), [one.producer]) & ~among(rows.column("rank"), [one.rank])
    return {key_of("captions", r): r["caption"] for r in rows.filter(pa.array(mine)).to_pylist()}


def demote(dataset: Dataset, names: Collection[str]) -> None:
    """Put captions of stages that are not among `names` behind all others; they were paid for, and stay.

    Only those that a pass made: what people stated in a file keeps its place.
    """
    rows = _columns(dataset, "captions", (*TELLING, "caption", "message"))
    others = [
        name
        for name in rows.column("producer").unique().to_pylist()
        if name.partition("/")[0] not in names
    ]
    mine = among(rows.column("producer"), others) & rows.column("settings").is_valid().to_numpy()
    mine &= rows.column("rank").to_numpy() < DEMOTED
    behind = [r | {"rank": r["rank"] + DEMOTED} for r in rows.filter(pa.array(mine)).to_pylist()]
    restate(dataset, "captions", behind)


def _take_vectors(dataset: Dataset, made_by: Pass, found: Due) -> None:
    """Give each clip to do its embedding; a clip that has none cannot be done."""
    rows = _columns(dataset, "embeddings", (*TELLING, "vector"))
    mine = among(rows.column("producer"), [made_by.producer])
    mine &= among(rows.column("settings"), [made_by.settings])
    ids = found.table.column("clip_id").take(pa.array(found.order, pa.int64()))
    payloads = found.table.column("payload_sha256").take(pa.array(found.order, pa.int64()))
    wanted = dict(zip(ids.to_pylist(), payloads.to_pylist(), strict=True))
    mine &= among(rows.column("clip_id"), ids)
    for row in rows.filter(pa.array(mine)).to_pylist():
        if wanted[row["clip_id"]] == row["payload_sha256"]:
            vector = np.frombuffer(row["vector"], "<f2").astype(np.float32)
            found.vectors[row["clip_id"]] = vector / np.linalg.norm(vector)
    has = [name in found.vectors for name in wanted]
    found.order = [index for index, there in zip(found.order, has, strict=True) if there]
    found.counts["failed"] += len(has) - len(found)
