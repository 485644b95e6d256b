"""Which clips of a ledger show what another does: near duplicates inside, leaks of evaluation sets."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ingest.columns import among
from ingest.decide import Decision, Judged, decide, judge, readable
from ingest.duplicates import MAX_BITS, is_flat, pairs
from ingest.duplicates import leaks as nearest
from ingest.keep import Keep
from ingest.store import Dataset

MOST_BITS = 20  # beyond, the index has no bands left to look up


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """What is a copy: clips of two sources whose hashes differ in at most `max_bits` of 192 bits.

    With `near`, the best of such clips stays. What is a copy of a kept clip of the datasets `against`
    (those that results are measured on) is rejected.
    """

    near: bool = True
    max_bits: int = MAX_BITS
    against: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what would be slow or would match anything."""
        if not 0 <= self.max_bits <= MOST_BITS:
            raise ValueError(f"max_bits={self.max_bits}: must be within 0 to {MOST_BITS}")


def decision(
    dataset: Dataset, units: Collection[str], *, keep: Keep, duplicates: Duplicates
) -> Decision:
    """Return which fates change when the clips of `units` are judged, and copies in the dataset found.

    Raises NotADataset for one of `duplicates.against` that is none.
    """
    ledger = readable(dataset.ledger_table)
    judged, leaks = judge(ledger, keep=keep, units=units), dict[str, str]()
    for place in duplicates.against:
        theirs = readable(Dataset.open(place).ledger_table)
        kept = theirs.filter(pa.array(among(theirs.column("fate"), ["kept"])))
        leaks |= leaks_of(ledger, judged, kept, max_bits=duplicates.max_bits)
    if leaks:
        judged = judge(ledger, keep=keep, units=units, leaks=leaks)
    twins = twins_of(ledger, judged, max_bits=duplicates.max_bits) if duplicates.near else {}
    return decide(ledger, judged, twins=twins, leaks=leaks)


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
    hit = nearest(rows.column("phash").to_pylist(), theirs.column("phash").to_pylist(), max_bits)
    ids, other = rows.column("id").to_pylist(), theirs.column("id").to_pylist()
    return {ids[one]: other[near] for one, near in hit.items()}
