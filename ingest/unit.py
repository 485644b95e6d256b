"""One source from file to ledger rows: decode, cut, window, score, keep, encode, check, store.

A pure function of the source and the settings. Whatever is wrong with a source becomes a fate in
its rows; only trouble with the place that is written to (StorageError) leaves as an exception.
"""

import math
import os
import sys
import tempfile
from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from ingest import child, ffmpeg
from ingest.clip import Contract, Prep, digest_of
from ingest.detectors import Make
from ingest.keep import Keep
from ingest.ledger import Fate, Unit, source_row, to_table
from ingest.objects import Root
from ingest.onepass import PURGED, OnePass
from ingest.pictures import demuxer_of
from ingest.reading import Reading, SeekMissed
from ingest.schema import ledger_schema
from ingest.shards import ShardWriter
from ingest.sources import (
    Source,
    SourceError,
    check_unchanged,
    fingerprint,
    local,
)
from ingest.streams import Part, VideoInfo

SCRATCH = Path(tempfile.gettempdir()) / "kinoray-scratch"
LEAST_BYTES_PER_S = 4000  # of a video that is worth cutting into parts
# Before a part, one after the other until there is a keyframe; in the end the whole way is read.
SEEK_MARGINS_S = (2.0, 12.0, 60.0)
PASSING = frozenset(("Timeout", "Stalled"))  # what may go better the next time
FIRST_LOOK = (-1, sys.maxsize)  # at a source, before all readings


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitResult:
    """Ledger rows of one unit, not committed yet, and what they cost.

    `stats` has counts, and for decode, shots, scores, encode and check the seconds that the worker
    spent on them or waited for their child process.
    """

    unit_id: str
    rows: pa.Table
    stats: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """A source's sha256 ("" when it cannot be read) and in how many parts it is worked on."""

    sha256: str
    num_parts: int


def name_source(source: Source, *, prep: Prep, scratch: Path = SCRATCH) -> Named:
    """Read a source to know who it is, and into how many parts it is cut.

    Raises SourceError when that could not be found out this time, and StorageError when the scratch
    folder is full or a store out of reach.
    """
    sha256 = fingerprint(source, max_bytes=prep.max_source_bytes)
    return Named(sha256=sha256, num_parts=_num_parts(source, prep, scratch) if sha256 else 1)


def _num_parts(source: Source, prep: Prep, scratch: Path) -> int:
    most = source.bytes // (prep.max_unit_s * LEAST_BYTES_PER_S)  # whatever its header claims
    if most < 2 or source.frames_fps is not None:
        return 1
    try:
        most_bytes = prep.max_source_bytes
        with local(source, scratch, max_bytes=most_bytes, reading=FIRST_LOOK) as copy:
            if prep.contract.is_still and demuxer_of(copy.path):
                return 1
            duration_s = ffmpeg.probe(copy.path, replace(prep, contract=Contract())).duration_s
    except SourceError as error:
        # The parts have a say in the ids of units: a busy machine must not change them.
        if error.stage != "probe" or error.error_class in PASSING:
            raise
        return 1
    return num_parts(source.bytes, duration_s, prep)


def num_parts(num_bytes: int, duration_s: float, prep: Prep) -> int:
    """Return into how many parts a video of that size and declared length is cut."""
    most = num_bytes // (prep.max_unit_s * LEAST_BYTES_PER_S)
    return max(1, min(most, round(duration_s / prep.max_unit_s)))


def units_of(source: Source, named: Named, *, prep: Prep) -> list[Unit]:
    """Return the units of work of a source: one, or one for each part of a long one."""
    return [
        Unit(
            unit_id=_unit_id(source.key, named, prep, index),
            source=source,
            source_sha256=named.sha256,
            index=index,
            count=named.num_parts,
        )
        for index in range(named.num_parts)
    ]


def _unit_id(key: str, named: Named, prep: Prep, index: int) -> str:
    """Return the hex id of some work; equal source and preparation give an equal id."""
    whole = {"uri": os.fsencode(key).hex(), "sha": named.sha256, "prep": prep.digest()}
    part = {"part": [index, named.num_parts]} if named.num_parts > 1 else {}
    return digest_of(whole | part)


def plan_unit(source: Source, *, prep: Prep) -> Unit:
    """Return the unit of a source that is to be worked on as a whole; hashes the file."""
    sha256 = fingerprint(source, max_bytes=prep.max_source_bytes)
    return units_of(source, Named(sha256=sha256, num_parts=1), prep=prep)[0]


def curate_unit(
    unit: Unit,
    *,
    prep: Prep,
    keep: Keep,
    root: Root | Path | str,
    purged: Set[str] = frozenset(),
    scratch: Path = SCRATCH,
    detector: Make | None = None,
) -> UnitResult:
    """Run one source and write its payload shard below `root`; commits nothing.

    `detector` makes the shot detector, when it is not ours; `prep.detector` is its digest.
    What is named in `purged` (hashes of sources, ids of clips) was taken down and is not stored again.
    What is no file of this machine is copied to `scratch` while it is read. Raises StorageError when
    the shard or the copy cannot be written.
    """
    cv2.setNumThreads(1)  # processes are the unit of parallel work
    work = OnePass(unit=unit, prep=prep, keep=keep, purged=purged, detector=detector)
    try:
        fate = _run(work, root, scratch)
    except SourceError as error:
        work = OnePass(unit=unit, prep=prep, keep=keep)
        fate = Fate(
            name="failed", stage=error.stage, error_class=error.error_class, message=error.message
        )
    return UnitResult(
        unit_id=unit.unit_id,
        rows=work.ledger_rows(fate),
        stats={**work.stats, "candidates": len(work.rows), "kept": work.num_kept},
    )


def _run(work: OnePass, root: Root | Path | str, scratch: Path) -> Fate:
    unit, prep = work.unit, work.prep
    if unit.source_sha256 in work.purged:
        return PURGED
    reading, most_bytes = (unit.index, unit.count), prep.max_source_bytes
    with local(unit.source, scratch, max_bytes=most_bytes, reading=reading) as copy:
        check_unchanged(unit.source)
        if not unit.source_sha256:  # clips of who knows what would come again under its name
            raise SourceError("hash", "Unnamed", "it could not be read when it was to be named")
        picture = demuxer_of(copy.path) if prep.contract.is_still and not copy.frames_fps else ""
        info = ffmpeg.probe(copy.path, prep, picture, frames_fps=copy.frames_fps)
        if prep.crop_bars and not picture:
            info = replace(info, crop=ffmpeg.bars_of(copy.path, info, prep))
        part = _part(copy.path, unit, info, prep)
        if part is None:
            return _decoded(work, copy.path, info, None, root)
        for margin_s in SEEK_MARGINS_S:
            sought = replace(part, seek_s=max(0.0, part.start_s - margin_s))
            with suppress(SeekMissed):  # before anything came of it
                return _decoded(work, copy.path, info, sought, root)
        return _decoded(work, copy.path, info, part, root)


def _decoded(
    work: OnePass, path: str, info: VideoInfo, part: Part | None, root: Root | Path | str
) -> Fate:
    with (
        Reading(path, info, work.prep, part) as reading,
        ShardWriter(root, {"ffmpeg_version": child.version()}) as shard,
    ):
        fate = work.read(reading, shard)
        check_unchanged(work.unit.source)
        work.place(shard)
    return fate


def _part(path: str, unit: Unit, info: VideoInfo, prep: Prep) -> Part | None:
    if unit.count == 1:
        return None
    first_pts, timebase = ffmpeg.first_tick(path, info, prep)
    start_s = unit.index * prep.max_unit_s
    return Part(
        start_s=start_s,
        end_s=start_s + prep.max_unit_s if unit.index < unit.count - 1 else math.inf,
        first_pts=first_pts,
        timebase=timebase,
        seek_s=0.0,
    )


def failed_rows(
    unit: Unit,
    *,
    stage: str,
    error_class: str,
    message: str,
    attempts: int,
    prep: Prep,
    keep: Keep,
) -> pa.Table:
    """Return the row of a source whose worker died or raised, in the executor's words."""
    fate = Fate(
        name="failed", stage=stage, error_class=error_class, message=message, attempts=attempts
    )
    return to_table([source_row(unit, fate, prep.digest(), keep.digest())])


def duplicate_rows(unit: Unit, *, duplicate_of: str, prep: Prep, keep: Keep) -> pa.Table:
    """Return the row of a source whose bytes equal those of source `duplicate_of` (its sha256)."""
    fate = Fate(name="duplicate", duplicate_of=duplicate_of)
    return to_table([source_row(unit, fate, prep.digest(), keep.digest())])


def with_attempts(rows: pa.Table, attempts: int) -> pa.Table:
    """Return ledger rows with the executor's count of attempts."""
    index = rows.schema.get_field_index("attempts")
    column = pa.array(np.full(rows.num_rows, attempts, np.int32))
    return rows.set_column(index, ledger_schema().field("attempts"), column)
