"""Filling batches in the background: frames through a decoder, or stored latents as they are.

Letters: B batch, T frames, H height, W width.
"""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from ingest.augment import Frames, cut_of
from ingest.decode_job import Job, Pair
from ingest.decoders import Decoders
from ingest.reader import LATENT_KINDS, ViewReader, decode, latent_shape

NOTHING = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class Latents:
    """Read stored latents or tokens instead of frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """How reading is done; what is read depends on none of it.

    Args:
        decode_workers: processes that decode; 0 for threads of this process.
        threads: threads that read, and decode where there are no such processes.
        prefetch: batches that are read ahead.
        cache_bytes: decoded clips that are kept, for small views; unused when draws are random.
        max_bad_clips: how many different clips may be corrupt before reading ends with an error;
            each stream counts for itself.
    """

    decode_workers: int = 0
    threads: int = 1
    prefetch: int = 2
    cache_bytes: int = 0
    max_bad_clips: int = 8

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if min(self.decode_workers, self.cache_bytes, self.max_bad_clips) < 0:
            raise ValueError("decode_workers, cache_bytes and max_bad_clips: at least 0")
        if min(self.threads, self.prefetch) < 1:
            raise ValueError("threads and prefetch: at least 1")


class Clip(NamedTuple):
    """A clip of a mixture: number of its part, index in the view."""

    part: int
    at: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrays:
    """What a batch is read into; what is not read has no elements."""

    high_BTHWC: np.ndarray
    low_BTHWC: np.ndarray
    latents: np.ndarray


class Reads(Protocol):
    """A way to fill batches, used by one thread."""

    def arrays(self, count: int) -> Arrays:
        """Return arrays for so many clips."""
        ...

    def start(self, clip: Clip, epoch: int, arrays: Arrays, slot: int) -> Future[None]:
        """Begin to read a clip into a slot of the arrays."""
        ...

    def finish(self, clip: Clip, arrays: Arrays, slot: int, started: Future[None]) -> None:
        """Wait until the clip is there; raises what reading it raised."""
        ...

    def pids(self) -> list[int]:
        """Return the process ids of decode workers that are ready."""
        ...

    def close(self) -> None:
        """End what works in the background."""
        ...


def open_reads(
    readers: Sequence[ViewReader], read: Frames | Latents, *, seed: int, work: Work
) -> Reads:
    """Return what reads frames or latents; raises ValueError when clips cannot give them."""
    if isinstance(read, Frames):
        return FrameReads(readers, read, seed=seed, work=work)
    return LatentReads(readers, work=work)


class FrameReads:
    """Decodes what `frames` takes of a clip, in threads or worker processes, with a cache."""

    def __init__(
        self, readers: Sequence[ViewReader], frames: Frames, *, seed: int, work: Work
    ) -> None:
        self._readers, self._frames, self._seed = readers, frames, seed
        self._shapes = frames.shapes(_frame_count(readers, frames))
        self._cache = _Cache(0 if frames.is_random else work.cache_bytes)
        if work.decode_workers:
            self._doer = Decoders(work.decode_workers, shapes=self._shapes)
        else:
            self._doer = _Threads(work.threads)

    def arrays(self, count: int) -> Arrays:
        """Return arrays for so many clips."""
        high, low = (np.empty((count, *shape), np.uint8) for shape in self._shapes)
        return Arrays(high_BTHWC=high, low_BTHWC=low, latents=NOTHING)

    def start(self, clip: Clip, epoch: int, arrays: Arrays, slot: int) -> Future[None]:
        """Begin to read a clip into a slot of the arrays."""
        out = arrays.high_BTHWC[slot], arrays.low_BTHWC[slot]
        if self._cache.fill(clip, out):
            done: Future[None] = Future()
            done.set_result(None)
            return done
        reader = self._readers[clip.part]
        row = reader.row(clip.at)
        cut = cut_of(row, self._frames, seed=self._seed, epoch=epoch)
        return self._doer.submit(Job(root=reader.root, row=row, cut=cut, out=out))

    def finish(self, clip: Clip, arrays: Arrays, slot: int, started: Future[None]) -> None:
        """Wait until the clip is there; raises what reading it raised."""
        started.result()
        self._cache.keep(clip, (arrays.high_BTHWC[slot], arrays.low_BTHWC[slot]))

    def pids(self) -> list[int]:
        """Return the process ids of decode workers that are ready."""
        return self._doer.pids()

    def close(self) -> None:
        """End what works in the background."""
        self._doer.close()


class LatentReads:
    """Copies stored latents or tokens, all of one shape and kind."""

    def __init__(self, readers: Sequence[ViewReader], *, work: Work) -> None:
        self._readers = readers
        self._shape, self._kind = _one_shape(readers)
        self._pool = ThreadPoolExecutor(work.threads, thread_name_prefix="latents")

    def arrays(self, count: int) -> Arrays:
        """Return arrays for so many clips."""
        latents = np.empty((count, *self._shape), self._kind)
        return Arrays(high_BTHWC=NOTHING, low_BTHWC=NOTHING, latents=latents)

    def start(self, clip: Clip, epoch: int, arrays: Arrays, slot: int) -> Future[None]:  # noqa: ARG002
        """Begin to read a clip into a slot of the arrays."""
        return self._pool.submit(self._copy, clip, arrays.latents[slot : slot + 1])

    def _copy(self, clip: Clip, out: np.ndarray) -> None:
        out[0] = self._readers[clip.part].latents(clip.at)

    def finish(self, clip: Clip, arrays: Arrays, slot: int, started: Future[None]) -> None:  # noqa: ARG002
        """Wait until the clip is there; raises what reading it raised."""
        started.result()

    def pids(self) -> list[int]:
        """Return no process: there is none."""
        return []

    def close(self) -> None:
        """End what works in the background."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class _Threads:
    """Decodes in threads of this process."""

    def __init__(self, count: int) -> None:
        import cv2  # noqa: PLC0415  heavy, and of no use where nothing is decoded here

        cv2.setNumThreads(1)  # the threads are ours
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="clips")

    def submit(self, job: Job) -> Future[None]:
        return self._pool.submit(decode, job.root, job.row, job.cut, *job.out)

    def pids(self) -> list[int]:
        return []

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class _Cache:
    """The decoded clips used last, up to so many bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._kept: OrderedDict[Clip, Pair] = OrderedDict()

    def fill(self, clip: Clip, out: Pair) -> bool:
        if clip not in self._kept:
            return False
        self._kept.move_to_end(clip)
        for target, kept in zip(out, self._kept[clip], strict=True):
            np.copyto(target, kept)
        return True

    def keep(self, clip: Clip, made: Pair) -> None:
        size = made[0].nbytes + made[1].nbytes
        if clip in self._kept or size > self._max_bytes:
            return
        self._kept[clip] = made[0].copy(), made[1].copy()
        self._bytes += size
        while self._bytes > self._max_bytes:
            _clip, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped[0].nbytes + dropped[1].nbytes


def _frame_count(readers: Sequence[ViewReader], frames: Frames) -> int:
    """Return a number of frames that stands for all clips; raises ValueError naming one."""
    counts = [reader.numbers("frame_count") for reader in readers]
    least = min(int(own.min()) for own in counts)
    part = next(part for part, own in enumerate(counts) if own.min() == least)
    name = readers[part].row(int(counts[part].argmin()))["clip_id"]
    most = max(int(own.max()) for own in counts)
    if not frames.frames and most != least:
        raise ValueError(
            f"clips have {least} (clip {name}) to {most} frames, which make no batch; "
            "set how many frames are wanted"
        )
    try:
        frames.count(least)
    except ValueError as error:
        raise ValueError(f"clip {name}: {error}") from error
    return least


def _one_shape(readers: Sequence[ViewReader]) -> tuple[tuple[int, ...], "np.dtype[Any]"]:
    """Return shape and kind of all latents; raises ValueError naming a clip that differs."""
    wanted = ""
    for reader in readers:
        for index in range(len(reader)):
            row = reader.latent_row(index)
            found = f"{row['payload_kind']} {row['shape']}"
            wanted = wanted or found
            if found != wanted:
                raise ValueError(
                    f"clip {row['clip_id']}: its latents are {found}, others are {wanted}; "
                    "select clips whose latents are alike"
                )
    row = readers[0].latent_row(0)
    return latent_shape(row), LATENT_KINDS[row["payload_kind"]]
