"""Looking for payload bytes in every file below a root, at about the speed of reading.

Of each payload a stretch is remembered, as hashes only, so that it may be written down and looked for
again. Wherever in a file it lies, one of its first eight 8-byte windows begins at a multiple of eight:
so only those words are looked up, all words of a file at once.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ingest.objects import Entry, Root

WORD, PROBE_BYTES, MIN_PROBE_BYTES, MIN_DISTINCT = 8, 64, 16, 8
TRIES = 16
BLOCK_BYTES = 4 << 20
THREADS = 4
_MASK = (1 << 20) - 1
_FACTOR, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A stretch of a payload: whose it is, its bytes in the payload, and how to know both.

    `words` are 32-bit hashes of the eight 8-byte windows that the stretch begins with.
    """

    name: str
    offset: int
    size: int
    words: tuple[int, ...]
    stretch_crc32: int
    length: int
    crc32: int

    def settings(self) -> dict[str, Any]:
        """Return it as plain values, from which `told` makes it again."""
        return asdict(self) | {"words": list(self.words)}

    @classmethod
    def told(cls, settings: Mapping[str, Any]) -> "Probe":
        """Return the probe that wrote these settings."""
        values: dict[str, Any] = {**settings, "words": tuple(settings["words"])}
        return cls(**values)


def probe(name: str, payload: bytes) -> Probe | None:
    """Return a telling stretch from the middle of a payload, or near it; None when none tells.

    A payload too short or too uniform (such as black frames) cannot be told from others.
    """
    size = min(PROBE_BYTES, len(payload))
    last = len(payload) - size
    starts = [last // 2, *(last * k // TRIES for k in range(TRIES + 1))]
    for start in starts if size >= MIN_PROBE_BYTES else ():
        data = payload[start : start + size]
        if len(set(data)) >= MIN_DISTINCT:
            windows = [int.from_bytes(data[k : k + WORD], "little") for k in range(WORD)]
            return Probe(
                name=name,
                offset=start,
                size=size,
                words=tuple(_hashed(np.array(windows, np.uint64)).tolist()),
                stretch_crc32=zlib.crc32(data),
                length=len(payload),
                crc32=zlib.crc32(payload),
            )
    return None


def _hashed(words: np.ndarray) -> np.ndarray:
    return (words * _FACTOR) >> _SHIFT


class Scan:
    """Searches files for the payloads of many probes at once."""

    def __init__(self, probes: Sequence[Probe]) -> None:
        self._probes = list(probes)
        windows = [
            (word, number, k)
            for number, one in enumerate(self._probes)
            for k, word in enumerate(one.words)
        ]
        windows.sort()
        self._words = np.array([word for word, _, _ in windows], np.uint64)
        self._whose = [(number, k) for _, number, k in windows]
        self._maybe = np.zeros(_MASK + 1, bool)
        self._maybe[(self._words & np.uint64(_MASK)).astype(np.int64)] = True

    def files(self, root: Root, entries: Iterable[Entry]) -> Iterator[tuple[Entry, str]]:
        """Yield each file that holds a payload, or the begin or end of one, with the probe's name."""
        if not self._probes:
            return
        with ThreadPoolExecutor(THREADS) as pool:
            listed = list(entries)
            found = pool.map(lambda entry: self._file(root, entry), listed)
            for entry, names in zip(listed, found, strict=True):
                yield from ((entry, name) for name in sorted(names))

    def _file(self, root: Root, entry: Entry) -> set[str]:
        names: set[str] = set()
        overlap = PROBE_BYTES + WORD
        for start in range(0, entry.bytes, BLOCK_BYTES):
            size = min(BLOCK_BYTES + overlap, entry.bytes - start)
            try:
                block = root.read_range(entry.name, start, size)
            except FileNotFoundError:  # removed meanwhile
                return names
            for at, number in self._candidates(block):
                one = self._probes[number]
                if one.name not in names and _is_whole(root, entry, one, start + at):
                    names.add(one.name)
        return names

    def _candidates(self, block: bytes) -> Iterator[tuple[int, int]]:
        """Yield where in a block a probe lies, and its number."""
        words = _hashed(np.frombuffer(block, np.uint64, count=len(block) // WORD))
        at = np.flatnonzero(self._maybe[words & np.uint64(_MASK)])
        first = np.searchsorted(self._words, words[at], "left")
        last = np.searchsorted(self._words, words[at], "right")
        for place, begin, end in zip(at.tolist(), first.tolist(), last.tolist(), strict=True):
            for number, k in self._whose[begin:end]:
                start, one = place * WORD - k, self._probes[number]
                data = block[start : start + one.size] if start >= 0 else b""
                if len(data) == one.size and zlib.crc32(data) == one.stretch_crc32:
                    yield start, number


def _is_whole(root: Root, entry: Entry, one: Probe, at: int) -> bool:
    """Whether the payload around a found stretch is all there, or is cut by the file's ends."""
    start = at - one.offset
    if start < 0 or start + one.length > entry.bytes:
        return True
    return zlib.crc32(root.read_range(entry.name, start, one.length)) == one.crc32
