"""What a curate run says at its end: how many of which fate, the first failures, the numbers for the tracker."""

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from ingest.columns import among
from ingest.store import Dataset
from ingest.unit import Unit
from pipelines.annotate import Annotated
from pipelines.context import Recorder
from pipelines.identity import plain

FAILURES_SHOWN = 10
TOLD = ["kind", "fate", "unit_id", "source_uri", "stage", "error_class", "message"]
# Failures of the machine and the moment, not of the source: another run reads it again.
PASSING_CLASSES = (
    *("Timeout", "Stalled", "Changed", "Vanished", "Truncated", "StorageError"),
    *("Unnamed", "PermissionError", "OSError", "FileNotFoundError"),
)
WORKER = "worker"  # the stage of a unit whose worker died or ran out of memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The fates of this recipe's inputs; `digest` is the dataset version's, `failed` counts sources and clips."""

    verb: str
    status: str
    dataset: str
    version: int
    digest: str
    sources: int
    sources_rejected: int
    clips_kept: int
    clips_rejected: int
    failed: int
    annotations_failed: int
    duplicates: int
    fates_balance: bool
    wall_s: float
    cpu_s: float
    source_s: float
    run_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """How a run went: whether it was stopped, what it spent, and how many units were read again in vain.

    Thresholds ask for clips of those that were not stored; what was kept of them stays.
    """

    interrupted: bool
    unread: int
    cpu_s: float
    source_s: float


def summed(
    dataset: Dataset,
    units: Sequence[Unit],
    passes: Sequence[Annotated],
    recorder: Recorder,
    *,
    verb: str,
    out: str,
    max_failed_share: float,
    course: Course,
) -> Result:
    """Count the fates of a run's units and what its passes made; name what failed and what does not add up."""
    mine = {unit.unit_id for unit in units}
    rows = dataset.ledger().select(TOLD)
    rows = rows.filter(pa.array(among(rows.column("unit_id"), mine)))
    pairs = rows.select(["kind", "fate"]).to_pydict()
    fates = Counter(zip(pairs["kind"], pairs["fate"], strict=True))
    _tell_failures(rows.filter(pa.array(among(rows.column("fate"), ["failed"]))), recorder)
    balance = dataset.balance(mine)
    for problem in balance.problems:
        recorder.warn(problem)
    failed_sources, unsaid = fates["source", "failed"], sum(one.failed for one in passes)
    tried_again = unsaid - sum(one.final for one in passes)
    enough = failed_sources <= max_failed_share * max(1, len(units))
    enough = enough and balance.ok and not tried_again and not course.unread
    cpu_s = course.cpu_s + sum(one.cpu_s for one in passes) + time.process_time()
    return Result(
        verb=verb,
        status="interrupted" if course.interrupted else "done" if enough else "incomplete",
        dataset=out,
        version=dataset.version,
        digest=dataset.digest(),
        sources=len({unit.source.key for unit in units}),
        sources_rejected=_rejected_whole(rows),
        clips_kept=fates["clip", "kept"],
        clips_rejected=fates["clip", "rejected"],
        failed=failed_sources + fates["clip", "failed"],
        annotations_failed=unsaid,
        duplicates=fates["source", "duplicate"] + fates["clip", "duplicate"],
        fates_balance=balance.ok,
        wall_s=recorder.wall_s,
        cpu_s=round(cpu_s, 3),
        source_s=round(course.source_s, 3),
        run_id=recorder.run.id,
    )


def first_of_each(dataset: Dataset, units: Sequence[Unit]) -> dict[str, str]:
    """Return for each content the source that speaks for it: the one in the ledger, else the first by name."""
    names = ["kind", "fate", "source_sha256", "source_uri"]
    first = {
        row["source_sha256"]: row["source_uri"]
        for row in dataset.ledger().select(names).to_pylist()
        if row["kind"] == "source" and row["fate"] != "duplicate" and row["source_sha256"]
    }
    for unit in units:
        if unit.source_sha256:
            first.setdefault(unit.source_sha256, unit.source.printable_uri)
    return first


def passing_failures(dataset: Dataset, units: set[str]) -> frozenset[str]:
    """Return those of the units that failed of what may be over by now: time, memory, storage."""
    rows = dataset.ledger().select(TOLD)
    wanted = among(rows.column("kind"), ["source"]) & among(rows.column("fate"), ["failed"])
    passing = among(rows.column("error_class"), PASSING_CLASSES)
    cut_off = among(rows.column("error_class"), ["Truncated"])  # what came, or what there is
    passing &= ~(cut_off & among(rows.column("stage"), ["probe"]))
    passing |= among(rows.column("stage"), [WORKER])
    rows = rows.filter(pa.array(wanted & passing & among(rows.column("unit_id"), units)))
    return frozenset(rows.column("unit_id").to_pylist())


def _rejected_whole(rows: pa.Table) -> int:
    found: dict[str, set[str]] = defaultdict(set)  # a long source has several rows
    rows = rows.filter(pa.array(among(rows.column("kind"), ["source"])))
    uris, fates = rows.column("source_uri").to_pylist(), rows.column("fate").to_pylist()
    for uri, fate in zip(uris, fates, strict=True):
        found[uri].add(fate)
    return sum(fates == {"rejected"} for fates in found.values())


def _tell_failures(rows: pa.Table, recorder: Recorder) -> None:
    """Name the first failures with their reasons; all of them are in the ledger."""
    for row in rows.slice(0, FAILURES_SHOWN).to_pylist():
        reason = f"{row['stage']}: {row['error_class']}: {row['message']}"
        recorder.warn(f"{row['source_uri']}: {reason}")
    if rows.num_rows > FAILURES_SHOWN:
        recorder.warn(f"and {rows.num_rows - FAILURES_SHOWN} more failures, in the ledger")


def record(recorder: Recorder, result: Result, dataset: Dataset, verb: str) -> None:
    """Log the counts and the dataset of a run, then make its page."""
    numbers = {k: float(v) for k, v in plain(result).items() if isinstance(v, (int, float))}
    recorder.run.log_metrics(numbers, 0)
    recorder.run.log_dataset("dataset", result.digest, dataset.root.uri, verb)
    recorder.run.set_tags({"kinoray.dataset": result.digest})
    recorder.cost("run", {name: numbers[name] for name in ("wall_s", "cpu_s", "source_s")})
    recorder.report(dataset)
