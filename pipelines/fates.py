"""What a curate run says at its end: how many of which fate, the first failures, the numbers for the tracker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingest.store import Dataset
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
    duplicates: int
    fates_balance: bool
    wall_s: float
    cpu_s: float
    source_s: float
    run_id: str


def tell_failures(rows: Sequence[Mapping[str, Any]], recorder: Recorder) -> None:
    """Name the first failures with their reasons; all of them are in the ledger."""
    for row in rows[:FAILURES_SHOWN]:
        reason = f"{row['stage']}: {row['error_class']}: {row['message']}"
        recorder.warn(f"{row['source_uri']}: {reason}")
    if len(rows) > FAILURES_SHOWN:
        recorder.warn(f"and {len(rows) - FAILURES_SHOWN} more failures, in the ledger")


def record(recorder: Recorder, result: Result, dataset: Dataset, verb: str) -> None:
    """Log the counts and the dataset of a run."""
    numbers = {k: float(v) for k, v in plain(result).items() if isinstance(v, (int, float))}
    recorder.run.log_metrics(numbers, 0)
    recorder.run.log_dataset("dataset", result.digest, dataset.root.uri, verb)
    recorder.run.set_tags({"kinoray.dataset": result.digest})
