"""Evaluate: evaluation sets -> numbers that need no weights; an incomplete set is refused.

What needs weights or another reference (FVD, FID, IS, CLIPSIM) is named in `skipped` with its reason, never reported as 0.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from cluster import pool
from cluster.session import Cluster
from ingest.files import atomic_write
from ingest.objects import Root
from ingest.store import Dataset
from models import windows
from models.metrics import seam
from pipelines.context import Context, Recorder, recorded
from pipelines.identity import plain
from pipelines.manifest import complete_rows, set_digest
from pipelines.measure import Sheet, measure
from pipelines.output import claim, to_json
from pipelines.plan import Plan

VERB = "evaluate"
MEANS = (
    "motion_magnitude",
    "static_share",
    "seam_ratio",
    "seam_excess",
    "ssr_base_psnr",
    "reference_psnr",
)
SKIPPED = {
    "fvd": "needs I3D weights; not in this version",
    "fid": "needs Inception weights; not in this version",
    "is": "needs C3D weights; not in this version",
    "clipsim": "needs CLIP weights; not in this version",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Which sets to measure, and the dataset their prompts' clips are looked up in."""

    sets: tuple[Path, ...]
    out: Path
    reference: str = ""
    max_attempts: int = 2
    seed: int = 0
    tracking_uri: str = ""
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        """Check that there is something to measure."""
        if not self.sets or len(set(self.sets)) < len(self.sets):
            raise ValueError("sets: at least one evaluation set, each once")


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The numbers of the first set under `metrics`, of every set under `sets`, and what was not measured and why."""

    verb: str
    status: str
    set: str
    metrics: dict[str, float]
    skipped: dict[str, str]
    sets: dict[str, dict[str, float]]
    samples: int
    out: str
    wall_s: float
    run_id: str


def plan(config: Config) -> Plan:
    """Count the sets."""
    return Plan(
        verb=VERB,
        out=str(config.out),
        counts={"sets": len(config.sets)},
        stages=("verify", "measure", "summarise"),
    )


def run(config: Config, *, context: Context) -> Result:
    """Measure every sample of every set and summarise; raises Incomplete before measuring a set with holes."""
    rows = {folder: complete_rows(folder) for folder in config.sets}
    names = _names(config.sets)
    inputs = {f"set {names[f]}": set_digest(rows[f]) for f in config.sets}
    if config.reference:
        inputs["reference"] = Dataset.open(config.reference).digest()
    claimed = claim(config.out, VERB, config, inputs=inputs, resume=context.resume)
    if claimed.finished:
        return Result(**claimed.finished)
    with recorded(context, claimed, verb=VERB, name=VERB, config=config) as recorder:
        context.start_cluster()
        summaries: dict[str, dict[str, float]] = {}
        for folder in config.sets:
            measured = _measured(config, folder, rows[folder], context, recorder)
            if context.stop.requested:
                break
            summaries[str(folder)] = _summary(measured, rows[folder])
            recorder.run.log_metrics(
                {f"{names[folder]}.{k}": v for k, v in summaries[str(folder)].items()}, 0
            )
            atomic_write(
                config.out / f"{names[folder]}.samples.json", to_json({"samples": measured})
            )
        result = _result(config, summaries, sum(map(len, rows.values())), context, recorder)
        recorder.finish(claimed, plain(result))
    return result


def _names(sets: Sequence[Path]) -> dict[Path, str]:
    """Return a name for each set: its folder's, numbered where several have the same one."""
    count = Counter(folder.name for folder in sets)
    return {f: f.name if count[f.name] == 1 else f"{i}-{f.name}" for i, f in enumerate(sets, 1)}


def _measured(
    config: Config,
    folder: Path,
    rows: Sequence[dict[str, Any]],
    context: Context,
    recorder: Recorder,
) -> list[dict[str, Any]]:
    prompts = tuple(sorted({row["prompt"] for row in rows}))
    reference = Root.of(config.reference).uri if config.reference else ""
    units = (
        pool.Unit(
            key=row["identity"],
            payload=Sheet(
                row=row, folder=str(folder.resolve()), reference=reference, prompts=prompts
            ),
        )
        for row in rows
    )
    found: dict[str, dict[str, Any]] = {}
    settings = pool.Pool(max_attempts=config.max_attempts)
    for outcome in pool.run_tasks(measure, units, config=settings, stop=context.stop):
        if outcome.failure is not None:
            raise ValueError(f"sample {outcome.key[:12]}: {outcome.failure.message}")
        found[outcome.key] = outcome.value
        recorder.progress(len(found), len(rows), stage=f"{VERB}: {folder.name}")
    return [found[row["identity"]] for row in rows if row["identity"] in found]


def _summary(
    measured: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Return means over samples; a number that a sample lacks is left out of its mean, and counted."""
    summary: dict[str, float] = {"samples": float(len(measured))}
    for name in MEANS:
        values = [float(m[name]) for m in measured if name in m]
        if values:
            summary[name] = statistics.fmean(values)
    own = [bool(m["nearest_is_own"]) for m in measured if "nearest_is_own" in m]
    if own:
        summary |= {"nearest_is_own": float(sum(own)), "nearest_of": float(len(own))}
    summary |= _seam_test(measured, rows)
    return summary


def _seam_test(
    measured: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]
) -> dict[str, float]:
    plans = {(r["frames"], r["window_frames"], tuple(r["window_starts"] or ())) for r in rows}
    if len(plans) != 1:
        return {}  # the permutation test speaks of one plan
    frames, window, starts = plans.pop()
    if len(starts) < 2:
        return {}
    plan_ = windows.Plan(frames=frames, window=window, starts=starts)
    curves = [torch.tensor(m["differences"], dtype=torch.float64) for m in measured]
    stride = min(b - a for a, b in pairwise(starts))
    edges = windows.boundaries(plan_)
    if stride < 2 or 2 * len(edges) > frames - 1:
        return {}  # boundaries nearly everywhere: there is nothing to compare them with
    return {"seam_p_value": seam.p_value(curves, edges, stride=stride)}


def _result(
    config: Config,
    summaries: dict[str, dict[str, float]],
    samples: int,
    context: Context,
    recorder: Recorder,
) -> Result:
    first = str(config.sets[0])
    return Result(
        verb=VERB,
        status="interrupted" if context.stop.requested else "done",
        set=first,
        metrics=summaries.get(first, {}),
        skipped=SKIPPED,
        sets=summaries,
        samples=samples,
        out=str(config.out),
        wall_s=recorder.wall_s,
        run_id=recorder.run.id,
    )
