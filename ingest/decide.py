"""What becomes of each clip, from columns alone: the keep rule, leakage, near duplicates, in this order.

Nothing is decoded: scores and hashes are columns. So other thresholds give other fates in one pass
over the ledger, and only a clip that is newly wanted and was never stored needs its source again.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.columns import Column, among, flags, in_place, index_in, joined
from ingest.keep import Keep, objections
from ingest.ledger import MESSAGE_CHARS, printable
from ingest.rewrite import rewrite
from ingest.schema import SCORES, conformed, ledger_schema
from ingest.stage import KeepRule
from ingest.tables import Table
from ingest.takedown import EMPTY_RULE, RULE

LEAKAGE, NEAR = "leakage", "near_duplicate"
KEPT, ALONE = 0, -1  # a clip that passes; a row that is not ours to decide
_LEAKS, _TWIN, _FIRST = 1, 2, 3  # codes of the rules that are always there, and of the first other
KEY = ("unit_id", "kind", "id")
DECIDED = ("fate", "rule", "score", "threshold", "duplicate_of", "message", "num_kept")
READS = [
    *KEY,
    *DECIDED,
    *SCORES,
    "phash",
    "shard",
    "payload_sha256",
    "source_sha256",
    "source_bytes",
    "width",
    "height",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """By ledger row: ALONE, KEPT or the code of a rule, with the score and the threshold it broke.

    `names` are the rules by code; `messages` what own rules say, by row.
    """

    codes: np.ndarray
    scores: np.ndarray
    thresholds: np.ndarray
    names: tuple[str, ...]
    messages: Mapping[int, str] = field(default_factory=dict)

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
    ledger: pa.Table,
    *,
    keep: Keep,
    units: Collection[str],
    own: Sequence[KeepRule] = (),
    leaks: Collection[str] = (),
) -> Judged:
    """Judge the clips of `units` by a keep rule and own rules, and reject those named in `leaks`.

    Scores that are no columns of the ledger are columns beside it (see evidence.scored), or unknown.
    Clips of other units stay in or out as they are. What was taken down or failed is left alone.
    """
    clip, kept = among(ledger.column("kind"), ["clip"]), among(ledger.column("fate"), ["kept"])
    rules = ledger.column("rule")
    # Whatever rule rejected it: another recipe may have had others than this one.
    ours = clip & (kept | (flags(rules.is_valid()) & ~among(rules, [RULE])))
    mine = ours & among(ledger.column("unit_id"), units)
    codes = np.where(mine | (ours & (kept | among(rules, [NEAR]))), KEPT, ALONE)
    scores, thresholds = np.full((2, ledger.num_rows), np.nan)
    asked = keep.rules()
    for code, rule in enumerate(asked, _FIRST):
        values = _values(ledger, rule.score)
        # An unknown breaks none.
        broken = mine & (codes == KEPT) & (rule.sign * (values - rule.threshold) > 0)
        codes[broken], thresholds[broken] = code, rule.threshold
        scores[broken] = values[broken]
    names = ("", LEAKAGE, NEAR, *(rule.name for rule in asked), *(rule.name for rule in own))
    judged = Judged(codes=codes, scores=scores, thresholds=thresholds, names=names, messages={})
    for code, one in enumerate(own, _FIRST + len(asked)):
        judged = _object(ledger, judged, one, code, mine)
    codes[mine & (codes == KEPT) & among(ledger.column("id"), leaks)] = _LEAKS
    return judged


def _values(ledger: pa.Table, name: str) -> np.ndarray:
    if name not in ledger.schema.names:
        return np.full(ledger.num_rows, np.nan)
    return ledger.column(name).to_numpy().astype(float)


def _object(
    ledger: pa.Table, judged: Judged, rule: KeepRule, code: int, mine: np.ndarray
) -> Judged:
    """Return what was judged with the objections of an own rule to what passed so far."""
    at = np.flatnonzero(mine & (judged.codes == KEPT))
    columns = {name: _values(ledger, name)[at] for name in rule.needs_scores}
    known = {
        name: [None if np.isnan(value) else value for value in values.tolist()]
        for name, values in columns.items()
    }
    messages = dict(judged.messages)
    for index, objection in objections(rule, known, len(at)).items():
        row = int(at[index])
        judged.codes[row] = code
        judged.scores[row] = np.nan if objection.score is None else objection.score
        judged.thresholds[row] = np.nan if objection.threshold is None else objection.threshold
        if objection.message:
            messages[row] = printable(objection.message)[:MESSAGE_CHARS]
    return replace(judged, messages=messages)


def decide(
    ledger: pa.Table,
    judged: Judged,
    *,
    twins: Mapping[str, tuple[str, float]] | None = None,
    leaks: Mapping[str, str] | None = None,
    final: bool = False,
) -> Decision:
    """Return what changes. `twins` names, for clips that pass, the better clip near to each and how near.

    `leaks` names the clip of an evaluation set that a leaking clip repeats. Units with clips that
    would be kept but were never stored wait to be read again, unless this is `final`: then such clips
    stay as they are, and the others get their fates.
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
    absent = (codes == KEPT) & no_shard
    # A unit that is read again gets all its rows anew: until then it stays as it is.
    unstored = frozenset(units.filter(pa.array(absent)).to_pylist())
    if final:
        codes[absent] = ALONE
    waits = among(units, [] if final else unstored)
    now = replace(judged, codes=codes, scores=scores)
    clips = _clips(ledger, now, other, waits)
    sources = _sources(ledger, codes, waits)
    return Decision(changes=pa.concat_tables([clips, sources]), unstored=unstored)


def _clips(
    ledger: pa.Table, judged: Judged, other: Mapping[str, str], waits: np.ndarray
) -> pa.Table:
    codes, scores, thresholds = judged.codes, judged.scores, judged.thresholds
    names = pa.array([None, *judged.names[1:]], pa.utf8())
    known = index_in(ledger.column("rule"), pa.array(judged.names)).fill_null(ALONE).to_numpy()
    was = np.where(among(ledger.column("fate"), ["kept"]), KEPT, known)
    repeats = np.isin(codes, (_LEAKS, _TWIN))
    at = np.flatnonzero(repeats)
    said = ledger.select(["id", "duplicate_of"]).take(pa.array(at)).to_pylist()
    repeats[at] = [other.get(row["id"]) != row["duplicate_of"] for row in said]
    worded = np.flatnonzero(flags(ledger.column("message").is_valid()) & (codes != ALONE))
    for row in {*judged.messages, *worded.tolist()}:
        repeats[row] |= judged.messages.get(row) != ledger.column("message")[row].as_py()
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
        "message": pa.array([judged.messages.get(row) for row in at.tolist()], pa.utf8()),
    }
    return _decided(rows, new)


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
    rows = ledger.select([*KEY, "fate", "rule", "message", "num_kept"]).take(pa.array(at))
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
    here, there = (joined(*(table.column(name) for name in KEY)) for table in (rows, changes))
    found = index_in(here, there)
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
