"""Clips that show the same, found by hash: across containers, codecs, sizes and a frame's shift.

A clip's hash is three perceptual hashes of 64 bits (pHash: signs of the low frequencies of a DCT
against their median), one for the middle of each third. Measured on the shared videos at 80 frames:
copies differ in at most 12 of the 192 bits, clips of different scenes in 38 and more.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import cv2
import numpy as np

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

    Each pair once, the smaller index first; flat ones never. No pair is lost: the bits are cut into
    max_bits + 4 bands, so that two such hashes agree on four bands or more, and on two or more of the
    even or of the odd ones; all that agree on two bands of one half are compared in full. Memory
    grows with the hashes and the pairs found. Quick up to about max_bits = 20.
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
    words = np.concatenate([_words(hashes), _words(against)])
    theirs = np.arange(len(words)) >= len(hashes)
    found: dict[int, tuple[int, int]] = {}
    for one, other in _near(words, max_bits, _shown(words), theirs).tolist():
        distance = int(np.bitwise_count(words[one] ^ words[other]).sum())
        nearest = (distance, other - len(hashes))
        found[one] = min(found.get(one, nearest), nearest)
    return {one: other for one, (_, other) in sorted(found.items())}


def _words(hashes: Sequence[str]) -> np.ndarray:
    # uint64 (N, THIRDS).
    digits = "".join(hashes)
    if any(len(hashed) != THIRDS * len(FLAT) for hashed in hashes):
        raise ValueError(f"a hash has {THIRDS * len(FLAT)} hex digits")
    return np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64).reshape(-1, THIRDS)


def _shown(words: np.ndarray) -> np.ndarray:
    return (words != 0).all(axis=1)


def _near(
    words: np.ndarray, max_bits: int, shown: np.ndarray, theirs: np.ndarray | None = None
) -> np.ndarray:
    """Return pairs of rows within `max_bits`, of both sides where `theirs` tells two sides."""
    rows = np.flatnonzero(shown)
    codes = [np.empty(0, np.int64)]
    for key in _keys(words[rows], max_bits):
        for one, other in _equal(key):
            a, b = np.minimum(rows[one], rows[other]), np.maximum(rows[one], rows[other])
            if theirs is not None:
                apart = theirs[a] != theirs[b]
                a, b = a[apart], b[apart]
            close = np.bitwise_count(words[a] ^ words[b]).sum(axis=1) <= max_bits
            if close.any():
                codes.append(a[close] * len(words) + b[close])
        codes = [np.unique(np.concatenate(codes))]  # most pairs agree on many bands
    return np.stack(np.divmod(codes[0], len(words)), axis=1)


def _keys(words: np.ndarray, max_bits: int) -> Iterator[np.ndarray]:
    # Equal keys: agreement on two bands of one half.
    bits = np.unpackbits(words.astype(">u8").view(np.uint8).reshape(len(words), 8 * THIRDS), axis=1)
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


def _equal(key: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    # All pairs of equal values, by their distance in sorted order: never more at once than values.
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    first = np.arange(len(order))
    gap = 1
    while len(first):
        first = first[first + gap < len(order)]
        first = first[ordered[first] == ordered[first + gap]]
        if len(first):
            yield order[first], order[first + gap]
        gap += 1


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
