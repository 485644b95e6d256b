"""A set of payloads on disk, as the storage bench's processes hand it to each other. Standard library only."""

import hashlib
import json
import random
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Payloads one behind the other in a file, sorted by their sha256, each with a made-up score."""

    path: Path
    lengths: list[int]
    crcs: list[int]

    @property
    def payloads(self) -> list[bytes]:
        blob = memoryview(self.path.read_bytes())
        return [bytes(blob[at : at + n]) for at, n in zip(self.offsets, self.lengths, strict=True)]

    @cached_property
    def offsets(self) -> list[int]:
        return [sum(self.lengths[:i]) for i in range(len(self.lengths))]

    @property
    def num_bytes(self) -> int:
        return sum(self.lengths)

    @cached_property
    def scores(self) -> list[float]:
        """One score a clip within [0, 1), the same on every run."""
        return [random.Random(i).random() for i in range(len(self.lengths))]

    @cached_property
    def threshold(self) -> float:
        """The score that the best tenth of the clips reaches."""
        return sorted(self.scores, reverse=True)[max(0, len(self.scores) // 10 - 1)]

    @property
    def best(self) -> list[int]:
        """The indices of the best tenth."""
        return [i for i, score in enumerate(self.scores) if score >= self.threshold]


def from_payloads(name: str, payloads: list[bytes], folder: Path) -> Corpus:
    """Write payloads, sorted by sha256 so that every format and the dataset number them alike."""
    ordered = sorted(payloads, key=lambda payload: hashlib.sha256(payload).digest())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.bin").write_bytes(b"".join(ordered))
    facts = [(len(payload), zlib.crc32(payload)) for payload in ordered]
    (folder / f"{name}.json").write_text(json.dumps(facts))
    return load(folder / f"{name}.bin")


def load(path: Path) -> Corpus:
    facts = json.loads(path.with_suffix(".json").read_text())
    return Corpus(path=path, lengths=[n for n, _ in facts], crcs=[crc for _, crc in facts])
