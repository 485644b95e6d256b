"""What taking down means for rows: whose they are, what stays of a ledger row, which rows go."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from ingest.columns import among, in_place
from ingest.rewrite import rewrite
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


class Remembers(Protocol):
    """What keeps a log, as a dataset does."""

    def history(self) -> list[dict[str, Any]]:
        """Return the operations, oldest first."""
        ...


@dataclass(frozen=True, slots=True)
class Taken:
    """Sources (their sha256) and clips (their ids) that are taken down."""

    sources: frozenset[str] = frozenset()
    clips: frozenset[str] = frozenset()

    @classmethod
    def of(cls, dataset: "Remembers") -> "Taken":
        """Return all that was ever taken down, or is being."""
        told = [row["detail"] for row in dataset.history() if row["operation"] == OPERATION]
        return cls(
            frozenset(name for one in told for name in one["sources"]),
            frozenset(name for one in told for name in one["clips"]),
        )

    def __bool__(self) -> bool:
        """Whether anything is taken down."""
        return bool(self.sources or self.clips)

    def with_clips(self, names: Iterable[str]) -> "Taken":
        """Return the same with more clips."""
        return Taken(self.sources, self.clips | frozenset(names))

    def hits(self, ledger: pa.Table) -> np.ndarray:
        """Return which ledger rows are of these; columns kind, id and source_sha256 are needed."""
        mine = among(ledger.column("id"), self.clips) & among(ledger.column("kind"), ["clip"])
        whole = among(ledger.column("id"), self.sources)
        return mine | whole | among(ledger.column("source_sha256"), self.sources)


def hide(ledger: Table, taken: Taken) -> int:
    """Give the rows of what is taken down their last fate; return how many files changed.

    Clips and sources become `rejected` by the rule `purged`, and say nothing else any more; other
    sources count the clips that they have left. Whoever commits meanwhile loses nothing.
    """
    count = 0
    for _ in range(PASSES):  # rows may come, and other takedowns may count, at the same time
        ledger.refresh()
        left = clips_left(ledger.rows([*KEY, "fate", "source_sha256"]), taken)
        changed = rewrite(
            ledger,
            partial(hidden, taken=taken, left=left),
            reads=[*KEY, "fate", "rule", "source_sha256", "num_kept", *TELLS],
            touches=partial(_must_change, taken=taken, left=left),
        )
        if not changed:
            break
        count += changed
    return count


def clips_left(ledger: pa.Table, taken: Taken) -> dict[str, int]:
    """Return how many clips are left to the units that lose some; all their rows are needed."""
    hit, kept = taken.hits(ledger), among(ledger.column("fate"), ["kept"])
    clip = among(ledger.column("kind"), ["clip"])
    units = ledger.column("unit_id")
    lose = units.filter(pa.array(hit & clip)).unique().to_pylist()
    mine = among(units, lose)
    counted = units.filter(pa.array(mine & clip & kept & ~hit)).value_counts().to_pylist()
    return dict.fromkeys(lose, 0) | {row["values"]: row["counts"] for row in counted}


def hidden(ledger: pa.Table, taken: Taken, left: Mapping[str, int]) -> pa.Table:
    """Return rows of a ledger as they are after the takedown, the very table where none changes."""
    hit, wanted, changes = _decided(ledger, taken, left)
    if not changes.any():
        return ledger
    at = np.flatnonzero(hit & changes)
    for field in ledger.schema:
        if field.name not in STAYS:
            ledger = in_place(ledger, field.name, at, _all(None, field.type, len(at)))
    kept = among(ledger.column("fate"), ["kept"])
    emptied = np.flatnonzero(changes & ~hit & kept & (wanted == 0))
    for where, rule in ((at, RULE), (emptied, EMPTY_RULE)):
        ledger = in_place(ledger, "fate", where, _all("rejected", pa.utf8(), len(where)))
        ledger = in_place(ledger, "rule", where, _all(rule, pa.utf8(), len(where)))
    counted = np.flatnonzero(changes & (wanted >= 0))
    return in_place(ledger, "num_kept", counted, pa.chunked_array([pa.array(wanted[counted])]))


def spared(annotation: pa.Table, taken: Taken) -> pa.Table:
    """Return the rows of an annotation that are not of what is taken down."""
    of_clips = "clip_id" in annotation.column_names
    names = ("clip_id", taken.clips) if of_clips else ("source_sha256", taken.sources)
    return annotation.filter(pa.array(~among(annotation.column(names[0]), names[1])))


def _must_change(ledger: pa.Table, taken: Taken, left: Mapping[str, int]) -> bool:
    return bool(_decided(ledger, taken, left)[2].any())


def _decided(
    ledger: pa.Table, taken: Taken, left: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return which rows are taken down, how many clips sources have left, and which rows change.

    The number is -1 for clips, and for sources that nothing happens to.
    """
    hit, source = taken.hits(ledger), among(ledger.column("kind"), ["source"])
    lose = np.flatnonzero(source & among(ledger.column("unit_id"), left) & ~hit)
    units = ledger.column("unit_id").take(pa.array(lose)).to_pylist()
    wanted = np.where(source & hit, 0, -1)
    wanted[lose] = [left[unit] for unit in units]
    ruled = among(ledger.column("rule"), [RULE]) & among(ledger.column("fate"), ["rejected"])
    miscounted = (wanted >= 0) & (wanted != ledger.column("num_kept").fill_null(-1).to_numpy())
    return hit, wanted, (hit & (_told(ledger) | ~ruled)) | miscounted


def _told(ledger: pa.Table) -> np.ndarray:
    """Return which rows say more than may be said of what was taken down."""
    told = np.zeros(ledger.num_rows, bool)
    for name in TELLS:
        told |= ledger.column(name).is_valid().to_numpy().astype(bool)
    return told


def _all(value: str | None, kind: pa.DataType, count: int) -> pa.ChunkedArray:
    return pa.chunked_array([pa.repeat(pa.scalar(value, kind), count)], kind)


def erase(annotation: Table, taken: Taken) -> int:
    """Delete an annotation's rows of what is taken down; return how many files changed."""
    reads = [column for column, _ in _columns(annotation.schema().names, taken)]
    touches = partial(tells, taken=taken)
    return rewrite(annotation, partial(erased, taken=taken), reads=reads, touches=touches)


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
    return bool((_told(rows) & taken.hits(rows)).any())


def _columns(names: Iterable[str], taken: Taken) -> list[tuple[str, frozenset[str]]]:
    both = [("clip_id", taken.clips), ("source_sha256", taken.sources)]
    return [(column, values) for column, values in both if column in names]
