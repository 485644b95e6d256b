"""Who each source is: its hash and its number of parts, found by a full read, and remembered beside the dataset.

What was read once is not read again for another threshold: a source of the same name, size, time and
etag is the same. One that changed just before it was read is read again, for its time may not tell.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cluster import pool
from ingest.clip import Prep
from ingest.sources import Source
from ingest.unit import Named, Unit, name_source, units_of
from pipelines.context import Recorder
from pipelines.identity import digest

FILE = "names.jsonl"
NOTE_EVERY_S = 1.0
YOUNG_S = 2.0  # file systems tell times in steps; within one a file can change twice

Pooled = Callable[[Callable[[Any], Any], Iterator[pool.Unit]], Iterable[pool.Outcome]]


class Names:
    """What is known of sources that were read for one preparation; lines of the killed do not count."""

    def __init__(self, folder: Path, prep: Prep) -> None:
        self._path, self._prep = folder / FILE, prep.digest()
        self._known = dict(_lines(self._path))

    def get(self, source: Source) -> Named | None:
        """Return the name of a source as it was listed, if it was read before."""
        return self._known.get(self._key(source))

    def put(self, named: Iterable[tuple[Source, Named]]) -> None:
        """Remember names, but those of sources that could not be read or were just written."""
        settled_ns = time.time_ns() - int(YOUNG_S * 1e9)
        new = {
            self._key(source): one
            for source, one in named
            if one.sha256 and source.mtime_ns < settled_ns
        }
        if new:
            self._known |= new
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps([key, one.sha256, one.num_parts]) for key, one in new.items()]
            with self._path.open("a", encoding="ascii") as file:
                file.write("\n" + "\n".join(lines) + "\n")  # a torn line before stays alone

    def _key(self, source: Source) -> str:
        facts = [source.uri, source.bytes, source.mtime_ns, source.etag, source.frames_fps]
        return digest([*map(str, facts), source.member, self._prep])


def _lines(path: Path) -> Iterator[tuple[str, Named]]:
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        try:
            key, sha256, parts = json.loads(line)
            yield key, Named(sha256=str(sha256), num_parts=int(parts))
        except (ValueError, TypeError):
            continue


def units(
    sources: Sequence[Source],
    names: Names,
    *,
    prep: Prep,
    scratch: Path,
    pooled: Pooled,
    recorder: Recorder,
) -> list[Unit]:
    """Name each source by its content and return the units; a full read of the new ones, over the cluster.

    When the run is stopped meanwhile, the sources without a name have no unit: the next run finds them.
    """
    named = {at: found for at, source in enumerate(sources) if (found := names.get(source))}
    if named:
        recorder.stage(f"{len(named)} of {len(sources)} sources are unchanged and not read again")
    work = (
        pool.Unit(key=str(at), payload=source)
        for at, source in enumerate(sources)
        if at not in named
    )
    new: list[tuple[Source, Named]] = []
    noted_s = time.monotonic()
    try:
        for outcome in pooled(partial(name_source, prep=prep, scratch=scratch), work):
            at = int(outcome.key)
            named[at] = outcome.value or Named(sha256="", num_parts=1)
            new.append((sources[at], named[at]))
            if time.monotonic() - noted_s > NOTE_EVERY_S:
                names.put(new)
                new, noted_s = [], time.monotonic()
            recorder.progress(len(named), len(sources), stage="curate: hash")
    finally:
        names.put(new)
    return [
        unit
        for at, source in enumerate(sources)
        if at in named
        for unit in units_of(source, named[at], prep=prep)
    ]
