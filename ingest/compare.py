"""What changed between two versions, or two datasets: clips, fates, captions, labels, scores."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.columns import Column, among, flags, index_in
from ingest.schema import FAILED, SCORES, conformed, ledger_schema
from ingest.store import Dataset

MAX_LISTED = 100
BINS = 20
ORDERS = {
    "captions": ("caption", ["rank", "producer", "caption"]),
    "labels": ("label", ["producer", "label"]),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Changed:
    """How many there are, and the first of them by id (or of what they were and are)."""

    total: int
    ids: tuple[str, ...]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """A score of kept clips before and after: counts between common edges, and how many lack it."""

    edges: tuple[float, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    unknown_before: int
    unknown_after: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Diff:
    """What changed from one version to another.

    Clips are candidates of whatever fate; captions, labels and payloads are compared where a clip
    is kept in both. `refated` lists the fates, `recaptioned` and `relabelled` the texts.
    """

    clips_before: int
    clips_after: int
    added: Changed
    removed: Changed
    refated: Changed
    recaptioned: Changed
    relabelled: Changed
    payload_changed: Changed
    sources_added: Changed
    sources_removed: Changed
    scores: Mapping[str, Histogram]

    @property
    def same(self) -> bool:
        """Whether nothing changed but, perhaps, where the bytes lie."""
        parts = (self.added, self.removed, self.refated, self.recaptioned, self.relabelled)
        rest = (self.payload_changed, self.sources_added, self.sources_removed)
        return not sum(part.total for part in (*parts, *rest))


def diff(before: Dataset, after: Dataset, *, max_listed: int = MAX_LISTED) -> Diff:
    """Compare two versions of a dataset, or two datasets; lists hold up to `max_listed` each."""
    old, new = _clips(before), _clips(after)
    removed, added = _apart(old.column("id"), new.column("id"), max_listed)
    gone, come = _apart(_sources(before), _sources(after), max_listed)
    at = _index(new.column("id"), old.column("id"))
    both = [old.take(pa.array(at[at >= 0])), new.filter(pa.array(at >= 0))]
    kept = pa.array(_kept(both[0]) & _kept(both[1]))
    in_both = [rows.filter(kept) for rows in both]
    return Diff(
        clips_before=old.num_rows,
        clips_after=new.num_rows,
        added=added,
        removed=removed,
        refated=_changed(both, "fate", max_listed),
        recaptioned=_changed(in_both, "caption", max_listed),
        relabelled=_changed(in_both, "label", max_listed),
        payload_changed=_changed(in_both, "payload_sha256", max_listed),
        sources_added=come,
        sources_removed=gone,
        scores={name: _histogram(old, new, name) for name in SCORES},
    )


def _clips(dataset: Dataset) -> pa.Table:
    """Return one row per candidate clip, chosen and described as the relation `clips` does.

    Not by SQL: sorting a million rows, to choose among rows that are alone, takes most of its time.
    """
    rows = _ledger(dataset, ["id", "kind", "unit_id", "fate", "payload_sha256", *SCORES])
    rows = rows.filter(pa.array(among(rows.column("kind"), ["clip"])))
    if len(rows.column("id").unique()) < rows.num_rows:
        worse = pa.array((~_kept(rows)).astype(np.int8))
        rows = _firsts(rows.append_column("worse", worse), "id", ["worse", "unit_id"])
    columns = {name: rows.column(name) for name in ("id", "fate", *SCORES)}
    columns["payload_sha256"] = rows.column("payload_sha256").fill_null("")
    for name, (text, order) in ORDERS.items():
        columns[text] = _said(rows, dataset.annotation(name), text, order)
    return pa.table(columns)


def _ledger(dataset: Dataset, names: list[str]) -> pa.Table:
    table = dataset.table("ledger")
    stored = table.schema().names if table is not None else []
    rows = table.rows([name for name in names if name in stored]) if table is not None else None
    wanted = pa.schema([ledger_schema().field(name) for name in names])
    return conformed(rows, wanted) if rows is not None else wanted.empty_table()


def _sources(dataset: Dataset) -> Column:
    rows = _ledger(dataset, ["id", "kind"])
    ids = rows.filter(pa.array(among(rows.column("kind"), ["source"]))).column("id").unique()
    return pa.chunked_array([ids])


def _said(clips: pa.Table, said: pa.Table, text: str, order: list[str]) -> Column:
    """Return for each clip the first text, in that order, that is bound to its payload; else ""."""
    if "status" in said.schema.names:  # a caption that failed is none
        said = said.filter(pa.array(~among(said.column("status"), [FAILED])))
    at = _index(said.column("clip_id"), clips.column("id"))
    said = said.append_column("at", pa.array(at)).filter(pa.array(at >= 0))
    payloads = clips.column("payload_sha256").take(said.column("at"))
    bound = pc.call_function("equal", [payloads, said.column("payload_sha256")])
    said = said.filter(pa.array(flags(bound)))
    if len(said.column("at").unique()) < said.num_rows:
        said = _firsts(said, "at", order)
    where = np.full(clips.num_rows, -1)
    where[said.column("at").to_numpy()] = np.arange(said.num_rows)
    return said.column(text).take(pa.array(where, mask=where < 0)).fill_null("")


def _firsts(rows: pa.Table, key: str, order: list[str]) -> pa.Table:
    """Return for each value of a column the row that comes first in an order."""
    ordered = rows.sort_by([(name, "ascending") for name in order])
    codes = pa.concat_arrays(ordered.column(key).chunks).dictionary_encode().indices
    _codes, first = np.unique(codes.to_numpy(), return_index=True)
    return ordered.take(pa.array(first))


def _index(values: Column, within: Column) -> np.ndarray:
    """Return where each value stands in a column, -1 where it does not."""
    return index_in(values, within).fill_null(-1).to_numpy()


def _apart(old: Column, new: Column, count: int) -> tuple[Changed, Changed]:
    """Return what only the first has, and what only the second has."""
    sides = []
    for mine, other in ((old, new), (new, old)):
        only = mine.filter(pa.array(~among(mine, other)))
        sides.append(Changed(total=len(only), ids=tuple(only.sort()[:count].to_pylist())))
    return sides[0], sides[1]


def _changed(both: list[pa.Table], name: str, count: int) -> Changed:
    pair = [rows.column(name) for rows in both]
    at = np.flatnonzero(flags(pc.call_function("not_equal", pair)))
    old, new = (rows.select(["id", name]).take(pa.array(at)) for rows in both)
    order = pa.table(
        {"id": new.column("id"), "before": old.column(name), "after": new.column(name)}
    )
    listed = order.sort_by("id").slice(0, count).to_pylist()
    return Changed(
        total=len(at),
        ids=tuple(row["id"] for row in listed),
        before=tuple(row["before"] for row in listed),
        after=tuple(row["after"] for row in listed),
    )


def _kept(rows: pa.Table) -> np.ndarray:
    return among(rows.column("fate"), ["kept"])


def _histogram(old: pa.Table, new: pa.Table, name: str) -> Histogram:
    sides = [
        rows.column(name).cast(pa.float64()).to_numpy()[_kept(rows)].astype(float)
        for rows in (old, new)
    ]
    known = [values[np.isfinite(values)] for values in sides]
    every = np.concatenate(known)
    edges = np.histogram_bin_edges(every, BINS) if len(every) else np.empty(0)
    counts = [
        np.histogram(values, edges)[0] if len(edges) else np.empty(0, int) for values in known
    ]
    return Histogram(
        edges=tuple(edges.tolist()),
        before=tuple(int(count) for count in counts[0]),
        after=tuple(int(count) for count in counts[1]),
        unknown_before=len(sides[0]) - len(known[0]),
        unknown_after=len(sides[1]) - len(known[1]),
    )
