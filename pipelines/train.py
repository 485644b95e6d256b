"""Train: dataset -> checkpoint of a base, motion or SSR model, on a group of Ray Train workers.

Ray Train places the workers, forms the process group and restarts the group when a worker dies; what a continuation needs is
in our own checkpoints, the same ones that a new run of the same recipe continues from.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cluster.events import Board, post
from cluster.group import fit, placed
from cluster.session import Cluster
from ingest.select import Selection
from models import checkpoint, stunet
from models.conditioning import HashedText
from models.diffusion import Schedule
from models.ssr import Config as SsrConfig
from pipelines import saved, training, weights
from pipelines.context import Context, Recorder, recorded
from pipelines.identity import plain
from pipelines.output import WrongInput, claim
from pipelines.plan import Plan
from pipelines.shelves import Mixed, Shelves, freeze
from pipelines.training import Optimizer

VERB = "train"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What to train.

    `model` shapes a base (a motion model takes its base's shape), `ssr` an SSR; `frames` is images a clip for a base and
    the window length for an SSR; a motion model sees whole clips. `select` chooses clips of `dataset` (at a tag or version
    `at`); clips of `mix` are drawn as well, each dataset in proportion to its integer `weight`.
    """

    family: Literal["lumiere"] = "lumiere"
    role: Literal["base", "motion", "ssr"]
    dataset: str
    at: str = ""
    select: Selection = field(default_factory=Selection)
    weight: int = 1
    mix: tuple[Mixed, ...] = ()
    out: Path
    steps: int
    global_batch: int
    base: Path | None = None
    model: stunet.Config | None = None
    ssr: SsrConfig | None = None
    frames: int = 8
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    text_length: int = 16
    caption_dropout: float = 0.1
    num_workers: int = 2
    threads_per_worker: int = 1
    decode_workers: int = 0
    max_bad_clips: int = 8
    checkpoint_every: int = 50
    max_failures: int = 2
    seed: int = 0
    tracking_uri: str = ""
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        """Check that the keys fit the role and each other."""
        needed = {"base": "model", "motion": "base", "ssr": "ssr"}[self.role]
        for key in ("base", "model", "ssr"):
            given = getattr(self, key) is not None
            if key == needed and not given:
                raise ValueError(f"{key}: a {self.role} training needs it")
            if key != needed and given:
                raise ValueError(f"{key}: a {self.role} training does not take it, remove the key")
        if self.steps < 1 or self.num_workers < 1 or self.checkpoint_every < 1:
            raise ValueError("steps, num_workers and checkpoint_every: at least 1")
        if self.global_batch < self.num_workers:
            raise ValueError(f"global_batch: at least num_workers ({self.num_workers})")
        self._check_numbers()

    def _check_numbers(self) -> None:
        if min([self.weight, *(part.weight for part in self.mix)]) < 1:
            raise ValueError("weight: an integer of at least 1; leave a dataset out instead")
        if self.decode_workers < 0 or self.max_bad_clips < 0:
            raise ValueError("decode_workers and max_bad_clips: at least 0")
        if self.frames < 1 or self.threads_per_worker < 1 or self.text_length < 1:
            raise ValueError("frames, threads_per_worker and text_length: at least 1")
        if not 0.0 <= self.caption_dropout <= 1.0:
            raise ValueError("caption_dropout: between 0 and 1")
        network = self.ssr.network if self.ssr else self.model
        if network is not None and network.sample_px % network.px_multiple:
            raise ValueError(
                f"sample_px: {network.sample_px} must divide by {network.px_multiple}, "
                f"for {len(network.widths)} levels"
            )


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
    shelves = freeze((own, *config.mix))
    base = weights.load(config.base, "base") if config.base else None
    inputs = shelves.inputs | ({"base": base.digest} if base else {})
    claimed = claim(config.out, VERB, config, inputs=inputs, resume=context.resume)
    whole = (weights.checkpoint_folder(config.out) / "checkpoint.json").exists()
    if claimed.finished and whole:
        return Result(**claimed.finished)
    job = _job(config, shelves, base, claimed.digest)
    name = f"{VERB}-{config.role}"
    with recorded(context, claimed, verb=VERB, name=name, config=config) as recorder:
        for name, shelf in zip(shelves.inputs, shelves.shelves, strict=True):
            recorder.run.log_dataset(name, shelf.view, shelf.root, VERB)
        context.start_cluster()
        _fit(config, job, context, recorder)
        result = _result(config, job, shelves.digest, recorder)
        recorder.finish(claimed, plain(result))
    return result


def _job(
    config: Config, shelves: Shelves, base: weights.Loaded | None, identity: str
) -> training.Job:
    spec = _spec(config, shelves, base)
    return training.Job(
        spec=spec,
        optimizer=config.optimizer,
        shelves=shelves.shelves,
        view_digest=shelves.digest,
        folder=str(config.out.resolve()),
        base=str(config.base.resolve()) if config.base else "",
        identity=identity,
        seed=config.seed,
        steps=config.steps,
        global_batch=config.global_batch,
        frames=config.frames,
        caption_dropout=config.caption_dropout,
        checkpoint_every=config.checkpoint_every,
        threads=config.threads_per_worker,
        px=spec.network.sample_px,
        decode_workers=config.decode_workers,
        max_bad_clips=config.max_bad_clips,
    )


def _spec(config: Config, shelves: Shelves, base: weights.Loaded | None) -> weights.Spec:
    frames = shelves.frames
    if base is not None:
        multiple = base.spec.network.frames_multiple
        if frames % multiple:
            raise WrongInput(f"clips of {frames} frames do not divide by the base's {multiple}")
        if base.spec.frames != frames:
            raise WrongInput(
                f"the base was trained on clips of {base.spec.frames} frames, "
                f"{config.dataset} holds clips of {frames}"
            )
        return replace(base.spec, role="motion")
    network = config.ssr.network if config.ssr else config.model
    if network is None:
        raise WrongInput("model: Field required")
    if config.ssr and config.frames > frames:
        raise WrongInput(f"frames: {config.frames} is more than the {frames} of a clip")
    return weights.Spec(
        role=config.role,
        network=network,
        schedule=config.schedule,
        text=HashedText(dim=network.text_dim, length=config.text_length),
        frames=frames,
        fps=shelves.fps,
        ssr=config.ssr,
    )


def _fit(config: Config, job: training.Job, context: Context, recorder: Recorder) -> None:
    """Run the worker group and record what it posts until it ends."""
    recorder.stage(f"{config.role}: starting {config.num_workers} workers")
    folder = config.out / "ray-train"
    board = Board(stop=lambda: context.stop.requested)
    with board.draining(lambda event: _take(event, config, recorder)):
        fit(
            _worker,
            {"job": job, "board": board.handle},
            # Ray resumes a run of the same name from its own notes; ours resumes from our checkpoints.
            name=f"{VERB}-{config.role}-{time.time_ns()}",
            folder=folder,
            num_workers=config.num_workers,
            max_failures=config.max_failures,
        )
    shutil.rmtree(folder, ignore_errors=True)


def _worker(told: Mapping[str, Any]) -> None:
    """Do one worker's part."""
    training.train(told["job"], placed(), lambda event: post(told["board"], event))


def _take(event: Mapping[str, Any], config: Config, recorder: Recorder) -> None:
    step = int(event["step"])
    if event["event"] == "substituted":
        for clip in event["clips"]:
            recorder.warn(f"step {step}: {clip['reason']}; clip {clip['used']} took its place")
        return
    if event["event"] == "probe":
        recorder.run.log_metrics({"probe_loss": float(event["loss"])}, step)
        return
    numbers = {k: float(v) for k, v in event.items() if isinstance(v, float)}
    recorder.step(step, numbers)
    recorder.progress(
        step,
        config.steps,
        stage=f"{VERB} {config.role}",
        text=f"loss {numbers['loss']:.4f}, {numbers['step_s']:.2f} s a step",
    )


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
