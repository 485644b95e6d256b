"""Which clips of a ledger show what another does: near duplicates inside, leaks of evaluation sets."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ingest.columns import among
from ingest.decide import Decision, Judged, decide, judge, readable
from ingest.duplicates import MAX_BITS, MIN_COSINE, is_flat
from ingest.duplicates import leaks as nearest
from ingest.evidence import NOTHING_PENDING, Alike, Pending, alike, scored
from ingest.keep import Keep, wanted_scores
from ingest.nearness import WORDS, apart, search, words_of
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
    gets the clips that may be near others, and returns what says of two whether they are copies.
    """
    names = ["id", "phash", "source_sha256", "width", "height", "sharpness", "source_bytes"]
    known = judged.passing & ledger.column("phash").is_valid().to_numpy().astype(bool)
    rows = ledger.select(names).filter(pa.array(known)).to_pylist()
    rows = [row for row in rows if not is_flat(row["phash"])]
    rows.sort(key=_rank)
    staying = _Staying(rows, max_bits)
    are_copies = confirm([row["id"] for row in rows if staying.may_be_near(row["phash"])])
    found: dict[str, tuple[str, float]] = {}
    for row in rows:
        near = staying.near(row["phash"], row["source_sha256"])
        best = next((n for n in near if n[0] != row["id"] and are_copies(row["id"], n[0])), None)
        if best:
            found[row["id"]] = best
        else:
            staying.add(row)
    return found


class _Staying:
    """The clips that stay, and which of them are near a hash: one of each source and hash."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], max_bits: int) -> None:
        sources: dict[str, set[str]] = {}
        for row in rows:
            sources.setdefault(row["phash"], set()).add(row["source_sha256"])
        hashes, self._max_bits = sorted(sources), max_bits
        self._words = words_of(hashes)
        # Clips of one source are no copies of each other; a hash of several is near to all.
        number = {one: n for n, one in enumerate(sorted(set().union(*sources.values())))}
        labels = [
            number[next(iter(sources[one]))] if len(sources[one]) == 1 else -1 - n
            for n, one in enumerate(hashes)
        ]
        found = search(self._words, max_bits, np.array(labels, np.int64))
        self._at = {one: n for n, one in enumerate(hashes)}
        self._crowds: list[int] = found.crowds.tolist()
        self._pairs: dict[str, list[str]] = {one: [one] for one in hashes}
        for one, other in found.pairs.tolist():
            self._pairs[hashes[one]].append(hashes[other])
            self._pairs[hashes[other]].append(hashes[one])
        self._several = {one for one in hashes if len(sources[one]) > 1}
        self._clips: dict[str, dict[str, str]] = {one: {} for one in hashes}
        self._crowded: dict[tuple[int, str], _Crowded] = {}
        self._of_crowd: dict[int, list[str]] = {}

    def may_be_near(self, hashed: str) -> bool:
        """Whether a clip of another source may be near, staying or not."""
        alone = len(self._pairs[hashed]) == 1 and hashed not in self._several
        return not alone or self._crowds[self._at[hashed]] >= 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Let a clip stay; of those with one source and hash the first counts."""
        hashed, source = row["phash"], row["source_sha256"]
        at = self._at[hashed]
        crowd = self._crowds[at]
        if source in self._clips[hashed]:
            return
        self._clips[hashed][source] = row["id"]
        if crowd >= 0:
            if (crowd, source) not in self._crowded:
                self._crowded[crowd, source] = _Crowded()
                self._of_crowd.setdefault(crowd, []).append(source)
            self._crowded[crowd, source].add(row["id"], self._words[at])

    def near(self, hashed: str, source: str) -> Iterator[tuple[str, float]]:
        """Yield the clips of other sources that stay and are near, the nearest first, with the bits."""
        at = self._at[hashed]
        found = [
            (_bits(hashed, other), clip)
            for other in self._pairs[hashed]
            for theirs, clip in self._clips[other].items()
            if theirs != source
        ]
        crowd = self._crowds[at]
        groups = [
            (self._crowded[crowd, theirs], self._crowded[crowd, theirs].apart(self._words[at]))
            for theirs in self._of_crowd.get(crowd, ())
            if theirs != source
        ]
        for bits in range(self._max_bits + 1) if groups or found else ():
            clips = {clip for away, clip in found if away == bits}
            for group, distance in groups:
                clips.update(group.clips[n] for n in np.flatnonzero(distance == bits).tolist())
            yield from ((clip, float(bits)) for clip in sorted(clips))


class _Crowded:
    """Clips of one source and crowd, compared all at once."""

    def __init__(self) -> None:
        self.clips: list[str] = []
        self._words = np.empty((16, WORDS), np.uint64)

    def add(self, clip: str, words: np.ndarray) -> None:
        if len(self.clips) == len(self._words):
            self._words = np.concatenate([self._words, np.empty_like(self._words)])
        self._words[len(self.clips)] = words
        self.clips.append(clip)

    def apart(self, words: np.ndarray) -> np.ndarray:
        return apart(self._words[: len(self.clips)], words)


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
