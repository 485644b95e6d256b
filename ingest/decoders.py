"""Decoding in worker processes, without torch and without names that could go stale.

Each worker is a fresh interpreter that answers requests, JSON lines over its standard streams, and
writes frames into memory it shares with its parent (a memfd that it inherits). It fetches the
payloads of waiting requests in threads, so that a far store's latency hides behind decoding. It
ends when the parent does, however that ends. A worker that dies is replaced and its requests are
repeated; a clip on which three crash is corrupt. Being killed from outside is no clip's fault.
"""

import json
import mmap
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from typing import Any

import numpy as np

from ingest.decode_job import QUEUED, SLOTS, DecodersDown, Job, Shapes, pair_in, stretch
from ingest.reader import named
from ingest.shards import CorruptPayload

MAX_DEATHS, MAX_KILLS = 3, 10
KILLED = -signal.SIGKILL, -signal.SIGTERM


class _Worker:
    """One decode process as its parent sees it."""

    def __init__(self, shapes: Shapes) -> None:
        self.jobs: dict[int, Job] = {}
        self.ready = False
        self._rest = b""
        slot = stretch(shapes)
        memory = os.memfd_create("clips")
        try:
            os.ftruncate(memory, SLOTS * slot)
            whole = np.frombuffer(mmap.mmap(memory, SLOTS * slot), np.uint8)
            self.process = _spawn(memory)
        finally:
            os.close(memory)
        self._slots = [pair_in(whole[k * slot :], shapes) for k in range(SLOTS)]
        setup = {"parent": os.getpid(), "memory": memory, "slot": slot, "shapes": shapes}
        self._tell(json.dumps(setup).encode() + b"\n")

    def fileno(self) -> int:
        """Return the descriptor of its answers."""
        assert self.process.stdout
        return self.process.stdout.fileno()

    def accepts(self, job: Job) -> bool:
        """Whether it may take a job; one that a worker died on is alone, to be sure whose fault."""
        suspect = bool(job.deaths) or any(other.deaths for other in self.jobs.values())
        return self.ready and len(self.jobs) < (1 if suspect else QUEUED)

    def give(self, number: int, job: Job) -> None:
        """Send a job."""
        self.jobs[number] = job
        self._tell(job.line(number))

    def _tell(self, line: bytes) -> None:
        assert self.process.stdin
        rest = memoryview(line)
        with suppress(BrokenPipeError):  # it died: its answers end, which is where it is noticed
            while rest:
                rest = rest[self.process.stdin.write(rest) :]

    def hear(self) -> list[dict[str, Any]] | None:
        """Return the answers that have come, None at the end of them."""
        data = os.read(self.fileno(), 1 << 16)
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def settle(self, answer: dict[str, Any]) -> None:
        """Take the frames out of shared memory, or the error out of the answer."""
        job = self.jobs.pop(answer["job"])
        if "slot" not in answer:
            job.done.set_exception(job.error(answer))
            return
        for out, made in zip(job.out, self._slots[answer["slot"]], strict=True):
            np.copyto(out, made)
        self._tell(json.dumps({"free": answer["slot"]}).encode() + b"\n")
        job.done.set_result(None)

    def end(self) -> None:
        """End it by force: it holds nothing that could be lost."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def _spawn(memory: int) -> "subprocess.Popen[bytes]":
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)  # noqa: PTH109  a string
    settings = {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"}
    code = "from ingest.decode_worker import main; main()"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        pass_fds=(memory,),
        env=os.environ | settings,
    )


class Decoders:
    """`num_workers` processes that decode clips of one shape; close it, or use it in a `with`.

    All that happens to workers happens in one thread, which lives as long as they do: the system
    ends such a child when the thread that made it ends.
    """

    def __init__(self, num_workers: int, *, shapes: Shapes) -> None:
        if num_workers < 1:
            raise ValueError(f"{num_workers} decode workers: at least 1")
        self._num_workers, self._shapes = num_workers, shapes
        self._new: deque[Job] = deque()
        self._waiting: deque[Job] = deque()
        self._workers: list[_Worker] = []
        self._numbers, self._stillborn, self._closing = count(1), 0, False
        self._failure: Exception | None = None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="decoders", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def submit(self, job: Job) -> Future[None]:
        """Queue a job; its future raises what reading it raised, or DecodersDown."""
        if self._closing:
            raise DecodersDown("the decode workers are closed")
        self._new.append(job)
        os.eventfd_write(self._wake, 1)
        return job.done

    def pids(self) -> list[int]:
        """Return the process ids of the workers that are ready."""
        return [worker.process.pid for worker in list(self._workers) if worker.ready]

    def close(self) -> None:
        """End the workers; jobs that are not done are cancelled or fail."""
        if self._closing:
            return
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._selector.close()
        os.close(self._wake)

    def _run(self) -> None:
        while not self._closing:
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001  it must reach those who wait
                self._failure = error
                self._stop(error)
        self._stop(DecodersDown("the decode workers were closed"))

    def _turn(self) -> None:
        while not self._failure and len(self._workers) < self._num_workers:
            self._workers.append(_Worker(self._shapes))
            self._selector.register(self._workers[-1], selectors.EVENT_READ)
        for key, _events in self._selector.select():
            if isinstance(key.fileobj, _Worker):
                self._listen(key.fileobj)
            else:
                os.eventfd_read(self._wake)
        if self._failure:
            raise self._failure
        while self._new:
            self._waiting.append(self._new.popleft())
        self._dispatch()

    def _dispatch(self) -> None:
        while self._waiting:
            job = self._waiting[0]
            free = [worker for worker in self._workers if worker.accepts(job)]
            if not free:
                return
            self._waiting.popleft()
            if job.done.running() or job.done.set_running_or_notify_cancel():
                min(free, key=lambda worker: len(worker.jobs)).give(next(self._numbers), job)

    def _listen(self, worker: _Worker) -> None:
        answers = worker.hear()
        if answers is None:
            self._bury(worker)
            return
        for answer in answers:
            if "ready" in answer:
                worker.ready, self._stillborn = True, 0
            else:
                worker.settle(answer)

    def _bury(self, worker: _Worker) -> None:
        """Take the jobs of a dead worker back; the first of them is what it died on."""
        self._selector.unregister(worker)
        self._workers.remove(worker)
        worker.end()
        if not worker.ready:
            self._stillborn += 1
            if self._stillborn >= MAX_DEATHS:
                code = worker.process.returncode
                raise DecodersDown(
                    f"decode workers end before they start (exit {code}); see what they wrote to "
                    "the standard error stream, or set decode_workers to 0"
                )
        jobs = list(worker.jobs.values())
        if jobs and self._blame(jobs[0], worker.process.returncode):
            jobs = jobs[1:]
        self._waiting.extendleft(reversed(jobs))

    def _blame(self, job: Job, code: int) -> bool:
        """Count the death of a worker on a job; whether that was the last one it may cost."""
        where = named(job.root, job.row)
        if code in KILLED:
            job.kills += 1
            if job.kills >= MAX_KILLS:
                why = f"decode workers were killed {job.kills} times; is there enough memory?"
                job.done.set_exception(DecodersDown(f"{where}: {why}"))
        else:
            job.deaths += 1
            if job.deaths >= MAX_DEATHS:
                job.done.set_exception(
                    CorruptPayload(f"{where}: the decoder died on it; restore it")
                )
        return job.done.done()

    def _stop(self, error: Exception) -> None:
        for worker in self._workers:
            self._selector.unregister(worker)
            worker.end()
            self._waiting.extend(worker.jobs.values())
        self._workers = []
        for queue in (self._waiting, self._new):
            while queue:
                done = queue.popleft().done
                if done.running() or done.set_running_or_notify_cancel():
                    done.set_exception(error)
