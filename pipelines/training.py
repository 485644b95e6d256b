"""The training loop: one for every role, run by each Ray Train worker.

Each step takes the global batch's next clips from the dataset's own order, so that the stream of clips, timesteps and noise is
a function of the recipe and the step alone: not of the number of workers, of accumulation or of what was killed. A checkpoint
holds everything an exact continuation needs.
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cluster.group import Place
from ingest.augment import Frames
from ingest.files import atomic_folder
from ingest.loader import Batch, ClipStream
from ingest.order import Cursor
from ingest.reads import Work
from models import checkpoint, objective
from pipelines import beginning, saved, showing, weights
from pipelines.guard import Watch
from pipelines.keeper import Keeper
from pipelines.meters import metered
from pipelines.notices import Notices
from pipelines.shelves import parts_of, substituted
from pipelines.trainee import Trainee
from pipelines.training_job import Job as Job  # noqa: PLC0414  what `train` is told

Post = Callable[[Mapping[str, Any]], bool]
Untaken = Callable[[], Sequence[Mapping[str, Any]]]
# Numbers and words that are told again after a kill, where they may not have been recorded.
AGAIN = frozenset({"step", "probe", "samples", "substituted", "warning"})
NUM_PROBES = 8


class Diverged(RuntimeError):
    """Training was stopped by its guard."""


def train(
    job: Job,
    place: Place,
    post: Post,
    *,
    leaving: Callable[[], bool] = lambda: False,
    untaken: Untaken = tuple,
) -> None:
    """Train from the newest checkpoint, or from the start, to the last step.

    Rank 0 posts each step and hears whether a stop was asked for; stopping saves first, and so does a machine that is
    `leaving`, which every worker must ask alike. What was posted and is `untaken` goes into the checkpoint, and is posted
    again, marked so, when the training goes on from there: a driver that is killed loses no numbers. Raises Diverged when
    the guard gives up.
    """
    beginning.settle(place.device, job.threads)
    run = _Run(job, place, post, untaken)
    done = run.restore()
    with run.stream() as stream:
        run.look(done)
        notices = Notices(place, leaving)
        for step in range(done, job.steps):
            asked, known = run.take(stream, step), notices.leaves
            stop, idle = notices.after(asked=asked, idle=run.keeper.idle)
            last, gone = step + 1 == job.steps, notices.leaves and (idle or not known)
            if last or stop or gone or (step + 1) % job.checkpoint_every == 0:
                run.save(step + 1)
            # the first is whole before the next step; until the machine is gone others follow as fast as they are written
            if gone and not known:
                run.keeper.wait()
            if last or (job.probe_every and (step + 1) % job.probe_every == 0):
                run.loss_last = run.probe(step + 1, averaged=True)
            if job.show.every and (step + 1) % job.show.every == 0:
                run.show(step + 1)
            if stop and not last:
                run.keeper.wait()
                return
    run.publish()


class _Run:
    """A training on this worker: the network, where it stands, and what is told of it."""

    def __init__(self, job: Job, place: Place, post: Post, untaken: Untaken) -> None:
        self.job, self.place, self._post, self._untaken = job, place, post, untaken
        self.loss_first = self.loss_last = math.nan
        self._base = weights.load(Path(job.base), "base") if job.base else None
        self.trainee = self._fresh()
        self.watch = Watch(job.guard)
        self.cursor: dict[str, Any] = Cursor(
            view_digest=job.view_digest, seed=job.seed, global_batch=job.global_batch
        ).state_dict()
        self.keeper = Keeper(
            Path(job.folder),
            identity=job.identity,
            retention=job.retention,
            place=place,
            warn=self._warn,
            regular=job.checkpoint_every,
        )
        # only rank 0 tells numbers, and what a clip costs takes a second to count
        told = {"frames": job.frames, "device": place.device}
        self._meter = metered(job.spec, **told) if place.rank == 0 else None

    def _fresh(self) -> Trainee:
        return beginning.fresh(self.job, self._base, self.place)

    def stream(self) -> ClipStream:
        """Return this worker's share of the clips, from where the checkpoint stands."""
        return self._stream(
            Cursor.from_state(self.cursor),
            rank=self.place.rank,
            world_size=self.place.world_size,
            decode_workers=self.job.decode_workers,
            cache_bytes=512 << 20,
        )

    def _stream(
        self, cursor: Cursor, *, rank: int = 0, world_size: int = 1, **work: int
    ) -> ClipStream:
        job = self.job
        return ClipStream(
            parts_of(job.shelves),
            cursor=cursor,
            read=Frames(width=job.px, height=job.px),
            rank=rank,
            world_size=world_size,
            work=Work(max_bad_clips=job.max_bad_clips, **work),
        )

    def take(self, stream: ClipStream, step: int) -> bool:
        """Take one step on the global batch, tell its numbers, and return whether rank 0 was asked to stop."""
        job = self.job
        started_s = time.monotonic()
        batch = next(stream)
        waited_s = time.monotonic() - started_s
        if batch.substitutions:
            self._post(substituted(batch, step))
        rate = job.optimizer.rate(step, job.steps)
        clips = _clips(batch, self.place.device)
        loss = self.trainee.gradients(clips, step=step, global_batch=job.global_batch)
        norm = self.trainee.clipped()
        self._follow(self.watch.judge(loss, norm), rate, step, loss=loss, norm=norm)
        self.cursor = batch.state
        wall_s = time.monotonic() - started_s
        if self._meter is None:
            return False
        numbers = {
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": rate,
            "step_s": wall_s,
            "data_wait_s": waited_s,
            "data_wait_share": waited_s / wall_s,
            **self._meter.numbers(
                clips=job.global_batch, wall_s=wall_s, workers=self.place.world_size
            ),
        }
        return self._post({"event": "step", "step": step + 1, **numbers})

    def _follow(self, verdict: str, rate: float, step: int, *, loss: float, norm: float) -> None:
        """Do what the guard says."""
        if verdict == "good":
            self.trainee.update(rate)
            return
        told = f"step {step + 1}: loss {loss:.4g}, usual {self.watch.usual():.4g}, gradient norm {norm:.4g}"
        if verdict == "stop":
            raise Diverged(
                f"{told}: training has diverged {self.watch.rolled_back + 1} times; next: a lower learning_rate or "
                f"clip_norm, a longer warm-up, or a look at the clips of these steps"
            )
        if verdict == "skip":
            self._warn(f"{told}: this step's update was left out")
            return
        # the same checkpoint whatever was stopped and continued in between: only regular ones
        found = self.keeper.newest(every=self.job.checkpoint_every)
        if found is None:
            del self.trainee  # never two networks at once
            self.trainee = self._fresh()
        else:
            with found:
                self.trainee.restore(found, found.meta["optimizer_groups"])
        back_to = found.meta["step"] if found else 0
        self._warn(f"{told}: weights went back to step {back_to}, the data goes on")

    def look(self, done: int) -> None:
        """Probe where the training begins, and where a kill may have come between a checkpoint and its probe."""
        if done == 0:
            self.loss_first = self.loss_last = self.probe(0, averaged=False)
        elif done == self.job.steps or (self.job.probe_every and done % self.job.probe_every == 0):
            self.loss_last = self.probe(done, averaged=True)

    def probe(self, step: int, *, averaged: bool) -> float:
        """Return the loss on the fixed draws and tell it; NaN on other workers than rank 0 under DDP."""
        if self.place.rank != 0 and self.job.form.parallel == "ddp":
            return math.nan
        found = self.trainee.probe(self._probe_clips(), averaged=averaged)
        if self.place.rank == 0:
            self._post({"event": "probe", "step": step, "loss": found})
        return found

    def show(self, step: int) -> None:
        """Make and tell videos of the first clips."""
        if self.place.rank != 0 and self.job.form.parallel == "ddp":
            return
        frames = self.job.frames
        videos = showing.made(self.trainee, self._probe_clips(), self.job.show, frames=frames)
        if self.place.rank == 0:
            folder = Path(self.job.folder)
            paths = showing.written(videos, folder, step=step, spec=self.job.spec)
            self._post({"event": "samples", "step": step, "paths": [str(p) for p in paths]})

    def _probe_clips(self) -> list[objective.Clips]:
        """Return NUM_PROBES clips: the first of the order of epoch 0, one an entry."""
        cursor = Cursor(view_digest=self.job.view_digest, seed=self.job.seed, global_batch=1)
        with self._stream(cursor) as stream:
            return [_clips(next(stream), self.place.device) for _ in range(NUM_PROBES)]

    def restore(self) -> int:
        """Load the newest whole checkpoint and return its step, 0 without one."""
        had_some = bool(saved.steps(Path(self.job.folder)))
        found = self.keeper.newest()
        if found is None:
            if had_some:
                self._warn("no whole checkpoint is left: the training starts over")
            return 0
        with found:
            self.trainee.restore(found, found.meta["optimizer_groups"])
        self.watch = Watch(self.job.guard, found.meta["watch"])
        self.cursor = found.meta["cursor"]
        self.loss_first = found.meta["loss_first"]
        if self.place.rank == 0:
            for event in itertools.chain(*found.meta["of_workers"]):
                self._post({**event, "again": True})
        return int(found.meta["step"])

    def save(self, step: int) -> None:
        """Begin to write the checkpoint of `step`, and tell how long the step was held up."""
        started_s = time.monotonic()
        groups, settings = self.trainee.groups()
        self.keeper.save(
            step,
            groups,
            role=self.job.spec.role,
            spec=self.job.spec.to_json(),
            parents=self._parents(),
            meta={
                "loss_first": self.loss_first,
                "cursor": self.cursor,
                "optimizer_groups": settings,
                "watch": self.watch.state_dict(),
                "world_size": self.place.world_size,
            },
            own=[dict(e) for e in self._untaken() if e["event"] in AGAIN],
        )
        if self.place.rank == 0:
            held_s = time.monotonic() - started_s
            self._post({"event": "checkpoint", "step": step, "held_s": held_s})

    def publish(self) -> None:
        """Write the averaged weights as the run's result, once; the losses are those on the fixed draws."""
        self.keeper.wait()
        state = self.trainee.published()
        final = Path(self.job.folder) / "checkpoint"
        if self.place.rank != 0 or final.exists():
            return
        with atomic_folder(final) as part:
            checkpoint.save(
                part,
                role=self.job.spec.role,
                spec=self.job.spec.to_json(),
                tensors={"params": state},
                parents=self._parents(),
                meta={
                    "identity": self.job.identity,
                    "step": self.job.steps,
                    "loss_first": self.loss_first,
                    "loss_last": self.loss_last,
                },
            )

    def _warn(self, text: str) -> None:
        if self.place.rank == 0:
            self._post({"event": "warning", "text": text})

    def _parents(self) -> dict[str, str]:
        return {"base": self._base.digest} if self._base else {}


def _clips(batch: Batch, device: torch.device) -> objective.Clips:
    """Cross the border from uint8 THWC to float BCTHW in [-1, 1]."""
    frames = batch.frames_BTHWC.to(device, non_blocking=True)
    x = frames.permute(0, 4, 1, 2, 3).float().div(127.5).sub(1.0).contiguous()
    return objective.Clips(
        x_BCTHW=x, captions=batch.captions, clip_ids=batch.clip_ids, positions=batch.positions
    )
