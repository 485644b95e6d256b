"""What a pass has to do: clips that have no row of the wanted settings, and rows that no longer hold.

Rows are filtered while they are read and looked at a slice of clips at a time: what stays in memory is what is due.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.clip import digest_of
from ingest.columns import Column, among, flags
from ingest.ledger import MESSAGE_CHARS, printable
from ingest.refs import ANNOTATED
from ingest.restate import Key, key_of, restate
from ingest.schema import ANNOTATIONS, FAILED, conformed
from ingest.stage import Failure, NotKnownHere, decided, needs_of
from ingest.store import Dataset
from pipelines.answers import Rows, Wanted, cleaned_anew
from pipelines.passes import Pass

Row = dict[str, Any]
SLICE = 1024
DEMOTED = 1000  # ranks from here on are of captions that the latest recipe does not stand for
# What tells whether a row holds: not the words, and not the vectors, which may be gigabytes.
TELLING = ("clip_id", "producer", "payload_sha256", "settings", "asked", "rank", "status", "name")


@dataclass(kw_only=True, slots=True)
class Due:
    """The clips to do, by number in `order`; what of the others is counted, and which have a caption.

    `wanted` is what their rows are to have, `held` the keys of the rows that these take the place of.
    `failures` are of clips that cannot even be asked for. Of rows that need no stage `gone` are those
    that hold no more, `moved` captions whose rank is another now, `anew` captions to clean again, with
    their new settings.
    """

    table: pa.Table
    order: list[int] = field(default_factory=list)
    wanted: dict[int, Wanted] = field(default_factory=dict)
    held: dict[int, set[Key]] = field(default_factory=dict)
    vectors: dict[str, bytes] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    spoken: set[str] = field(default_factory=set)
    failures: list[tuple[int, Failure]] = field(default_factory=list)
    gone: set[Key] = field(default_factory=set)
    moved: set[Key] = field(default_factory=set)
    anew: dict[Key, str] = field(default_factory=dict)

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
        stored = self.vectors.get(facts["clip_id"])
        if stored is None:
            return facts
        vector = np.frombuffer(stored, "<f2").astype(np.float32)
        return facts | {"embedding": vector / np.linalg.norm(vector)}


def due(dataset: Dataset, one: Pass, *, skip: Collection[str] = ()) -> Due:
    """Compare the kept clips with the rows that a pass made before; clips in `skip` are not asked for."""
    clips = dataset.kept_clips()
    found = Due(table=clips)
    own = pa.concat_tables(_pieces(dataset, one.table, TELLING, _of_stages([one.stage.name])))
    rows, judge = _ByClip(own, clips), _Judge(one, found)
    for start in range(0, clips.num_rows, SLICE):
        held = rows.of(start, start + SLICE)
        for index, facts in enumerate(clips.slice(start, SLICE).to_pylist(), start):
            mine = held.get(index, [])
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


class _ByClip:
    """Rows of an annotation by the number of their clip."""

    def __init__(self, rows: pa.Table, clips: pa.Table) -> None:
        options = pc.SetLookupOptions(value_set=clips.column("clip_id").combine_chunks())
        at = pc.call_function("index_in", [rows.column("clip_id")], options)
        numbers = at.fill_null(-1).to_numpy()
        order = np.argsort(numbers, kind="stable")
        order = order[np.searchsorted(numbers[order], 0) :]  # without those of no kept clip
        self._rows, self._numbers = rows.take(pa.array(order)), numbers[order]

    def of(self, start: int, end: int) -> dict[int, list[Row]]:
        """Return the rows of the clips from `start` to before `end`."""
        first, last = np.searchsorted(self._numbers, [start, end])
        found: dict[int, list[Row]] = {}
        rows = self._rows.slice(first, last - first).to_pylist()
        for number, row in zip(self._numbers[first:last].tolist(), rows, strict=True):
            found.setdefault(number, []).append(row)
        return found


class _Judge:
    """Says of each clip what its rows need."""

    def __init__(self, one: Pass, found: Due) -> None:
        self._pass, self._found, self._producer = one, found, one.producer
        paid = one.table == "captions" and not needs_of(one.stage).inline
        self._wanted = Wanted(one.settings, one.asked if paid else None)
        self._per_clip = hasattr(one.stage, "decides")
        self._num_rows = len(one.stage.scores) if one.table == "scores" else 1

    def skip(self, mine: list[Row]) -> None:
        """Ask nothing of a clip; what was said of it keeps its place behind what is preferred now."""
        self._found.counts["skipped"] += 1
        self._place(mine)

    def look(self, index: int, facts: Row, mine: list[Row]) -> None:
        """Say whether a clip is to do, and what becomes of its rows."""
        try:
            told = decided(self._pass.stage, facts)
        except NotKnownHere:  # what was said stays
            self._found.counts["unchanged" if mine else "silent"] += 1
            self._hear(facts, mine)
            self._place(mine)
            return
        except Exception as error:  # noqa: BLE001  somebody else's code may raise anything
            self._found.failures.append((index, _failure_of(error)))
            self._hear(facts, mine)
            return
        if told is None:
            self._found.counts["silent"] += 1
            self._drop([row for row in mine if row["settings"]])
            return
        self._compare(index, facts, mine, self._wanted_of(told))

    def _compare(self, index: int, facts: Row, mine: list[Row], wanted: Wanted) -> None:
        bound = self._producer, facts["payload_sha256"]
        whose = [row for row in mine if (row["producer"], row["payload_sha256"]) == bound]
        current = [row for row in whose if row["settings"] == wanted.settings]
        if len(current) == self._num_rows:
            failed = current[0].get("status") == FAILED
            self._found.counts["failed" if failed else "unchanged"] += 1
            self._hear(facts, current)
            self._place(current)
            self._drop([row for row in mine if row not in current])
        elif wanted.asked and whose and whose[0]["asked"] == wanted.asked:
            self._found.anew[key_of("captions", whose[0])] = wanted.settings
            self._drop([row for row in mine if row not in whose])
        else:
            self._found.order.append(index)
            self._found.wanted[index] = wanted
            if mine:
                self._found.held[index] = self._keys(mine)

    def _wanted_of(self, told: str) -> Wanted:
        settings, asked = self._wanted
        if not self._per_clip:
            return self._wanted
        return Wanted(digest_of([settings, told]), digest_of([asked, told]) if asked else None)

    def _hear(self, facts: Row, rows: list[Row]) -> None:
        payload = facts["payload_sha256"]
        if any(r.get("status") != FAILED and r["payload_sha256"] == payload for r in rows):
            self._found.spoken.add(facts["clip_id"])

    def _place(self, rows: list[Row]) -> None:
        """Give rows the place in the order of preference that the pass has now."""
        moved = [row for row in rows if "rank" in row and row["rank"] != self._pass.rank]
        self._found.moved |= self._keys(moved)

    def _drop(self, rows: list[Row]) -> None:
        self._found.gone |= self._keys(rows)

    def _keys(self, rows: Sequence[Row]) -> set[Key]:
        return {key_of(self._pass.table, row) for row in rows}


def settled(dataset: Dataset, one: Pass, found: Due) -> Iterator[tuple[Key, Rows]]:
    """Yield the captions that change without being asked for again, as they are to be, by their keys."""
    keys = found.moved | found.anew.keys()
    clips = _column({key[0] for key in keys})
    for piece in _pieces(dataset, "captions", (), _of_stages([one.stage.name]) if keys else None):
        for row in piece.filter(pa.array(among(piece.column("clip_id"), clips))).to_pylist():
            key = key_of("captions", row)
            if key in found.anew:
                yield key, cleaned_anew(one, row, found.anew[key])
            elif key in found.moved:
                yield key, Rows(rows=(row | {"rank": one.rank},))


def demote(dataset: Dataset, names: Collection[str]) -> None:
    """Put captions of stages that are not among `names` behind all others; they were paid for, and stay.

    Only those that a pass made: what people stated in a file keeps its place.
    """
    _put_behind(dataset, ~_of_stages(names))


def demote_clips(dataset: Dataset, one: Pass, clips: Collection[str]) -> None:
    """Put what older settings of a pass said of some clips behind all others; see `demote`."""
    if clips:
        _put_behind(dataset, _of_stages([one.stage.name]), _column(clips))


def _column(names: Collection[str]) -> Column:
    return pa.chunked_array([pa.array(names, pa.utf8())])


def _put_behind(dataset: Dataset, where: Any, clips: Column | None = None) -> None:
    behind: list[Row] = []
    for piece in _pieces(dataset, "captions", (), where):
        mine = flags(piece.column("settings").is_valid())
        mine &= piece.column("rank").to_numpy() < DEMOTED
        if clips is not None:
            mine &= among(piece.column("clip_id"), clips)
        rows = piece.filter(pa.array(mine)).to_pylist()
        behind += [row | {"rank": row["rank"] + DEMOTED} for row in rows]
    restate(dataset, "captions", behind)


def _of_stages(names: Collection[str]) -> Any:
    """Return the Arrow expression for rows that any version of these stages made."""
    made: Any = pc  # whose stubs know little of expressions
    producer = made.field("producer")
    mine = producer.isin(list(names))
    for name in names:
        mine |= made.starts_with(producer, f"{name}/")
    return mine


def _pieces(dataset: Dataset, name: str, columns: Sequence[str], where: Any) -> Iterator[pa.Table]:
    """Yield columns (all: none named) of rows of an annotation, piece by piece; at least one piece, perhaps empty.

    Those columns that it is to have: null where an older table lacks them.
    """
    make, _key = ANNOTATIONS[name]
    wanted = pa.schema([field for field in make() if not columns or field.name in columns])
    yield wanted.empty_table()
    table = dataset.table(f"{ANNOTATED}/{name}")
    if table is None or where is None:
        return
    stored = set(table.schema().names)
    for piece in table.pieces([name for name in wanted.names if name in stored], where):
        yield conformed(piece, wanted)


def _take_vectors(dataset: Dataset, made_by: Pass, found: Due) -> None:
    """Give each clip to do its embedding; a clip that has none fails."""
    order = pa.array(found.order, pa.int64())
    ids = found.table.column("clip_id").take(order)
    payloads = found.table.column("payload_sha256").take(order)
    wanted = dict(zip(ids.to_pylist(), payloads.to_pylist(), strict=True))
    where = pc.field("producer") == pc.scalar(made_by.producer)
    for piece in _pieces(dataset, "embeddings", (*TELLING, "vector"), where):
        mine = among(piece.column("settings"), [made_by.settings])
        mine &= among(piece.column("clip_id"), ids)
        for row in piece.filter(pa.array(mine)).to_pylist():
            if wanted[row["clip_id"]] == row["payload_sha256"]:
                found.vectors[row["clip_id"]] = row["vector"]
    missing = Failure(error_class="NoEmbedding", message=f"{made_by.producer} has none of it")
    has = [name in found.vectors for name in wanted]
    found.failures += [(i, missing) for i, there in zip(found.order, has, strict=True) if not there]
    found.order = [index for index, there in zip(found.order, has, strict=True) if there]


def _failure_of(error: Exception) -> Failure:
    message = printable(str(error))[:MESSAGE_CHARS]
    return Failure(error_class=type(error).__name__, message=f"decides: {message}")
