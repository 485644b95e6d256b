"""Clips for training: one order for any number of ranks, exact resume, every read verified.

The state is one small dictionary for all ranks. Which clips a step sees, and how they are cut,
depends on the views, the seed and the step alone: not on ranks, processes, threads or the past.
The only torch in this folder. Letters: B batch, C channels, T frames, H height, W width.
"""

import os
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ingest.augment import Frames, cut_of
from ingest.feed import Feed, Part, Step, Substitution
from ingest.objects import Root
from ingest.order import Cursor, slots
from ingest.reader import decode
from ingest.reads import Latents, Work


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """This rank's part of one global batch; a tensor of what is not read has no elements.

    Positions count from 0; an epoch is that of the clip's own part. `state` resumes behind this
    batch. Frames are uint8; latents are float16 BTCHW or int32 tokens.
    """

    clip_ids: list[str]
    frames_BTHWC: torch.Tensor
    low_BTHWC: torch.Tensor
    latents: torch.Tensor
    captions: list[str]
    labels: list[str]
    positions: list[int]
    epochs: list[int]
    substitutions: tuple[Substitution, ...]
    state: dict[str, Any]

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory; a DataLoader calls this when asked to."""
        return replace(
            self,
            frames_BTHWC=self.frames_BTHWC.pin_memory(),
            low_BTHWC=self.low_BTHWC.pin_memory(),
            latents=self.latents.pin_memory(),
        )


class ClipStream(Iterator[Batch]):
    """An endless iterator of batches; close it, or use it as a context manager.

    Args:
        parts: the views to draw from, one or a mixture.
        cursor: where to begin; its digest must be that of the parts.
        read: what is wanted of each clip.
        rank: which share of each global batch this stream yields.
        world_size: of how many.
        work: how reading is done.
        share: (i, n) for only every n-th step from the i-th on, as a DataLoader's workers do.

    Raises ValueError when the cursor or `read` does not fit the parts; when iterated,
    CorruptPayload when more clips are corrupt than `work` allows.
    """

    def __init__(
        self,
        parts: Part | Sequence[Part],
        *,
        cursor: Cursor,
        read: Frames | Latents,
        rank: int = 0,
        world_size: int = 1,
        work: Work | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._slots = slots(cursor.global_batch, world_size, rank)
        self._rank, self._world_size, self._share = rank, world_size, share
        work = work or Work()
        self._prefetch = work.prefetch
        chosen = [parts] if isinstance(parts, Part) else parts
        self._feed = Feed(chosen, seed=cursor.seed, read=read, work=work)
        self._end = weakref.finalize(self, self._feed.close)
        self._ahead: deque[tuple[int, Step]] = deque()
        try:
            self._set(cursor)
        except ValueError:
            self.close()
            raise

    def __enter__(self) -> "ClipStream":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def pids(self) -> list[int]:
        """Return the process ids of the decode workers that are ready."""
        return self._feed.pids()

    def close(self) -> None:
        """End the threads and processes."""
        self._end()

    def __len__(self) -> int:
        """Number of clips in all parts."""
        return len(self._feed)

    def state_dict(self) -> dict[str, Any]:
        """Return the cursor behind the last batch that was handed out."""
        return self._cursor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of the same parts and seed."""
        self._set(Cursor.from_state(dict(state)))

    def _set(self, cursor: Cursor) -> None:
        if (self._feed.digest, self._feed.seed) != (cursor.view_digest, cursor.seed):
            raise ValueError(
                f"view {self._feed.digest[:12]}, seed {self._feed.seed}, but the cursor belongs to "
                f"view {cursor.view_digest[:12]}, seed {cursor.seed}; resume with the view, or the "
                "mixture, that training began with"
            )
        self._cursor = cursor
        self._slots = slots(cursor.global_batch, self._world_size, self._rank)
        self._ahead.clear()
        self._next = cursor.samples_consumed + self._share[0] * cursor.global_batch

    def __next__(self) -> Batch:
        """Return the next batch, and begin to read those after it."""
        while len(self._ahead) <= self._prefetch:
            positions = [self._next + slot for slot in self._slots]
            self._ahead.append((self._next, self._feed.submit(positions)))
            self._next += self._share[1] * self._cursor.global_batch
        start, step = self._ahead[0]
        self._feed.collect(step)
        self._ahead.popleft()
        done = start + self._cursor.global_batch
        self._cursor = replace(self._cursor, samples_consumed=done)
        return _batch(step, self._cursor.state_dict())


def _batch(step: Step, state: dict[str, Any]) -> Batch:
    return Batch(
        clip_ids=[row["clip_id"] for row in step.rows],
        frames_BTHWC=torch.from_numpy(step.arrays.high_BTHWC),
        low_BTHWC=torch.from_numpy(step.arrays.low_BTHWC),
        latents=torch.from_numpy(step.arrays.latents),
        captions=[row["caption"] for row in step.rows],
        labels=[row["label"] for row in step.rows],
        positions=step.positions,
        epochs=step.draws.epochs.tolist(),
        substitutions=tuple(step.substitutions),
        state=state,
    )


class TorchClips(IterableDataset[Batch]):
    """The same stream for `torch.utils.data.DataLoader(clips, batch_size=None, num_workers=n)`.

    A batch is whole already, hence `batch_size=None`. Worker i of n takes the steps i, i + n, ...,
    and the DataLoader takes turns, so the order is the stream's for any n. Checkpoint the `state`
    of the last batch that was used, not what was fetched ahead. With an object store, start workers
    with `multiprocessing_context="spawn"`: its connections do not survive a fork.

    Args:
        parts: as for ClipStream, like all but `steps`.
        cursor: where to begin.
        read: what is wanted of each clip.
        rank: which share of each global batch.
        world_size: of how many.
        work: how reading is done in each worker; one thread, if not said.
        steps: after how many batches to end; 0 for never.
    """

    def __init__(
        self,
        parts: Part | Sequence[Part],
        *,
        cursor: Cursor,
        read: Frames | Latents,
        rank: int = 0,
        world_size: int = 1,
        work: Work | None = None,
        steps: int = 0,
    ) -> None:
        self._parts = [parts] if isinstance(parts, Part) else list(parts)
        self._cursor, self._steps, self._process = cursor, steps, os.getpid()
        self._settings: dict[str, Any] = {
            "read": read,
            "rank": rank,
            "world_size": world_size,
            "work": work,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._process = os.getpid()  # it travelled, so this process was not forked off

    def __iter__(self) -> Iterator[Batch]:
        remote = [part for part in self._parts if not Root.of(part.root).is_local]
        if remote and os.getpid() != self._process:
            raise ValueError(
                f"{remote[0].root}: a forked worker would wait for ever for an object store; give "
                'the DataLoader multiprocessing_context="spawn"'
            )
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        count = len(range(worker, self._steps, workers)) if self._steps else None
        share = worker, workers
        with ClipStream(self._parts, cursor=self._cursor, share=share, **self._settings) as stream:
            yield from islice(stream, count)


def read_clip(
    root: Root | Path | str, row: Mapping[str, Any], width: int, height: int
) -> np.ndarray:
    """Return one clip as uint8 THWC of the given size; `row` is from kept_clips or a view.

    Raises CorruptPayload naming shard and clip when the bytes are not those that were written.
    """
    if not isinstance(row["clip_id"], str):
        row = {**row, "clip_id": row["clip_id"].hex()}
    frames = Frames(width=width, height=height)
    high_THWC, low_THWC = (np.empty(shape, np.uint8) for shape in frames.shapes(row["frame_count"]))
    cut = cut_of(row, frames, seed=0, epoch=0)
    decode(Root.of(root), row, cut, high_THWC, low_THWC)
    return high_THWC
