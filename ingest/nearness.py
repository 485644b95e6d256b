"""The search for near hashes among many: by bands of their bits, and in crowds by comparison.

A crowd is where very many are near each other, as of a camera that stands still: their pairs would
fill memory, so that they are named together, and compared by whoever needs some of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

WORDS = 3  # of 64 bits, in a hash
DENSE_PAIRS = 4096  # that agree on the same bands: from here on a crowd is looked for
CROWD = 64  # hashes near to one of them
CHUNK_PAIRS = 1 << 20  # that are compared at once


@dataclass(frozen=True, slots=True)
class Near:
    """Pairs of rows, int64 (N, 2), and for each row its crowd, -1 for none.

    Each pair once, the smaller row first, sorted. Two rows that are near are a pair, or of one crowd,
    of which not all are near each other.
    """

    pairs: np.ndarray
    crowds: np.ndarray

    def crowded(self) -> list[np.ndarray]:
        """Return the rows of each crowd."""
        rows = np.flatnonzero(self.crowds >= 0)
        rows = rows[np.argsort(self.crowds[rows], kind="stable")]
        return np.split(rows, np.flatnonzero(np.diff(self.crowds[rows])) + 1) if len(rows) else []


def words_of(hashes: Sequence[str]) -> np.ndarray:
    """Return hashes as uint64 (N, 3); raises ValueError for what is none."""
    if any(len(hashed) != WORDS * 16 for hashed in hashes):
        raise ValueError(f"a hash has {WORDS * 16} hex digits")
    raw = bytes.fromhex("".join(hashes))
    return np.frombuffer(raw, ">u8").astype(np.uint64).reshape(-1, WORDS)


def apart(words: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Return in how many bits hashes, uint64 (N, 3), differ from one, or each from its own."""
    bits = np.bitwise_count(words ^ one)
    return bits[:, 0] + bits[:, 1] + bits[:, 2]


def search(words: np.ndarray, max_bits: int, labels: np.ndarray) -> Near:
    """Return which hashes of two labels differ in at most `max_bits` bits; those with a 0 never do.

    None is lost: the bits are cut into max_bits + 4 bands, so that two such hashes agree on four bands
    or more, and on two or more of the even or of the odd ones; all that agree on two bands of one half
    are compared in full, but for those of one label. Memory grows with the hashes and the pairs found.
    Quick up to about max_bits = 20: 100 000 random hashes and 20 000 of one view by four still cameras
    took 1.3 s of a core, and up to 4.4 s where up to 30 bits of the view were turned.
    """
    rows = np.flatnonzero((words != 0).all(axis=1))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    crowds = _Crowds(len(words))
    among = _Among(words, labels, max_bits, crowds)
    codes = np.empty(0, np.int64)
    for key in _keys(words[rows], max_bits):
        found = [codes]
        for one, other in among.candidates(key, rows):
            close = apart(words[one], words[other]) <= max_bits
            low, high = np.minimum(one, other)[close], np.maximum(one, other)[close]
            found.append(low * len(words) + high)
        codes = np.unique(np.concatenate(found))  # most pairs agree on many bands
        low, high = np.divmod(codes, len(words))
        codes = codes[(crowds.of[low] < 0) | (crowds.of[low] != crowds.of[high])]
    return Near(np.stack(np.divmod(codes, len(words)), axis=1), crowds.of)


class _Crowds:
    """Which crowd each row is of, -1 for none."""

    def __init__(self, count: int) -> None:
        self.of = np.full(count, -1, np.int64)
        self._next = 0

    def join(self, rows: np.ndarray) -> None:
        """Make rows, and the crowds that they are of, one crowd."""
        known = np.unique(self.of[rows])
        known = known[known >= 0]
        for other in known[1:].tolist():
            self.of[self.of == other] = known[0]
        self.of[rows] = known[0] if len(known) else self._next
        self._next += not len(known)

    def joined(self, rows: np.ndarray) -> bool:
        """Whether all are of one crowd already."""
        of = self.of[rows]
        return bool(of[0] >= 0 and (of == of[0]).all())


@dataclass(frozen=True, slots=True)
class _Among:
    """What is searched, and the crowds that are found on the way."""

    words: np.ndarray
    labels: np.ndarray
    max_bits: int
    crowds: _Crowds

    def candidates(
        self, key: np.ndarray, rows: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield pairs of rows (in order of their labels) with equal keys and two labels, in pieces.

        Not those of one crowd; rows that turn out to be one are joined.
        """
        if not len(rows):
            return
        order = np.argsort(key, kind="stable")
        key, rows = key[order], rows[order]
        begins = np.concatenate([[True], key[1:] != key[:-1]])
        ends = _ends(begins)
        others = _ends(begins | np.concatenate([[True], np.diff(self.labels[rows]) != 0]))
        counts = ends - others  # partners of each: from where other labels begin to the key's end
        buckets = np.flatnonzero(begins)
        for first in buckets[np.add.reduceat(counts, buckets) > DENSE_PAIRS].tolist():
            counts[first : ends[first]] = 0
            yield from self._dense(rows[first : ends[first]])
        have = np.flatnonzero(counts)
        before = np.cumsum(counts[have]) - counts[have]
        for piece in np.split(have, np.flatnonzero(np.diff(before // CHUNK_PAIRS)) + 1):
            each = counts[piece]
            one = np.repeat(piece, each)
            step = np.arange(len(one)) - np.repeat(np.cumsum(each) - each, each)
            yield rows[one], rows[others[one] + step]

    def _dense(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the pairs of two labels among rows, and join those with many near ones to a crowd.

        With a row and all near it go the rows within twice as far: what is near any of them is among those.
        """
        while len(rows) > 1 and not self.crowds.joined(rows):
            bits = apart(self.words[rows], self.words[rows[0]])
            near = bits <= self.max_bits
            if np.count_nonzero(near) > CROWD:
                self.crowds.join(rows[bits <= 2 * self.max_bits])
                rows = rows[~near]
            else:
                other = rows[near & (self.labels[rows] != self.labels[rows[0]])]
                yield np.repeat(rows[0], len(other)), other
                rows = rows[1:]


def _ends(begins: np.ndarray) -> np.ndarray:
    """Return for each place where its run ends, the runs' beginnings being marked."""
    starts = np.append(np.flatnonzero(begins), len(begins))
    return np.repeat(starts[1:], np.diff(starts))


def _keys(words: np.ndarray, max_bits: int) -> Iterator[np.ndarray]:
    # Equal keys: agreement on two bands of one half.
    count = words.shape[1] * 64
    bits = np.unpackbits(words.astype(">u8").view(np.uint8).reshape(len(words), count // 8), axis=1)
    bands = [_packed(band) for band in np.array_split(bits, max_bits + 4, axis=1)]
    for half in (bands[0::2], bands[1::2]):
        for one, other in combinations(half, 2):
            yield (one << np.uint64(32)) ^ other if max_bits > 2 else _ranked(one, other)


def _packed(band: np.ndarray) -> np.ndarray:
    weights = np.uint64(1) << np.arange(band.shape[1], dtype=np.uint64)
    return band.astype(np.uint64) @ weights


def _ranked(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    # Bands of more than 32 bits do not fit side by side; their ranks do.
    ranks = [np.unique(band, return_inverse=True)[1].astype(np.uint64) for band in (one, other)]
    return (ranks[0].ravel() << np.uint64(32)) ^ ranks[1].ravel()
