"""What is fed to a child arrives whole; one that dies or hangs neither blocks nor outlives the call."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ingest import child

DATA = os.urandom(1 << 16) * 80  # more than any pipe holds


def python(code):
    return [sys.executable, "-c", code]


def test_all_bytes_arrive(tmp_path):
    told = tmp_path / "told"
    with told.open("wb") as out:
        code = f"import hashlib, os, sys; os.write({out.fileno()}, hashlib.sha256(sys.stdin.buffer.read()).digest())"
        assert child.feed(python(code), DATA, pass_fds=(out.fileno(),), limit_s=30) == (0, "")
    assert told.read_bytes() == hashlib.sha256(DATA).digest()


def test_one_that_dies_early_says_why():
    code = "import sys; sys.stdin.buffer.read(10); sys.exit('enough')"
    assert child.feed(python(code), DATA, pass_fds=(), limit_s=30) == (1, "enough\n")


def test_one_that_hangs_is_ended(tmp_path):
    threads, begin = threading.active_count(), time.monotonic()
    code = f"import os, time; open(r'{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(60)"
    with pytest.raises(subprocess.TimeoutExpired):
        child.feed(python(code), DATA, pass_fds=(), limit_s=2)
    assert time.monotonic() - begin < 30
    assert threading.active_count() == threads
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_one_that_cannot_be_started_leaves_no_pipe_open():
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(FileNotFoundError):
        child.feed(["/no/such/ffmpeg"], DATA, pass_fds=(), limit_s=2)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
