"""What becomes of each clip, from columns alone: the keep rule, leakage, near duplicates, in this order.

Nothing is decoded: scores and hashes are columns. So other thresholds give other fates in one pass
over the ledger, and only a clip that is newly wanted and was never stored needs its source again.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.columns import Column, among, in_place
from ingest.duplicates import MAX_BITS, is_flat, leaks, pairs
from ingest.keep import RULES, Keep
from ingest.rewrite import rewrite
from ingest.schema import SCORES, conformed, ledger_schema
from ingest.tables import Table
from ingest.takedown import EMPTY_RULE, RULE

LEAKAGE, NEAR = "leakage", "near_duplicate"
KEPT, ALONE = 0, -1  # a clip that passes; a row that is not ours to decide
_NAMES = ["", *RULES, LEAKAGE, NEAR]  # by code
_LEAKS, _TWIN = len(_NAMES) - 2, len(_NAMES) - 1
KEY = ("unit_id", "kind", "id")
DECIDED = ("fate", "rule", "score", "threshold", "duplicate_of", "num_kept")
READS = [
    *KEY,
    *DECIDED,
    *SCORES,
    "phash",
    "shard",
    "source_sha256",
    "source_bytes",
    "width",
    "height",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """By ledger row: ALONE, KEPT or the code of a rule, with the score and the threshold it broke."""

    codes: np.ndarray
    scores: np.ndarray
    thresholds: np.ndarray

    @property
    def passing(self) -> np.ndarray:
        """Which rows are clips that pass, before near duplicates are looked at."""
        return self.codes == KEPT


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """The rows whose fate changes, with KEY and DECIDED columns; and units to be read again."""

    changes: pa.Table
    unstored: frozenset[str]


def readable(ledger: Table) -> pa.Table:
    """Return the columns that decisions need, of all rows of a ledger."""
    stored = ledger.schema().names
    wanted = pa.schema([ledger_schema().field(name) for name in READS])
    return conformed(ledger.rows([name for name in READS if name in stored]), wanted)


def judge(
    ledger: pa.Table, *, keep: Keep, units: Collection[str], leaks: Collection[str] = ()
) -> Judged:
    """Judge the clips of `units` by a keep rule, and reject those named in `leaks`.

    Clips of other units stay in or out as they are. What was taken down, failed, or was never judged
    by such a rule is left alone.
    """
    clip, kept = among(ledger.column("kind"), ["clip"]), among(ledger.column("fate"), ["kept"])
    rules = ledger.column("rule")
    ours = clip & (kept | among(rules, _NAMES[1:]))
    mine = ours & among(ledger.column("unit_id"), units)
    codes = np.where(mine | (ours & (kept | among(rules, [NEAR]))), KEPT, ALONE)
    scores, thresholds = np.full((2, ledger.num_rows), np.nan)
    for code, (rule, (name, sign)) in enumerate(RULES.items(), 1):
        threshold = getattr(keep, rule)
        if threshold is None:
            continue
        values = ledger.column(name).to_numpy()
        broken = (
            mine & (codes == KEPT) & (sign * (values - threshold) > 0)
        )  # an unknown breaks none
        codes[broken], thresholds[broken] = code, threshold
        scores[broken] = values[broken]
    codes[mine & (codes == KEPT) & among(ledger.column("id"), leaks)] = _LEAKS
    return Judged(codes=codes, scores=scores, thresholds=thresholds)


def decide(
    ledger: pa.Table,
    judged: Judged,
    *,
    twins: Mapping[str, tuple[str, float]] | None = None,
    leaks: Mapping[str, str] | None = None,
) -> Decision:
    """Return what changes. `twins` names, for clips that pass, the better clip near to each and how near.

    `leaks` names the clip of an evaluation set that a leaking clip repeats.
    """
    codes, scores, other = judged.codes.copy(), judged.scores.copy(), dict(leaks or {})
    near = judged.passing & among(ledger.column("id"), twins or {})
    codes[near] = _TWIN
    for row in np.flatnonzero(near):
        better, far = (twins or {})[str(ledger.column("id")[int(row)])]
        other[str(ledger.column("id")[int(row)])] = better
        scores[row] = far
    units = ledger.column("unit_id")
    no_shard = ~ledger.column("shard").is_valid().to_numpy().astype(bool)
    # A unit that is read again gets all its rows anew: until then it stays as it is.
    unstored = frozenset(units.filter(pa.array((codes == KEPT) & no_shard)).to_pylist())
    waits = among(units, unstored)
    now = Judged(codes=codes, scores=scores, thresholds=judged.thresholds)
    clips = _clips(ledger, now, other, waits)
    sources = _sources(ledger, codes, waits)
    return Decision(changes=pa.concat_tables([clips, sources]), unstored=unstored)


def _clips(
    ledger: pa.Table, judged: Judged, other: Mapping[str, str], waits: np.ndarray
) -> pa.Table:
    codes, scores, thresholds = judged.codes, judged.scores, judged.thresholds
    names = pa.array([None, *_NAMES[1:]], pa.utf8())
    was = np.where(
        among(ledger.column("fate"), ["kept"]),
        KEPT,
        _index(ledger.column("rule"), pa.array(_NAMES)).fill_null(ALONE).to_numpy(),
    )
    repeats = np.isin(codes, (_LEAKS, _TWIN))
    at = np.flatnonzero(repeats)
    said = ledger.select(["id", "duplicate_of"]).take(pa.array(at)).to_pylist()
    repeats[at] = [other.get(row["id"]) != row["duplicate_of"] for row in said]
    changed = (
        (codes != was)
        | _differs(ledger.column("score"), scores)
        | _differs(ledger.column("threshold"), thresholds)
        | repeats
    )
    at = np.flatnonzero(changed & (codes != ALONE) & ~waits)
    rows = ledger.select([*KEY, "num_kept"]).take(pa.array(at))
    ids, now = rows.column("id").to_pylist(), codes[at]
    fates = np.where(now == KEPT, "kept", np.where(now == _TWIN, "duplicate", "rejected"))
    new = {
        "fate": pa.array(fates.tolist(), pa.utf8()),
        "rule": names.take(pa.array(np.where(now == KEPT, 0, now))),
        "score": pa.array(scores[at], mask=np.isnan(scores[at])),
        "threshold": pa.array(thresholds[at], mask=np.isnan(thresholds[at])),
        "duplicate_of": pa.array(
            [other.get(i) if c in (_LEAKS, _TWIN) else None for i, c in zip(ids, now, strict=True)],
            pa.utf8(),
        ),
    }
    return _decided(rows, new)


def _index(values: Column, within: Column) -> Column:
    """Return where each value stands in a column, null where it does not."""
    return pc.call_function("index_in", [values], pc.SetLookupOptions(value_set=within))


def _differs(stored: Column, values: np.ndarray) -> np.ndarray:
    before = stored.to_numpy().astype(float)
    return ~((before == values) | (np.isnan(before) & np.isnan(values)))


def _sources(ledger: pa.Table, codes: np.ndarray, waits: np.ndarray) -> pa.Table:
    """Return the sources of units with decided clips, where their counts or fates change."""
    units = ledger.column("unit_id")
    clip = among(ledger.column("kind"), ["clip"])
    still = clip & (codes == ALONE) & among(ledger.column("fate"), ["kept"])
    counts = units.filter(pa.array((clip & (codes == KEPT)) | still)).value_counts().to_pylist()
    kept = {row["values"]: row["counts"] for row in counts}
    decided = units.filter(pa.array(clip & (codes != ALONE))).unique()
    at = np.flatnonzero(~clip & among(units, decided) & ~waits)
    rows = ledger.select([*KEY, "fate", "rule", "num_kept"]).take(pa.array(at))
    now = np.array([kept.get(unit, 0) for unit in rows.column("unit_id").to_pylist()], np.int32)
    was_kept, empty = among(rows.column("fate"), ["kept"]), among(rows.column("rule"), [EMPTY_RULE])
    open_fate = was_kept | empty
    changed = open_fate & (
        (rows.column("num_kept").fill_null(-1).to_numpy() != now) | (was_kept != (now > 0))
    )
    rows, now = rows.filter(pa.array(changed)), now[changed]
    some = pa.array(now > 0)
    nothing = pa.nulls(rows.num_rows, pa.float64())
    new = {
        "fate": _chosen(some, "kept", "rejected"),
        "rule": _chosen(some, None, EMPTY_RULE),
        "score": nothing,
        "threshold": nothing,
        "duplicate_of": pa.nulls(rows.num_rows, pa.utf8()),
        "num_kept": pa.array(now),
    }
    return _decided(rows, new)


def _chosen(which: Column, yes: str | None, no: str | None) -> Column:
    pair = [pa.scalar(value, pa.utf8()) for value in (yes, no)]
    return pc.call_function("if_else", [which, *pair])


def _decided(rows: pa.Table, new: Mapping[str, Column]) -> pa.Table:
    names = (*KEY, *DECIDED)
    columns = [new[name] if name in new else rows.column(name) for name in names]
    kinds = [ledger_schema().field(name).type for name in names]
    return pa.table([c.cast(k) for c, k in zip(columns, kinds, strict=True)], names=names)


def give_fates(ledger: Table, changes: pa.Table) -> int:
    """Write new fates into the ledger; return how many files changed. Repeating it changes nothing.

    What was taken down meanwhile stays so.
    """
    if not changes.num_rows:
        return 0
    units = changes.column("unit_id").unique()

    def touches(rows: pa.Table) -> bool:
        return bool(among(rows.column("unit_id"), units).any())

    return rewrite(ledger, partial(_changed, changes=changes), reads=["unit_id"], touches=touches)


def _changed(rows: pa.Table, changes: pa.Table) -> pa.Table:
    found = _index(_keys(rows), _keys(changes).combine_chunks())
    purged = among(rows.column("rule"), [RULE])
    where = np.where(purged, -1, found.fill_null(-1).to_numpy())
    at = np.flatnonzero(where >= 0)
    new = changes.take(pa.array(where[at]))
    old = rows.select(list(DECIDED)).take(pa.array(at))
    if not len(at) or old.equals(new.select(list(DECIDED)).cast(old.schema)):
        return rows
    for name in DECIDED:
        rows = in_place(rows, name, at, new.column(name))
    return rows


def _keys(rows: pa.Table) -> Column:
    return pc.call_function(
        "binary_join_element_wise", [*(rows.column(name) for name in KEY), pa.scalar(" ")]
    )


def replace_units(ledger: Table, rows: pa.Table) -> None:
    """Put the rows of units that were read again in place of those that they had, in one commit."""
    units = rows.column("unit_id").unique()

    def change(stored: pa.Table) -> pa.Table:
        gone = among(stored.column("unit_id"), units)
        return stored.filter(pa.array(~gone)) if gone.any() else stored

    def touches(stored: pa.Table) -> bool:
        return bool(among(stored.column("unit_id"), units).any())

    rewrite(ledger, change, reads=["unit_id"], touches=touches, adds=rows)


def twins_of(
    ledger: pa.Table, judged: Judged, *, max_bits: int = MAX_BITS
) -> dict[str, tuple[str, float]]:
    """Return for each passing clip that shows what a better one does the id of that, and bits between.

    Clips are taken from the best on (most pixels, sharpest, largest source, smallest id): one stays
    unless a clip of another source that stays is near it. So of two copies of a film all clips of one
    stay, and clips of one source, where a camera stands still, are no copies of each other.
    """
    names = ["id", "phash", "source_sha256", "width", "height", "sharpness", "source_bytes"]
    known = judged.passing & ledger.column("phash").is_valid().to_numpy().astype(bool)
    rows = ledger.select(names).filter(pa.array(known)).to_pylist()
    rows = [row for row in rows if not is_flat(row["phash"])]
    rows.sort(key=_rank)
    hashes = sorted({row["phash"] for row in rows})
    near: dict[str, list[str]] = {one: [one] for one in hashes}
    for one, other in pairs(hashes, max_bits).tolist():
        near[hashes[one]].append(hashes[other])
        near[hashes[other]].append(hashes[one])
    stays: dict[str, dict[str, str]] = {one: {} for one in hashes}  # by hash: a clip of each source
    found: dict[str, tuple[str, float]] = {}
    for row in rows:
        copies = [
            (_bits(row["phash"], hashed), clip)
            for hashed in near[row["phash"]]
            for source, clip in stays[hashed].items()
            if source != row["source_sha256"] and clip != row["id"]
        ]
        if copies:
            bits, better = min(copies)
            found[row["id"]] = (better, float(bits))
        else:
            stays[row["phash"]].setdefault(row["source_sha256"], row["id"])
    return found


def _rank(row: Mapping[str, Any]) -> tuple[float, float, float, str]:
    sharpness = -math.inf if row["sharpness"] is None else row["sharpness"]
    pixels = (row["width"] or 0) * (row["height"] or 0)
    return -pixels, -sharpness, -(row["source_bytes"] or 0), row["id"]


def _bits(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def leaks_of(
    ledger: pa.Table, judged: Judged, against: pa.Table, *, max_bits: int = MAX_BITS
) -> dict[str, str]:
    """Return for each passing clip near to a clip of `against` (columns id, phash) that one's id."""
    known = judged.passing & ledger.column("phash").is_valid().to_numpy().astype(bool)
    rows = ledger.select(["id", "phash"]).filter(pa.array(known))
    theirs = against.filter(against.column("phash").is_valid())
    hit = leaks(rows.column("phash").to_pylist(), theirs.column("phash").to_pylist(), max_bits)
    ids, other = rows.column("id").to_pylist(), theirs.column("id").to_pylist()
    return {ids[one]: other[near] for one, near in hit.items()}
