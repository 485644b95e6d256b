"""A short trial of curation on one source, to know what all of it would take; nothing of it stays."""

import resource
import time
from dataclasses import dataclass, replace
from pathlib import Path

from ingest import ffmpeg
from ingest.clip import Contract, Prep
from ingest.detectors import Make
from ingest.keep import Keep
from ingest.ledger import Unit
from ingest.pictures import demuxer_of
from ingest.sources import Source, SourceError, check_readable, fingerprint, local
from ingest.unit import curate_unit

TRIAL_S = 20
LEAST_WHOLE_S = 25.0  # a shorter video is tried as a whole
TRIAL_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What some seconds of a source took and gave; `problem` says why there was nothing to time.

    `cpu_s` includes child processes, `hash_s` is the CPU time of reading all `num_bytes` for its name.
    """

    uri: str
    num_bytes: int
    source_s: float = 0.0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    hash_s: float = 0.0
    candidates: float = 0.0
    kept: float = 0.0
    payload_bytes: float = 0.0
    problem: str = ""


def declared_s(source: Source, *, prep: Prep, scratch: Path) -> float:
    """Return how long a source says it is, 0 where it says nothing; raises SourceError, StorageError."""
    with local(source, scratch, max_bytes=prep.max_source_bytes) as copy:
        if prep.contract.is_still and demuxer_of(copy.path):
            return 0.0
        plain = replace(prep, contract=Contract())  # of a native one the whole pace would be read
        return ffmpeg.probe(copy.path, plain, frames_fps=copy.frames_fps).duration_s


def trial(
    source: Source,
    duration_s: float,
    *,
    prep: Prep,
    keep: Keep,
    scratch: Path,
    detector: Make | None = None,
) -> Trial:
    """Curate about TRIAL_S seconds out of the middle of a source into `scratch`, and time it.

    Raises StorageError when `scratch` cannot be written.
    """
    short = duration_s < LEAST_WHOLE_S
    some = replace(
        prep,
        max_unit_s=TRIAL_S,
        decode_timeout_s=min(prep.decode_timeout_s, TRIAL_TIMEOUT_S),
    )
    count = 1 if short else max(2, int(duration_s // TRIAL_S))
    before_s = _cpu_s()
    sha256 = fingerprint(source, max_bytes=prep.max_source_bytes)
    hash_s = _cpu_s() - before_s
    unit = Unit(
        unit_id="trial", source=source, source_sha256=sha256, index=(count - 1) // 2, count=count
    )
    none = Trial(uri=source.printable_uri, num_bytes=source.bytes, hash_s=hash_s)
    if not sha256:
        return replace(none, problem=_unreadable(source, prep))
    started_s, before_s = time.monotonic(), _cpu_s()
    done = curate_unit(
        unit, prep=some, keep=keep, root=scratch / "trial", scratch=scratch, detector=detector
    )
    first = done.rows.slice(0, 1).to_pylist()[0]
    if first["fate"] == "failed":
        return replace(none, problem=f"{first['error_class']}: {first['message']}")
    return replace(
        none,
        cpu_s=_cpu_s() - before_s,
        wall_s=time.monotonic() - started_s,
        source_s=done.stats.get("source_s", 0.0),
        candidates=done.stats["candidates"],
        kept=done.stats["kept"],
        payload_bytes=done.stats.get("payload_bytes", 0.0),
    )


def _unreadable(source: Source, prep: Prep) -> str:
    try:
        check_readable(source, prep.max_source_bytes)
    except SourceError as error:
        return f"{error.error_class}: {error.message}"
    return "it cannot be read"


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
