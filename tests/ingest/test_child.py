"""What is fed to a child arrives whole; one that dies or hangs neither blocks nor outlives the call."""

import hashlib
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from ingest import child, ffmpeg
from ingest.clip import Prep
from ingest.sources import SourceError

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


def test_of_a_long_log_the_ends_and_facts_are_kept_and_of_the_output_the_beginning():
    """38 MiB of each, and neither fills memory."""
    code = (
        "import sys\nfor name in ('stdout', 'stderr'):\n  pipe = getattr(sys, name).buffer\n"
        "  pipe.write(b'begin')\n  for _ in range(6): pipe.write(b'[error] no\\n' * 95325)\n"
        "  pipe.write(b'[info] a fact\\n')\n"
        "  for _ in range(32): pipe.write(bytes(1 << 20))\n  pipe.write(b'end')"
    )
    tracemalloc.start()
    try:
        out, log = child.ask(python(code), Prep(), max_bytes=16)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert out == b"begin[error] no\n"
    assert log.startswith(b"begin[error] no\n")
    assert b"no\n[info] a fact\n" in log
    assert log.endswith(bytes(1 << 17) + b"end")
    assert len(log) < 3 * child.END_BYTES
    assert peak < 8 << 20


def test_a_video_behind_more_complaints_than_are_kept_is_still_one(studio):
    """What ffmpeg says of the streams comes after all that it says while it looks for them."""
    path, broken = studio.folder / "complains.mp4", studio.folder / "complains-more.mp4"
    source = ("-f", "lavfi", "-i", "color=gray:s=64x64:r=1000:d=20", "-pix_fmt", "yuv420p")
    studio.run(*source, "-c:v", "libx264", "-preset", "ultrafast", "-threads", "1", "-g", "9", path)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"mdat") + 4
    size = int.from_bytes(raw[at - 8 : at - 4], "big") - 8
    spoilt = size * 9 // 10
    raw[at : at + spoilt] = b"\xff" * spoilt
    broken.write_bytes(raw)
    info = ffmpeg.probe(str(broken), Prep())
    assert (info.stream_index, info.width, info.duration_s) == (0, 64, 20)


def test_a_short_log_is_whole_and_a_child_that_hangs_is_ended(tmp_path):
    both = "import sys; print('out'); print('log', file=sys.stderr)"
    assert child.ask(python(both), Prep()) == (b"out\n", b"log\n")
    threads = threading.active_count()
    code = f"import os, time; open(r'{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(60)"
    with pytest.raises(SourceError, match="Timeout"):
        child.ask(python(code), Prep(decode_timeout_s=1.0))
    assert threading.active_count() == threads
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
