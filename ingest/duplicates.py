"""Clips that show the same, found by hash: across containers, codecs, sizes and a frame's shift.

A clip's hash is three perceptual hashes of 64 bits (pHash: signs of the low frequencies of a DCT
against their median), one for the middle of each third. Measured on the shared videos at 80 frames:
copies differ in at most 12 of the 192 bits, clips of different scenes in 38 and more.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from ingest.nearness import apart, search
from ingest.nearness import words_of as _words

THIRDS = 3
SIDE_PX = 32
BITS = 64  # of a third
FLAT = "0" * (BITS // 4)  # no picture's hash: half of its bits are ones
FLAT_LEVELS = 3.0  # deviation below which a third has no shape to hash
AROUND = 2  # frames before and after the middle of a third that are averaged with it
MAX_BITS = 16
MIN_COSINE = 0.9
# The lowest frequencies of a DCT without its mean, along its diagonals.
_LOW = np.array(
    sorted(((u, v) for u in range(11) for v in range(11) if u + v), key=lambda p: (sum(p), p))[
        :BITS
    ]
)


def phash(luma_THW: np.ndarray | Sequence[np.ndarray]) -> str:
    """Return the hash of a clip's luma, uint8: 48 hex digits; FLAT in place of a flat third."""
    count = len(luma_THW)
    return "".join(_third(luma_THW, count * odd // (2 * THIRDS)) for odd in (1, 3, 5))


def is_flat(hashed: str) -> bool:
    """Whether a third of a clip is black or of one colour, so that the clip matches no other."""
    return any(hashed[at : at + len(FLAT)] == FLAT for at in range(0, len(hashed), len(FLAT)))


def _third(luma_THW: np.ndarray | Sequence[np.ndarray], middle: int) -> str:
    near = luma_THW[max(0, middle - AROUND) : middle + AROUND + 1]
    size = (SIDE_PX, SIDE_PX)
    small = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in near]
    mean_HW = np.stack(small).astype(np.float32).mean(axis=0)
    if float(mean_HW.std()) < FLAT_LEVELS:
        return FLAT
    low = cv2.dct(np.asarray(mean_HW))[_LOW[:, 0], _LOW[:, 1]]
    return np.packbits(low > np.median(low)).tobytes().hex()


def pairs(hashes: Sequence[str], max_bits: int = MAX_BITS) -> np.ndarray:
    """Return all pairs of hashes that differ in at most `max_bits` bits: int64 (N, 2), sorted.

    Each pair once, the smaller index first; flat ones never. No pair is lost; see nearness. Memory
    grows with the hashes and the pairs found.
    """
    words = _words(hashes)
    # Equal hashes are many where a camera stands still; they are looked up once.
    unique, inverse = np.unique(words, axis=0, return_inverse=True)
    near = _near(unique, max_bits, _shown(unique))
    members = _members(inverse.ravel(), len(unique))
    found = [_across(members[one], members[other]) for one, other in near]
    found += [_within(members[n]) for n in np.flatnonzero(_shown(unique)) if len(members[n]) > 1]
    return _sorted(np.concatenate(found)) if found else np.empty((0, 2), np.int64)


def leaks(
    hashes: Sequence[str], against: Sequence[str], max_bits: int = MAX_BITS
) -> dict[int, int]:
    """Return which of `hashes` are near one of `against`: index of each, and of its nearest."""
    ours, inverse = np.unique(_words(hashes), axis=0, return_inverse=True)
    theirs, first = np.unique(_words(against), axis=0, return_index=True)
    words = np.concatenate([ours, theirs])
    near = search(words, max_bits, np.arange(len(words)) >= len(ours))
    found: dict[int, tuple[int, int]] = {}

    def tell(one: int, others: np.ndarray) -> None:
        bits = apart(words[others], words[one])
        at = np.lexsort((first[others - len(ours)], bits))[0]
        if bits[at] <= max_bits:
            nearest = (int(bits[at]), int(first[others[at] - len(ours)]))
            found[one] = min(found.get(one, nearest), nearest)

    for one, other in near.pairs.tolist():
        tell(one, np.array([other]))
    for crowd in near.crowded():
        others = crowd[crowd >= len(ours)]
        for one in crowd[crowd < len(ours)].tolist() if len(others) else ():
            tell(one, others)
    nearest = {one: other for one, (_, other) in found.items()}
    return {n: nearest[one] for n, one in enumerate(inverse.ravel().tolist()) if one in nearest}


def _shown(words: np.ndarray) -> np.ndarray:
    return (words != 0).all(axis=1)


def _near(words: np.ndarray, max_bits: int, shown: np.ndarray) -> np.ndarray:
    """Return all pairs of shown rows within `max_bits`, those of crowds too."""
    near = search(np.where(shown[:, None], words, 0), max_bits, np.arange(len(words)))
    found = [near.pairs]
    for crowd in near.crowded():
        for at, row in enumerate(crowd, 1):
            other = crowd[at:][apart(words[crowd[at:]], words[row]) <= max_bits]
            found.append(np.stack([np.full_like(other, row), other], axis=1))
    return np.concatenate(found)


def _members(inverse: np.ndarray, count: int) -> list[np.ndarray]:
    order = np.argsort(inverse, kind="stable")
    return np.split(order, np.cumsum(np.bincount(inverse, minlength=count))[:-1])


def _across(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.stack([np.repeat(one, len(other)), np.tile(other, len(one))], axis=1)


def _within(rows: np.ndarray) -> np.ndarray:
    return rows[np.stack(np.triu_indices(len(rows), 1), axis=1)]


def _sorted(found: np.ndarray) -> np.ndarray:
    found = np.sort(found.astype(np.int64), axis=1)
    return found[np.lexsort((found[:, 1], found[:, 0]))]
