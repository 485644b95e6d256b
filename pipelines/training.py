"""The training loop: one for every role, run by each Ray Train worker.

Each step takes the global batch's next clips from the dataset's own order, so that the stream of clips, timesteps and noise is
a function of the recipe and the step alone. A checkpoint holds everything an exact continuation needs; worker 0 writes it
under a temporary name and renames it, so that a kill leaves the previous one whole.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cluster.group import Place
from ingest.augment import Frames
from ingest.files import atomic_folder
from ingest.loader import Batch, ClipStream
from ingest.order import Cursor
from ingest.reads import Work
from models import checkpoint, objective, stunet
from models.ema import EMA
from pipelines import saved, weights
from pipelines.shelves import Shelf, parts_of, substituted

KEPT = 2
Post = Callable[[Mapping[str, Any]], bool]
NUM_PROBES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """AdamW with linear warm-up and cosine decay to a tenth."""

    learning_rate: float = 1e-3
    warmup_steps: int = 10
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.99

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.warmup_steps < 0 or self.learning_rate < 0 or self.clip_norm <= 0:
            raise ValueError("warmup_steps and learning_rate: at least 0; clip_norm: above 0")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError("ema_decay: at least 0 and below 1")

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, 0 <= step < steps."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return self.learning_rate * (0.55 + 0.45 * math.cos(math.pi * done))


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Everything a worker is told: plain values only, so that it travels."""

    spec: weights.Spec
    optimizer: Optimizer
    shelves: tuple[Shelf, ...]
    view_digest: str
    folder: str
    base: str
    identity: str
    seed: int
    steps: int
    global_batch: int
    frames: int
    caption_dropout: float
    checkpoint_every: int
    threads: int
    px: int
    decode_workers: int
    max_bad_clips: int


def train(job: Job, place: Place, post: Post) -> None:
    """Train from the newest checkpoint, or from the start, to the last step.

    Rank 0 posts each step and hears whether a stop was asked for; stopping saves first.
    """
    torch.set_num_threads(job.threads)
    torch.use_deterministic_algorithms(mode=True)
    state = _State(job, place)
    done = state.restore()
    with state.stream() as stream:
        if done == 0 and place.rank == 0:
            state.loss_first = state.probe(averaged=False)
            post({"event": "probe", "step": 0, "loss": state.loss_first})
        for step in range(done, job.steps):
            started_s = time.monotonic()
            batch = next(stream)
            waited_s = time.monotonic() - started_s
            if batch.substitutions:
                post(substituted(batch, step))
            numbers = state.step(batch, step)
            stop = place.rank == 0 and post(
                {"event": "step", "step": step + 1, "data_wait_s": waited_s, **numbers}
            )
            stop = _agreed(stop, place)
            last = step + 1 == job.steps
            if last or stop or (step + 1) % job.checkpoint_every == 0:
                state.save(step + 1, batch.state)
            if stop and not last:
                return
    if place.rank == 0:
        loss_last = state.probe(averaged=True)
        post({"event": "probe", "step": job.steps, "loss": loss_last})
        state.publish(loss_last)


class _State:
    """The network, its optimizer and average on this worker."""

    def __init__(self, job: Job, place: Place) -> None:
        self.job, self.place = job, place
        self.loss_first = math.nan
        spec = job.spec
        self._base = weights.load(Path(job.base), "base") if job.base else None
        self.model = weights.network(spec, seed=job.seed, base=self._base)
        self.parameters = stunet.trainable(self.model, spec.role)
        settings = job.optimizer
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            foreach=False,
        )
        self.ema = EMA(self.parameters, decay=settings.ema_decay)
        self.cursor: dict[str, Any] = Cursor(
            view_digest=job.view_digest, seed=job.seed, global_batch=job.global_batch
        ).state_dict()
        self.objective = objective.Objective(
            role=spec.role,
            schedule=spec.schedule,
            text=spec.text,
            run_seed=job.seed,
            frames=job.frames,
            caption_dropout=job.caption_dropout,
            ssr=spec.ssr,
        )
        self.network: nn.Module = self.model
        if place.world_size > 1:
            self.network = DistributedDataParallel(self.model)

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

    def step(self, batch: Batch, step: int) -> dict[str, float]:
        """Take one optimizer step on the global batch and return its numbers."""
        started_s = time.monotonic()
        rate = self.job.optimizer.rate(step, self.job.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss_B = objective.losses(self.objective, self.network, _clips(batch), step=step)
        # DDP averages over workers; dividing by the global batch keeps uneven shares exact.
        share = loss_B.sum() / self.job.global_batch
        (share * self.place.world_size).backward()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.job.optimizer.clip_norm)
        self.optimizer.step()
        self.ema.update(self.parameters)
        return {
            "loss": _summed(share, self.place),
            "grad_norm": float(norm),
            "learning_rate": rate,
            "step_s": time.monotonic() - started_s,
        }

    def probe(self, *, averaged: bool) -> float:
        """Return the loss on the fixed draws, of the averaged weights or of those in training."""
        clips = self._probe_clips()
        swap = self.ema.applied(self.parameters) if averaged else contextlib.nullcontext()
        with swap:
            return objective.probe(self.objective, self.model, clips)

    def _probe_clips(self) -> list[objective.Clips]:
        """Return NUM_PROBES clips: the first of the order of epoch 0, one an entry."""
        cursor = Cursor(view_digest=self.job.view_digest, seed=self.job.seed, global_batch=1)
        with self._stream(cursor) as stream:
            return [_clips(next(stream)) for _ in range(NUM_PROBES)]

    def restore(self) -> int:
        """Load the newest whole checkpoint and return its step, 0 without one."""
        found = saved.steps(Path(self.job.folder))
        if not found:
            return 0
        groups = ("params", "ema", "optimizer")
        kept = checkpoint.load(saved.folder_of(Path(self.job.folder), found[-1]), groups=groups)
        if kept.meta["identity"] != self.job.identity:
            raise ValueError(f"{self.job.folder}: its checkpoints belong to another recipe")
        state = self.model.state_dict()
        self.model.load_state_dict({**state, **kept.tensors["params"]}, strict=True)
        self.ema.load_state_dict(kept.tensors["ema"])
        checkpoint.unpack_optimizer(
            self.optimizer, kept.tensors["optimizer"], kept.meta["optimizer_groups"]
        )
        self.cursor = kept.meta["cursor"]
        self.loss_first = kept.meta["loss_first"]
        return int(kept.meta["step"])

    def save(self, step: int, cursor: Mapping[str, Any]) -> None:
        """Write the checkpoint of `step` (rank 0) and drop all but the newest ones."""
        self.cursor = dict(cursor)
        if self.place.rank != 0:
            return
        folder = Path(self.job.folder)
        tensors, groups = checkpoint.pack_optimizer(self.optimizer)
        meta = {
            "identity": self.job.identity,
            "step": step,
            "loss_first": self.loss_first,
            "cursor": self.cursor,
            "optimizer_groups": groups,
            "world_size": self.place.world_size,
        }
        own = {name: p.detach() for name, p in self.parameters.items()}
        with atomic_folder(saved.folder_of(folder, step)) as part:
            checkpoint.save(
                part,
                role=self.job.spec.role,
                spec=self.job.spec.to_json(),
                tensors={"params": own, "ema": self.ema.state_dict(), "optimizer": tensors},
                parents=self._parents(),
                meta=meta,
            )
        saved.forget(folder, keep=KEPT)

    def publish(self, loss_last: float) -> None:
        """Write the averaged weights as the run's result, once; the losses are those on the fixed draws."""
        final = Path(self.job.folder) / "checkpoint"
        if final.exists():
            return
        with self.ema.applied(self.parameters), atomic_folder(final) as part:
            checkpoint.save(
                part,
                role=self.job.spec.role,
                spec=self.job.spec.to_json(),
                tensors={"params": weights.role_state(self.model, self.job.spec.role)},
                parents=self._parents(),
                meta={
                    "identity": self.job.identity,
                    "step": self.job.steps,
                    "loss_first": self.loss_first,
                    "loss_last": loss_last,
                },
            )

    def _parents(self) -> dict[str, str]:
        return {"base": self._base.digest} if self._base else {}


def _clips(batch: Batch) -> objective.Clips:
    """Cross the border from uint8 THWC to float BCTHW in [-1, 1]."""
    x = batch.frames_BTHWC.permute(0, 4, 1, 2, 3).float().div(127.5).sub(1.0).contiguous()
    return objective.Clips(
        x_BCTHW=x, captions=batch.captions, clip_ids=batch.clip_ids, positions=batch.positions
    )


def _summed(value: torch.Tensor, place: Place) -> float:
    total = value.detach().clone()
    if place.world_size > 1:
        dist.all_reduce(total)
    return float(total)


def _agreed(stop: bool, place: Place) -> bool:  # noqa: FBT001  the flag is the datum
    return _summed(torch.tensor(float(stop)), place) > 0
