"""Train: dataset -> checkpoint of a base, motion or SSR model, on a group of Ray Train workers.

Ray Train places the workers, forms the process group and restarts the group when a worker dies; what a continuation needs is
in our own checkpoints, the same ones that a new run of the same recipe continues from.
"""

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.events import Board, Poster
from cluster.group import GroupFailed, fit, leaving, placed
from models import checkpoint
from pipelines import said, saved, training, weights
from pipelines.alone import alone, refuse_running
from pipelines.context import Context, Recorder, recorded
from pipelines.identity import plain
from pipelines.output import claim
from pipelines.plan import Plan
from pipelines.shelves import Mixed, Shelves, freeze
from pipelines.train_config import Config as Config  # noqa: PLC0414  this verb's keys
from pipelines.train_posts import Taker, described, lasting
from pipelines.train_spec import base_of, inputs_of, spec_of

VERB = "train"
SCRATCH = "ray-train"  # what Ray Train keeps of a group while it runs


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """How the training ended; losses are the mean over 8 fixed (clip, timestep, noise) draws, before and after."""

    verb: str
    status: str
    role: str
    steps: int
    loss_first: float
    loss_last: float
    checkpoint: str
    digest: str
    dataset_digest: str
    wall_s: float
    run_id: str


def plan(config: Config) -> Plan:
    """Count steps, clips and workers; reads no dataset that is not there yet."""
    counts: dict[str, int | float | str] = {
        "role": config.role,
        "steps": config.steps,
        "clips": config.steps * config.global_batch,
        "workers": config.num_workers,
    }
    return Plan(verb=VERB, out=str(config.out), counts=counts, stages=("load", "train", "publish"))


def run(config: Config, *, context: Context) -> Result:
    """Train to the last step; continues from the newest checkpoint of the same recipe and inputs."""
    own = Mixed(dataset=config.dataset, at=config.at, select=config.select, weight=config.weight)
    # all that can be wrong is found before the folder is claimed and a cluster starts
    shelves = freeze((own, *config.mix))
    base = base_of(config)
    spec = spec_of(config, shelves, base)
    inputs = shelves.inputs | inputs_of(config, base, spec)
    if not context.resume:
        refuse_running(config.out)
    claimed = claim(config.out, VERB, config, inputs=inputs, resume=context.resume)
    whole = (weights.checkpoint_folder(config.out) / "checkpoint.json").exists()
    if claimed.finished and whole:
        return Result(**claimed.finished)
    job = _job(config, shelves, spec, claimed.digest)
    name = f"{VERB}-{config.role}"
    with (
        alone(config.out, scratch=config.out / SCRATCH) as cleared,
        recorded(context, claimed, verb=VERB, name=name, config=config) as recorder,
    ):
        if cleared:
            recorder.stage(f"cleared {cleared / 1e6:.1f} MB that a killed run left half written")
        if crowded := shelves.crowded(config.global_batch):
            recorder.warn(crowded)
        for name, shelf in zip(shelves.inputs, shelves.shelves, strict=True):
            recorder.run.log_dataset(name, shelf.view, shelf.root, VERB)
        context.start_cluster()
        _fit(config, job, context, recorder)
        result = _result(config, job, shelves.digest, recorder)
        recorder.finish(claimed, plain(result))
    return result


def _job(config: Config, shelves: Shelves, spec: weights.Spec, identity: str) -> training.Job:
    return training.Job(
        spec=spec,
        optimizer=config.optimizer,
        shelves=shelves.shelves,
        view_digest=shelves.digest,
        folder=str(config.out.resolve()),
        base=_absolute(config.base),
        image=_absolute(config.image),
        start=_absolute(config.start),
        identity=identity,
        seed=config.seed,
        steps=config.steps,
        global_batch=config.global_batch,
        frames=config.frames,
        caption_dropout=config.caption_dropout,
        masks=config.masks,
        image_share=config.image_share,
        min_snr_gamma=config.min_snr_gamma or math.inf,
        guard=config.guard,
        precision=config.precision,
        form=config.form,
        checkpoint_every=config.checkpoint_every,
        retention=config.retention,
        probe_every=config.probe_every,
        show=config.show,
        threads=config.threads_per_worker,
        px=spec.network.sample_px,
        decode_workers=config.decode_workers,
        max_bad_clips=config.max_bad_clips,
    )


def _absolute(path: Path | None) -> str:
    return str(path.resolve()) if path else ""


def _fit(config: Config, job: training.Job, context: Context, recorder: Recorder) -> None:
    """Run the worker group and record what it posts until it ends; GroupFailed with a worker's own words."""
    recorder.stage(f"{config.role}: starting {config.num_workers} workers")
    folder = config.out / SCRATCH
    taker = Taker(config, recorder)
    board = Board(stop=lambda: context.stop.requested or bool(taker.failed))
    try:
        with board.draining(taker.take):
            fit(
                _worker,
                {"job": job, "board": board.handle},
                # Ray resumes a run of the same name from its own notes; ours resumes from our checkpoints.
                name=f"{VERB}-{config.role}-{time.time_ns()}",
                folder=folder,
                num_workers=config.workers,
                max_failures=config.max_failures,
                num_cpus=config.threads_per_worker,
                num_gpus=config.gpus_per_worker,
            )
    except GroupFailed as error:
        # what a worker told of itself is better than what Ray makes of it
        raise GroupFailed(taker.failed or str(error)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if taker.failed:
        raise GroupFailed(taker.failed)


def _worker(told: Mapping[str, Any]) -> None:
    """Do one worker's part.

    An error that would come again is told; the group that Ray starts anew hears that it must stop, and ends at once.
    """
    place = placed()
    tell = Poster(told["board"])
    asked = tell({"event": "started", "rank": place.rank, "workers": place.world_size})
    # all or none: a group with one missing would wait for it
    if said.by_first("stop" if asked else "", place):
        return
    try:
        training.train(told["job"], place, tell, leaving=leaving, untaken=tell.untaken)
    except Exception as error:
        if lasting(error):
            tell({"event": "failed", "error": described(error)})
        raise


def _result(config: Config, job: training.Job, seen: str, recorder: Recorder) -> Result:
    folder = weights.checkpoint_folder(config.out)
    stopped = not (folder / "checkpoint.json").exists()
    steps = saved.steps(config.out)
    meta = {} if stopped else checkpoint.load(folder, groups=()).meta
    result = Result(
        verb=VERB,
        status="interrupted" if stopped else "done",
        role=config.role,
        steps=steps[-1] if stopped and steps else 0 if stopped else job.steps,
        loss_first=meta.get("loss_first", 0.0),
        loss_last=meta.get("loss_last", 0.0),
        checkpoint=str(folder),
        digest="" if stopped else checkpoint.load(folder, groups=()).digest,
        dataset_digest=seen,
        wall_s=recorder.wall_s,
        run_id=recorder.run.id,
    )
    recorder.run.set_tags({"kinoray.checkpoint": result.digest, "kinoray.dataset": seen})
    return result
