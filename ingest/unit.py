"""One source from file to ledger rows: decode, cut, window, score, keep, encode, check, store.

A pure function of the source and the settings. Whatever is wrong with a source becomes a fate in
its rows; only trouble with the place that is written to (StorageError) leaves as an exception.
"""

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from ingest import ffmpeg
from ingest.caption import Captions
from ingest.clip import Prep
from ingest.keep import Keep
from ingest.ledger import Fate, Unit, source_row, to_table
from ingest.objects import Root
from ingest.onepass import PURGED, OnePass
from ingest.pictures import demuxer_of
from ingest.reading import Reading
from ingest.schema import ledger_schema
from ingest.shards import ShardWriter
from ingest.sources import (
    Source,
    SourceError,
    check_readable,
    check_unchanged,
    fingerprint,
    unit_id,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitResult:
    """Ledger rows and captions of one unit, not committed yet, and what they cost."""

    unit_id: str
    rows: pa.Table
    captions: pa.Table
    stats: dict[str, float]


def plan_unit(source: Source, *, prep: Prep, keep: Keep, source_sha256: str = "") -> Unit:
    """Return the unit of a source, hashing the file when its hash is not given; never raises."""
    sha256 = source_sha256 or fingerprint(source)
    identity = unit_id(source.uri, sha256, prep.digest(), keep.digest())
    return Unit(unit_id=identity, source=source, source_sha256=sha256)


def curate_unit(
    unit: Unit,
    *,
    prep: Prep,
    keep: Keep,
    captions: Captions,
    root: Root | Path | str,
    purged: Set[str] = frozenset(),
) -> UnitResult:
    """Run one source and write its payload shard below `root`; commits nothing.

    What is named in `purged` (hashes of sources, ids of clips) was taken down and is not stored again.
    Raises StorageError when the shard cannot be written, FileNotFoundError or ValueError for a
    missing or malformed caption file.
    """
    cv2.setNumThreads(1)  # processes are the unit of parallel work
    work = OnePass(unit=unit, prep=prep, keep=keep, captions=captions, purged=purged)
    try:
        fate = _run(work, root)
    except SourceError as error:
        work = OnePass(unit=unit, prep=prep, keep=keep, captions=captions)
        fate = Fate(
            name="failed", stage=error.stage, error_class=error.error_class, message=error.message
        )
    return UnitResult(
        unit_id=unit.unit_id,
        rows=work.ledger_rows(fate),
        captions=work.caption_rows(),
        stats={**work.stats, "candidates": len(work.rows), "kept": work.num_kept},
    )


def _run(work: OnePass, root: Root | Path | str) -> Fate:
    unit, prep = work.unit, work.prep
    if unit.source_sha256 in work.purged:
        return PURGED
    check_readable(unit.source, prep.max_source_bytes)
    check_unchanged(unit.source)
    picture = demuxer_of(unit.source.uri) if prep.contract.is_still else ""
    info = ffmpeg.probe(unit.source.uri, prep, picture)
    with (
        Reading(unit.source.uri, info, prep) as reading,
        ShardWriter(root, {"ffmpeg_version": ffmpeg.version()}) as shard,
    ):
        fate = work.read(reading, shard)
        check_unchanged(unit.source)
        work.place(shard)
    return fate


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
