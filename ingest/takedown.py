"""What taking down means for rows: whose they are, what stays of a ledger row, which rows go."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ingest import refs, upkeep
from ingest.columns import among, conditions, in_place
from ingest.schema import conformed, ledger_schema
from ingest.store import Dataset
from ingest.tables import Table

OPERATION, RULE, EMPTY_RULE = "purge", "purged", "no_clip_kept"
PASSES = 10
KEY = ("unit_id", "kind", "id")
# All that is told of what was taken down: who it was, where in the source, and that it is gone.
STAYS = frozenset(
    (
        *KEY,
        *("fate", "rule", "attempts", "source_sha256", "num_candidates", "num_kept"),
        *("stream_index", "timebase_num", "timebase_den", "start_pts", "end_pts"),
        *("prep_digest", "keep_digest"),
    )
)
TELLS = ("source_uri", "payload_sha256", "shard", "message")


@dataclass(frozen=True, slots=True)
class Taken:
    """Sources (their sha256) and clips (their ids) that are taken down."""

    sources: frozenset[str] = frozenset()
    clips: frozenset[str] = frozenset()

    @classmethod
    def of(cls, dataset: Dataset) -> "Taken":
        """Return all that was ever taken down, or is being."""
        told = [row["detail"] for row in dataset.history() if row["operation"] == OPERATION]
        return cls(
            frozenset(name for one in told for name in one["sources"]),
            frozenset(name for one in told for name in one["clips"]),
        )

    def with_clips(self, names: Iterable[str]) -> "Taken":
        """Return the same with more clips."""
        return Taken(self.sources, self.clips | frozenset(names))

    def hits(self, ledger: pa.Table) -> np.ndarray:
        """Return which ledger rows are of these; columns kind, id and source_sha256 are needed."""
        mine = among(ledger.column("id"), self.clips) & among(ledger.column("kind"), ["clip"])
        whole = among(ledger.column("id"), self.sources)
        return mine | whole | among(ledger.column("source_sha256"), self.sources)


def hide(ledger: Table, taken: Taken) -> int:
    """Give the rows of what is taken down their last fate; return how many rows changed.

    Clips and sources become `rejected` by the rule `purged`, and say nothing else any more; other
    sources count the clips that they have left. Whoever commits meanwhile loses nothing.
    """
    count = 0
    for _ in range(PASSES):  # rows may come, and other takedowns may count, at the same time
        ledger.refresh()
        narrow = ledger.rows([*KEY, "source_sha256"])
        units = narrow.filter(pa.array(taken.hits(narrow))).column("unit_id").unique().to_pylist()
        rows = [
            upkeep.query({refs.LEDGER: ledger}, f"SELECT * FROM ledger WHERE {condition}")
            for condition in conditions("unit_id", units)
        ]
        whole = [conformed(one, ledger_schema()) for one in rows]
        changed, _at = changes(pa.concat_tables([ledger_schema().empty_table(), *whole]), taken)
        if not changed.num_rows:
            break
        update = [name for name in ledger.schema().names if name not in KEY]
        on = {name: name for name in KEY}
        count += upkeep.merge_update(ledger, changed, on=on, update=update)
    return count


def changes(ledger: pa.Table, taken: Taken) -> tuple[pa.Table, np.ndarray]:
    """Return the rows that must change, changed, and which they are; whole units are needed."""
    hit = taken.hits(ledger)
    clip = among(ledger.column("kind"), ["clip"])
    kept = among(ledger.column("fate"), ["kept"])
    told = np.zeros(ledger.num_rows, bool)
    for name in TELLS:
        told |= ledger.column(name).is_valid().to_numpy()
    ruled = among(ledger.column("rule"), [RULE]) & among(ledger.column("fate"), ["rejected"])
    counts = _counts(ledger, clip & hit, clip & kept & ~hit)
    wanted = np.where(hit & ~clip, 0, counts)
    now = ledger.column("num_kept").fill_null(-1).to_numpy()
    miscounted = ~clip & (wanted >= 0) & (wanted != now)
    at = np.flatnonzero((hit & (told | ~ruled)) | miscounted)
    return _changed(ledger.take(pa.array(at)), hit[at], wanted[at]), at


def _counts(ledger: pa.Table, hit: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Return for each row how many clips its unit has left; -1 for units that nothing happens to."""
    units = ledger.column("unit_id").combine_chunks().dictionary_encode()
    codes = units.indices.to_numpy(zero_copy_only=False)
    counts = np.bincount(codes[left], minlength=len(units.dictionary))
    touched = np.bincount(codes[hit], minlength=len(units.dictionary)) > 0
    return np.where(touched, counts, -1)[codes] if len(codes) else np.empty(0, np.int64)


def _changed(rows: pa.Table, hit: np.ndarray, wanted: np.ndarray) -> pa.Table:
    clip = among(rows.column("kind"), ["clip"])
    at = np.flatnonzero(hit)
    for field in rows.schema:
        if field.name not in STAYS:
            rows = in_place(rows, field.name, at, _all(None, field.type, len(at)))
    emptied = np.flatnonzero(~hit & among(rows.column("fate"), ["kept"]) & (wanted == 0))
    for where, rule in ((at, RULE), (emptied, EMPTY_RULE)):
        rows = in_place(rows, "fate", where, _all("rejected", pa.utf8(), len(where)))
        rows = in_place(rows, "rule", where, _all(rule, pa.utf8(), len(where)))
    sources = np.flatnonzero(~clip)
    return in_place(rows, "num_kept", sources, pa.chunked_array([pa.array(wanted[sources])]))


def _all(value: str | None, kind: pa.DataType, count: int) -> pa.ChunkedArray:
    return pa.chunked_array([pa.repeat(pa.scalar(value, kind), count)], kind)


def hidden(ledger: pa.Table, taken: Taken) -> pa.Table:
    """Return all rows of a ledger as they are after the takedown."""
    changed, at = changes(ledger, taken)
    if not len(at):
        return ledger
    order = np.arange(ledger.num_rows)
    order[at] = ledger.num_rows + np.arange(len(at))
    return pa.concat_tables([ledger, changed]).take(pa.array(order))


def erase(annotation: Table, taken: Taken) -> int:
    """Delete an annotation's rows of what is taken down; return how many."""
    annotation.refresh()
    count = 0
    for column, names in _columns(annotation.schema().names, taken):
        there = annotation.rows([column]).column(column)
        found = there.filter(pa.array(among(there, names))).unique().to_pylist()
        count += sum(upkeep.delete_rows(annotation, one) for one in conditions(column, found))
    return count


def erased(rows: pa.Table, taken: Taken) -> pa.Table:
    """Return an annotation's rows as they are after the takedown."""
    gone = np.zeros(rows.num_rows, bool)
    for column, names in _columns(rows.schema.names, taken):
        gone |= among(rows.column(column), names)
    return rows.filter(pa.array(~gone)) if gone.any() else rows


def tells(rows: pa.Table, taken: Taken) -> bool:
    """Whether rows of a ledger or an annotation, or some of their columns, say what they must not."""
    if "unit_id" not in rows.schema.names:
        return erased(rows, taken).num_rows < rows.num_rows
    told = np.zeros(rows.num_rows, bool)
    for name in TELLS:
        told |= rows.column(name).is_valid().to_numpy()
    return bool((told & taken.hits(rows)).any())


def _columns(names: Iterable[str], taken: Taken) -> list[tuple[str, frozenset[str]]]:
    both = [("clip_id", taken.clips), ("source_sha256", taken.sources)]
    return [(column, values) for column, values in both if column in names]
