"""Clips for training: order_v1, exact resume, every read verified, decoding in the background.

The state is one small dictionary for all ranks. Which clips a step sees depends on the view, the
seed and the step alone, never on the number of ranks or threads. The only torch in this folder.
Letters: B batch, C channels, T frames, H height, W width.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch

from ingest.decode import payload_frames
from ingest.order import Cursor, slots
from ingest.shards import CorruptPayload, read_payload
from ingest.views import open_view


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """This rank's part of one global batch; frames are uint8 BTHWC, positions count from 0."""

    clip_ids: list[str]
    frames_BTHWC: torch.Tensor  # noqa: N815 - letters of the shape
    captions: list[str]
    positions: list[int]


def read_clip(root: Path, row: Mapping[str, Any], width: int, height: int) -> np.ndarray:
    """Return one clip as uint8 THWC of the given size; `row` is from kept_clips or a view.

    Raises CorruptPayload naming shard and clip when the bytes are not those that were written.
    """
    name = row["clip_id"] if isinstance(row["clip_id"], str) else row["clip_id"].hex()
    path = Path(root) / row["shard"]
    payload = read_payload(path, row["offset"], row["length"], row["crc32"], clip_id=name)
    try:
        frames_THWC = payload_frames(payload, width=width, height=height)
    except ValueError as error:
        raise CorruptPayload(f"shard {path}, clip {name}: {error}") from error
    if len(frames_THWC) != row["frame_count"]:
        wanted = row["frame_count"]
        raise CorruptPayload(
            f"shard {path}, clip {name}: {len(frames_THWC)} frames decode, not {wanted}"
        )
    return frames_THWC


class ClipStream:
    """An endless iterator of batches; `state_dict` after a step resumes behind that step.

    Frames are cropped at the centre to the aspect of width x height and resized by area averaging.
    `prefetch` batches are decoded ahead by `threads` threads; up to `cache_bytes` of decoded clips
    are kept, which suits small views. Close it, or use it as a context manager.
    """

    def __init__(
        self,
        view_path: Path,
        root: Path,
        *,
        cursor: Cursor,
        width: int,
        height: int,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
        threads: int = 1,
        cache_bytes: int = 0,
    ) -> None:
        self._clips, digest = open_view(view_path)
        if digest != cursor.view_digest:
            raise ValueError(
                f"{view_path}: view {digest[:12]}, but the cursor belongs to "
                f"{cursor.view_digest[:12]}; resume with the view that training began with"
            )
        self._root, self._cursor = root, cursor
        self._width, self._height = width, height
        self._slots = slots(cursor.global_batch, world_size, rank)
        self._prefetch = max(1, prefetch)
        self._pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="clips")
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._cache_bytes, self._cached_bytes, self._lock = cache_bytes, 0, Lock()
        cv2.setNumThreads(1)  # the threads are ours

    @classmethod
    def resume(
        cls, view_path: Path, root: Path, state: dict[str, Any], **settings: Any
    ) -> "ClipStream":
        """Continue from a `state_dict`; other settings as in the constructor."""
        return cls(view_path, root, cursor=Cursor.from_state(state), **settings)

    def __enter__(self) -> "ClipStream":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __len__(self) -> int:
        """Number of clips in the view."""
        return self._clips.num_rows

    def state_dict(self) -> dict[str, Any]:
        """Return the cursor behind the last batch that was handed out."""
        return self._cursor.state_dict()

    def __iter__(self) -> Iterator[Batch]:
        ahead: deque[tuple[list[int], list[int], list[Future[np.ndarray]]]] = deque()
        start = self._cursor.samples_consumed
        while True:
            while len(ahead) < self._prefetch:
                ahead.append(self._submit(start))
                start += self._cursor.global_batch
            positions, indices, futures = ahead.popleft()
            batch = self._batch(positions, indices, [future.result() for future in futures])
            done = self._cursor.samples_consumed + self._cursor.global_batch
            self._cursor = replace(self._cursor, samples_consumed=done)
            yield batch

    def _submit(self, start: int) -> tuple[list[int], list[int], list[Future[np.ndarray]]]:
        positions = [start + slot for slot in self._slots]
        order = self._cursor.indices(np.array(positions, np.int64), self._clips.num_rows)
        indices = [int(index) for index in order]
        return positions, indices, [self._pool.submit(self._clip, index) for index in indices]

    def _batch(self, positions: list[int], indices: list[int], clips: list[np.ndarray]) -> Batch:
        taken = pa.array(indices, pa.int64())
        rows = self._clips.select(["clip_id", "caption"]).take(taken).to_pylist()
        # A rank may have no slot of a small global batch: it still takes part in the step.
        empty = np.empty((0, 0, self._height, self._width, 3), np.uint8)
        frames_BTHWC = np.stack(clips) if clips else empty
        return Batch(
            clip_ids=[row["clip_id"].hex() for row in rows],
            frames_BTHWC=torch.from_numpy(frames_BTHWC),
            captions=[row["caption"] for row in rows],
            positions=positions,
        )

    def _clip(self, index: int) -> np.ndarray:
        with self._lock:
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
        row = self._clips.slice(index, 1).to_pylist()[0]
        frames_THWC = read_clip(self._root, row, self._width, self._height)
        if self._cache_bytes:
            self._remember(index, frames_THWC)
        return frames_THWC

    def _remember(self, index: int, frames_THWC: np.ndarray) -> None:
        with self._lock:
            if index in self._cache:
                return
            self._cache[index] = frames_THWC
            self._cached_bytes += frames_THWC.nbytes
            while self._cached_bytes > self._cache_bytes and self._cache:
                _index, dropped = self._cache.popitem(last=False)
                self._cached_bytes -= dropped.nbytes
