"""Which clips of a ledger show what another does: near duplicates inside, leaks of evaluation sets."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from ingest.columns import among
from ingest.decide import Decision, Judged, decide, judge, readable
from ingest.duplicates import MAX_BITS, MIN_COSINE, is_flat, pairs
from ingest.duplicates import leaks as nearest
from ingest.evidence import NOTHING_PENDING, Alike, Pending, alike, scored
from ingest.keep import Keep, wanted_scores
from ingest.stage import KeepRule
from ingest.store import Dataset

MOST_BITS = 20  # beyond, the index has no bands left to look up


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """What is a copy: clips of two sources whose hashes differ in at most `max_bits` of 192 bits.

    With `near`, the best of such clips stays; where both have an embedding, its cosine must reach
    `min_cosine` too. What is a copy of a kept clip of the datasets `against`
    (those that results are measured on) is rejected.
    """

    near: bool = True
    max_bits: int = MAX_BITS
    min_cosine: float = MIN_COSINE
    against: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what would be slow or would match anything."""
        if not 0 <= self.max_bits <= MOST_BITS:
            raise ValueError(f"max_bits={self.max_bits}: must be within 0 to {MOST_BITS}")
        if not -1 <= self.min_cosine <= 1:
            raise ValueError(f"min_cosine={self.min_cosine}: must be within -1 to 1")


def decision(
    dataset: Dataset,
    units: Collection[str],
    *,
    keep: Keep,
    duplicates: Duplicates,
    own: Sequence[KeepRule] = (),
    pending: Pending = NOTHING_PENDING,
    final: bool = False,
) -> Decision:
    """Return which fates change when the clips of `units` are judged, and copies in the dataset found.

    `own` are the own rules of `keep`; what is `pending` decides nothing yet; for `final` see decide. Raises NotADataset for
    one of `duplicates.against` that is none, and what an own rule raises.
    """
    ledger = readable(dataset.ledger_table)
    ledger = scored(dataset, ledger, wanted_scores(keep, own), pending)
    judged, leaks = judge(ledger, keep=keep, units=units, own=own), dict[str, str]()
    for place in duplicates.against:
        theirs = readable(Dataset.open(place).ledger_table)
        kept = theirs.filter(pa.array(among(theirs.column("fate"), ["kept"])))
        leaks |= leaks_of(ledger, judged, kept, max_bits=duplicates.max_bits)
    if leaks:
        judged = judge(ledger, keep=keep, units=units, own=own, leaks=leaks)
    confirm = partial(alike, dataset, min_cosine=duplicates.min_cosine, pending=pending)
    twins = (
        twins_of(ledger, judged, max_bits=duplicates.max_bits, confirm=confirm)
        if duplicates.near
        else {}
    )
    return decide(ledger, judged, twins=twins, leaks=leaks, final=final)


def _by_hash(_clips: Collection[str]) -> Alike:
    return lambda _one, _other: True


def twins_of(
    ledger: pa.Table,
    judged: Judged,
    *,
    max_bits: int = MAX_BITS,
    confirm: Callable[[Collection[str]], Alike] = _by_hash,
) -> dict[str, tuple[str, float]]:
    """Return for each passing clip that shows what a better one does the id of that, and bits between.

    Clips are taken from the best on (most pixels, sharpest, largest source, smallest id): one stays
    unless a clip of another source that stays is near it. So of two copies of a film all clips of one
    stay, and clips of one source, where a camera stands still, are no copies of each other. `confirm`
    gets the clips that are near others, and returns what says of two whether they are copies.
    """
    names = ["id", "phash", "source_sha256", "width", "height", "sharpness", "source_bytes"]
    known = judged.passing & ledger.column("phash").is_valid().to_numpy().astype(bool)
    rows = ledger.select(names).filter(pa.array(known)).to_pylist()
    rows = [row for row in rows if not is_flat(row["phash"])]
    rows.sort(key=_rank)
    near, sources = _near(rows, max_bits), dict[str, set[str]]()
    for row in rows:
        sources.setdefault(row["phash"], set()).add(row["source_sha256"])
    told = {one: set().union(*(sources[other] for other in near[one])) for one in near}
    are_copies = confirm([row["id"] for row in rows if len(told[row["phash"]]) > 1])
    stays: dict[str, dict[str, str]] = {one: {} for one in near}  # by hash: a clip of each source
    found: dict[str, tuple[str, float]] = {}
    for row in rows:
        copies = [
            (_bits(row["phash"], hashed), clip)
            for hashed in near[row["phash"]]
            for source, clip in stays[hashed].items()
            if source != row["source_sha256"] and clip != row["id"]
        ]
        best = next((one for one in sorted(copies) if are_copies(row["id"], one[1])), None)
        if best:
            found[row["id"]] = (best[1], float(best[0]))
        else:
            stays[row["phash"]].setdefault(row["source_sha256"], row["id"])
    return found


def _near(rows: Sequence[Mapping[str, Any]], max_bits: int) -> dict[str, list[str]]:
    """Return for each hash those that are near it, itself first."""
    hashes = sorted({row["phash"] for row in rows})
    near: dict[str, list[str]] = {one: [one] for one in hashes}
    for one, other in pairs(hashes, max_bits).tolist():
        near[hashes[one]].append(hashes[other])
        near[hashes[other]].append(hashes[one])
    return near


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
    hit = nearest(rows.column("phash").to_pylist(), theirs.column("phash").to_pylist(), max_bits)
    ids, other = rows.column("id").to_pylist(), theirs.column("id").to_pylist()
    return {ids[one]: other[near] for one, near in hit.items()}
