"""Who works in a folder: said while a process lives, and not a moment longer."""

import os
import subprocess
import sys
from pathlib import Path

from cluster import running

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys
from pathlib import Path
from cluster import running
with running.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder, **variables):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    env = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], env=env, text=True, **pipes
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_process_is_named_while_it_works(tmp_path):
    assert running.worker(tmp_path) is None
    with holder(tmp_path) as process:
        found = running.worker(tmp_path)
        assert (found.pid, found.is_here, found.job) == (process.pid, True, "")
        with running.held(tmp_path):  # a second one in the folder takes nothing from the first
            assert running.worker(tmp_path).pid == process.pid
    assert running.worker(tmp_path) is None
    assert not (tmp_path / running.NAME).exists()


def test_one_that_was_killed_is_not_named(tmp_path):
    job = '{"metadata": {"job_submission_id": "train-1"}}'
    with holder(tmp_path, **{running.JOB: job}) as process:
        assert running.worker(tmp_path).job == "train-1"
        process.kill()
    assert (tmp_path / running.NAME).exists()
    assert running.worker(tmp_path) is None
    with running.held(tmp_path):
        assert running.worker(tmp_path).pid == os.getpid()


def test_a_folder_that_is_not_there_holds_nobody_up(tmp_path):
    with running.held(tmp_path / "gone"):
        assert running.worker(tmp_path / "gone") is None
