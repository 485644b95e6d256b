"""The clips at positions of a mixture, read ahead, each corrupt one with its substitute.

A corrupt clip gives way to another of its part by the law of `ingest.order`, is named in the step,
and counts against a budget: training neither stops for a flipped bit nor hides it.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ingest.augment import Frames
from ingest.objects import Root
from ingest.order import Draws, Mixture, mixture_digest
from ingest.reader import Row, ViewReader
from ingest.reads import Arrays, Clip, Latents, Work, open_reads
from ingest.shards import CorruptPayload
from ingest.views import View

NUM_NAMED = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One view of one dataset and its share in a mixture, an integer weight.

    `view` is a View or its digest, or the path of a view file. `latents` holds rows of the latents
    annotation by clip id, for `Latents` (see `ingest.reader.latent_rows`).
    """

    root: Root | Path | str
    view: View | Path | str
    weight: int = 1
    latents: Mapping[str, Row] = field(default_factory=dict)


class Substitution(NamedTuple):
    """A clip that could not be read, the clip in its place, and why."""

    position: int
    bad: str
    used: str
    reason: str


@dataclass(kw_only=True, slots=True)
class Step:
    """Clips at positions; rows, arrays and substitutions are final once it was collected."""

    positions: list[int]
    draws: Draws
    rows: list[dict[str, Any]]
    arrays: Arrays
    reads: list[Future[None]]
    substitutions: list[Substitution] = field(default_factory=list)


class Feed:
    """Reads clips at positions; used by one thread; close it.

    Raises ValueError when the clips cannot give what is wanted of them.
    """

    def __init__(
        self, parts: Sequence[Part], *, seed: int, read: Frames | Latents, work: Work
    ) -> None:
        self._readers = [ViewReader(p.root, p.view, latents=p.latents) for p in parts]
        weights = tuple(part.weight for part in parts)
        self._mixture = Mixture(sizes=tuple(map(len, self._readers)), weights=weights)
        self.digest = mixture_digest([reader.digest for reader in self._readers], weights)
        self.seed, self._max_bad_clips = seed, work.max_bad_clips
        self._reads = open_reads(self._readers, read, seed=seed, work=work)
        self._bad: dict[Clip, tuple[str, str]] = {}

    def __len__(self) -> int:
        """Number of clips in all parts."""
        return sum(self._mixture.sizes)

    def pids(self) -> list[int]:
        """Return the process ids of the decode workers that are ready."""
        return self._reads.pids()

    def close(self) -> None:
        """End what works in the background."""
        self._reads.close()

    def submit(self, positions: list[int]) -> Step:
        """Begin to read the clips at positions of the order."""
        draws = self._mixture.draws(np.array(positions, np.int64), seed=self.seed)
        step = Step(
            positions=positions,
            draws=draws,
            rows=[self._row(_clip(draws, slot)) for slot in range(len(positions))],
            arrays=self._reads.arrays(len(positions)),
            reads=[],
        )
        for slot in range(len(positions)):
            step.reads.append(self._start(step, slot, _clip(draws, slot)))
        return step

    def collect(self, step: Step) -> None:
        """Wait until a step is complete. Raises CorruptPayload when too many clips are corrupt."""
        for slot, started in enumerate(step.reads):
            clip = _clip(step.draws, slot)
            if self._came(step, slot, clip, started):
                continue
            bad = [clip]
            while not self._came(step, slot, clip := self._other(step, slot, len(bad))):
                bad.append(clip)
            step.rows[slot] = self._row(clip)
            used = step.rows[slot]["clip_id"]
            step.substitutions += [
                Substitution(step.positions[slot], name, used, reason)
                for name, reason in (self._bad[other] for other in dict.fromkeys(bad))
            ]

    def _came(self, step: Step, slot: int, clip: Clip, started: Future[None] | None = None) -> bool:
        """Whether a clip is in its slot; if not, it is known to be bad from now on."""
        if clip in self._bad:
            wait([started] if started else [])  # or it might write over its substitute
        else:
            started = started or self._start(step, slot, clip)
            try:
                self._reads.finish(clip, step.arrays, slot, started)
            except (CorruptPayload, FileNotFoundError) as error:
                self._bad[clip] = self._row(clip)["clip_id"], str(error)
            else:
                return True
        self._check_budget(clip.part)
        return False

    def _check_budget(self, part: int) -> None:
        reasons = dict(self._bad.values())
        exhausted = sum(bad.part == part for bad in self._bad) == self._mixture.sizes[part]
        if len(reasons) <= self._max_bad_clips and not exhausted:
            return
        named = "; ".join(list(reasons.values())[:NUM_NAMED])
        more = f"; and {len(reasons) - NUM_NAMED} more" if len(reasons) > NUM_NAMED else ""
        why = "no clip of a part is left" if exhausted else f"allowed are {self._max_bad_clips}"
        raise CorruptPayload(f"{len(reasons)} corrupt clips, {why}: {named}{more}")

    def _other(self, step: Step, slot: int, attempt: int) -> Clip:
        part, number = int(step.draws.parts[slot]), step.draws.numbers[slot : slot + 1]
        found = self._mixture.clips(part, number, seed=self.seed, attempt=attempt)
        return Clip(part, int(found[0]))

    def _start(self, step: Step, slot: int, clip: Clip) -> Future[None]:
        return self._reads.start(clip, int(step.draws.epochs[slot]), step.arrays, slot)

    def _row(self, clip: Clip) -> dict[str, Any]:
        return self._readers[clip.part].row(clip.at)


def _clip(draws: Draws, slot: int) -> Clip:
    return Clip(int(draws.parts[slot]), int(draws.indices[slot]))
