"""What a curate run says at its end: how many of which fate, the first failures, the numbers for the tracker."""

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingest.store import Dataset
from ingest.unit import Unit
from pipelines.annotate import Annotated
from pipelines.context import Recorder
from pipelines.identity import plain

FAILURES_SHOWN = 10


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


def summed(
    dataset: Dataset,
    units: Sequence[Unit],
    passes: Sequence[Annotated],
    recorder: Recorder,
    *,
    verb: str,
    out: str,
    max_failed_share: float,
    interrupted: bool,
    cpu_s: float,
    source_s: float,
) -> Result:
    """Count the fates of a run's units and what its passes made; name what failed and what does not add up."""
    mine = {unit.unit_id for unit in units}
    rows = [row for row in dataset.ledger().to_pylist() if row["unit_id"] in mine]
    fates = Counter((row["kind"], row["fate"]) for row in rows)
    _tell_failures([row for row in rows if row["fate"] == "failed"], recorder)
    balance = dataset.balance(mine)
    for problem in balance.problems:
        recorder.warn(problem)
    failed_sources, unsaid = fates["source", "failed"], sum(one.failed for one in passes)
    enough = balance.ok and not unsaid and failed_sources <= max_failed_share * max(1, len(units))
    cpu_s += sum(one.cpu_s for one in passes) + time.process_time()
    return Result(
        verb=verb,
        status="interrupted" if interrupted else "done" if enough else "incomplete",
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
        source_s=round(source_s, 3),
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


def _rejected_whole(rows: Sequence[Mapping[str, Any]]) -> int:
    found: dict[str, set[str]] = defaultdict(set)  # a long source has several rows
    for row in rows:
        if row["kind"] == "source":
            found[row["source_uri"]].add(row["fate"])
    return sum(fates == {"rejected"} for fates in found.values())


def _tell_failures(rows: Sequence[Mapping[str, Any]], recorder: Recorder) -> None:
    """Name the first failures with their reasons; all of them are in the ledger."""
    for row in rows[:FAILURES_SHOWN]:
        reason = f"{row['stage']}: {row['error_class']}: {row['message']}"
        recorder.warn(f"{row['source_uri']}: {reason}")
    if len(rows) > FAILURES_SHOWN:
        recorder.warn(f"and {len(rows) - FAILURES_SHOWN} more failures, in the ledger")


def record(recorder: Recorder, result: Result, dataset: Dataset, verb: str) -> None:
    """Log the counts and the dataset of a run, then make its page."""
    numbers = {k: float(v) for k, v in plain(result).items() if isinstance(v, (int, float))}
    recorder.run.log_metrics(numbers, 0)
    recorder.run.log_dataset("dataset", result.digest, dataset.root.uri, verb)
    recorder.run.set_tags({"kinoray.dataset": result.digest})
    recorder.cost("run", {name: numbers[name] for name in ("wall_s", "cpu_s", "source_s")})
    recorder.report(dataset)
