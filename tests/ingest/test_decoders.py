import os
import signal
import subprocess
import sys
import time
from concurrent.futures import wait
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from ingest import decoders as decoders_module
from ingest.augment import Frames, cut_of
from ingest.decode_job import DecodersDown, Job
from ingest.decoders import Decoders
from ingest.reader import ViewReader
from ingest.shards import CorruptPayload
from tests.ingest.made_views import make

CHECKOUT = Path(__file__).parents[2]
WANTED = Frames(width=12, height=8, frames=3, start="random", flip_share=0.5, low=2)
PARENT = """
import sys, time
from ingest.decoders import Decoders
decoders = Decoders(2, shapes=((1, 2, 2, 3), (0, 0, 0, 3)))
while len(decoders.pids()) < 2:
    time.sleep(0.01)
print(*decoders.pids(), flush=True)
time.sleep(60)
"""


def jobs_of(reader, frames=WANTED, *, epoch=0, indices=None):
    jobs = []
    for index in range(len(reader)) if indices is None else indices:
        row = reader.row(index)
        high, low = (np.zeros(shape, np.uint8) for shape in frames.shapes(row["frame_count"]))
        cut = cut_of(row, frames, seed=7, epoch=epoch)
        jobs.append(Job(root=reader.root, row=row, cut=cut, out=(high, low)))
    return jobs


def check(reader, jobs, *, epoch=0):
    for index, job in enumerate(jobs):
        job.done.result(60)
        wanted = reader.frames(index, WANTED, seed=7, epoch=epoch)
        assert np.array_equal(job.out[0], wanted[0])
        assert np.array_equal(job.out[1], wanted[1])


def until(what, *, limit_s=30.0):
    ends = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < ends
        time.sleep(0.005)


def alive(pid):
    with suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("view"), clips=40)


@pytest.fixture(scope="module")
def reader(made):
    return ViewReader(made.root, made.view)


def test_workers_give_what_this_process_gives_though_they_are_killed(reader):
    with Decoders(2, shapes=WANTED.shapes(6)) as decoders:
        first = jobs_of(reader)
        for job in first:
            decoders.submit(job)
        check(reader, first)
        before = decoders.pids()
        second = jobs_of(reader, epoch=1)
        for job in second:
            decoders.submit(job)
        os.kill(before[0], signal.SIGKILL)
        check(reader, second, epoch=1)
        until(lambda: len(decoders.pids()) == 2)
        assert before[0] not in decoders.pids()
        for pid in decoders.pids():
            os.kill(pid, signal.SIGKILL)
        third = jobs_of(reader)
        for job in third:
            decoders.submit(job)
        check(reader, third)
        until(lambda: len(decoders.pids()) == 2)
        last = decoders.pids()
    assert not any(map(alive, [*before, *last]))
    with pytest.raises(DecodersDown, match="closed"):
        decoders.submit(third[0])


def test_what_cannot_be_read_is_named_and_nothing_else_suffers(tmp_path):
    made = make(tmp_path, clips=8, shards=4)
    bad = made.spoil(5)[0]
    gone = made.rows[2]["shard"]
    (tmp_path / gone).unlink()
    reader = ViewReader(tmp_path, made.view)
    fine = [i for i in range(8) if i != 5 and made.rows[i]["shard"] != gone]
    with Decoders(1, shapes=WANTED.shapes(6)) as decoders:
        jobs = jobs_of(reader)
        for job in jobs:
            decoders.submit(job)
        with pytest.raises(CorruptPayload, match=f"{bad}: checksum"):
            jobs[5].done.result(60)
        with pytest.raises(FileNotFoundError, match=gone):
            jobs[2].done.result(60)
        assert len(fine) >= 5
        for index in fine:
            jobs[index].done.result(60)
            assert np.array_equal(jobs[index].out[0], reader.frames(index, WANTED, seed=7)[0])
        assert len(decoders.pids()) == 1


def end_each(decoders, job, how, *, times):
    """Send a signal to the worker that has the job, as often as asked, while it is not done."""
    sent = 0
    while sent < times and not job.done.done():
        for pid in decoders.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, how)
            until(lambda pid=pid: pid not in decoders.pids())
            sent += 1
    return sent


def test_a_clip_on_which_three_workers_crash_is_corrupt_and_kills_do_not_count(
    tmp_path, monkeypatch
):
    slow = make(tmp_path, clips=2, frames=100, shards=1)
    reader = ViewReader(tmp_path, slow.view)
    frames = Frames(width=720, height=480)  # takes long enough to be ended in the middle of it
    with Decoders(1, shapes=frames.shapes(100)) as decoders:
        fine, deadly = jobs_of(reader, frames)
        decoders.submit(fine)
        assert end_each(decoders, fine, signal.SIGKILL, times=3) == 3
        fine.done.result(60)
        assert np.array_equal(fine.out[0], reader.frames(0, frames)[0])
        decoders.submit(deadly)
        assert end_each(decoders, deadly, signal.SIGSEGV, times=9) == 3
        with pytest.raises(CorruptPayload, match=f"{slow.ids[1]}: the decoder died on it"):
            deadly.done.result()
        monkeypatch.setattr(decoders_module, "MAX_KILLS", 1)
        again = jobs_of(reader, frames, indices=[1])[0]
        decoders.submit(again)
        end_each(decoders, again, signal.SIGKILL, times=9)
        with pytest.raises(DecodersDown, match=f"{slow.ids[1]}: .* killed 1 times.*memory"):
            again.done.result(60)
        last = jobs_of(reader, frames, indices=[1])[0]
        decoders.submit(last).result(60)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_when_their_parent_does(how):
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(alive, pids))
        parent.send_signal(how)
        parent.wait(10)
    until(lambda: not any(map(alive, pids)), limit_s=5.0)


def test_workers_that_cannot_start_are_told_of(reader, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Decoders(2, shapes=WANTED.shapes(6)) as decoders:
        jobs = jobs_of(reader, indices=[0, 1])
        decoders.submit(jobs[0])
        for job in jobs:
            with pytest.raises(DecodersDown, match=r"before they start \(exit 1\)"):
                job.done.result(30) if job is jobs[0] else decoders.submit(job).result(30)


def test_jobs_left_at_the_end_do_not_wait_for_ever(reader):
    decoders = Decoders(1, shapes=WANTED.shapes(6))
    jobs = jobs_of(reader)
    for job in jobs:
        decoders.submit(job)
    decoders.close()
    decoders.close()
    assert not wait([job.done for job in jobs], timeout=0).not_done
    with pytest.raises(ValueError, match="at least 1"):
        Decoders(0, shapes=WANTED.shapes(6))
