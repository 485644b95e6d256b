"""ffmpeg as a child process: which one, and within which limits of memory and processor time."""

import contextlib
import fcntl
import os
import resource
import subprocess
import threading
from collections.abc import Sequence
from functools import cache
from typing import IO

import imageio_ffmpeg

from ingest.clip import Prep
from ingest.sources import SourceError

GLOBAL = ("-hide_banner", "-nostdin", "-nostats", "-loglevel", "repeat+level+info")
PROBE_TIMEOUT_S = 120.0
PIPE_BYTES = 1 << 20
END_BYTES, LINE_BYTES = 1 << 18, 1 << 16


@cache
def executable() -> str:
    """Path of the ffmpeg binary: the bundled one, or the one named by IMAGEIO_FFMPEG_EXE."""
    return imageio_ffmpeg.get_ffmpeg_exe()


@cache
def version() -> str:
    """First line that ffmpeg says about itself."""
    done = subprocess.run(
        [executable(), "-version"], capture_output=True, check=True, timeout=PROBE_TIMEOUT_S
    )
    return done.stdout.decode().splitlines()[0]


def limit(pid: int, prep: Prep) -> None:
    """Bound memory and processor time of a running child."""
    cpu_s = int(prep.decode_timeout_s) + 1
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_AS, (prep.memory_bytes, prep.memory_bytes))
        resource.prlimit(pid, resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))


def start(command: list[str], prep: Prep) -> "subprocess.Popen[bytes]":
    """Start ffmpeg under the limits of `prep`, with its output and its log in pipes."""
    # A session of its own: Ctrl-C at the terminal lets the unit in flight finish.
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    limit(child.pid, prep)
    return child


def ask(command: list[str], prep: Prep, *, max_bytes: int = 2 * END_BYTES) -> tuple[bytes, bytes]:
    """Run ffmpeg and return its output and its log; raises SourceError when it takes too long.

    Of the output the first `max_bytes` are kept. Of a long log it is both ends, and what is between
    that is no complaint (the streams are told after the first): a file can make ffmpeg say many
    times its size.
    """
    limit_s = min(PROBE_TIMEOUT_S, prep.decode_timeout_s)
    out, log = _Output(max_bytes), _Log()
    with start(command, prep) as child:
        threads = [
            threading.Thread(target=drain.read, args=(pipe,), daemon=True)
            for drain, pipe in zip((out, log), (child.stdout, child.stderr), strict=True)
            if pipe
        ]
        for thread in threads:
            thread.start()
        try:
            child.wait(timeout=limit_s)
        except subprocess.TimeoutExpired as slow:
            why = f"no first frame within {limit_s:g} s"
            if limit_s < PROBE_TIMEOUT_S:
                why = f"no first frame within decode_timeout_s={limit_s:g}"
            raise SourceError("probe", "Timeout", why) from slow
        finally:
            child.kill()
            for thread in threads:
                thread.join()
    return out.kept, log.kept


class _Output:
    """Reads a pipe to its end, so that its writer never waits, and keeps how it begins."""

    def __init__(self, most: int) -> None:
        self._most, self._begin = most, bytearray()

    def read(self, pipe: IO[bytes]) -> None:
        while piece := os.read(pipe.fileno(), PIPE_BYTES):
            self._begin += piece[: self._most - len(self._begin)]

    @property
    def kept(self) -> bytes:
        return bytes(self._begin)


class _Log:
    """Reads a log to its end and keeps so much of it that it never fills memory."""

    def __init__(self) -> None:
        self._begin, self._facts, self._end = bytearray(), bytearray(), bytearray()

    def read(self, pipe: IO[bytes]) -> None:
        while line := pipe.readline(LINE_BYTES):
            if len(self._begin) < END_BYTES:
                self._begin += line
            elif b"[info]" in line and len(self._facts) < END_BYTES:
                self._facts += line
            else:
                self._end += line
                if len(self._end) > 2 * END_BYTES:
                    del self._end[:-END_BYTES]

    @property
    def kept(self) -> bytes:
        return b"".join((self._begin, self._facts, self._end[-END_BYTES:]))


def widen(pipe: int) -> None:
    """Give a pipe room for some frames, so that both ends work on in large steps."""
    with contextlib.suppress(PermissionError):  # past the user's share of pipe memory
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def feed(
    command: list[str], data: bytes | memoryview, *, pass_fds: Sequence[int], limit_s: float
) -> tuple[int, str]:
    """Run ffmpeg on bytes for its standard input; return its exit code and its log.

    Not `communicate`, which gives a child its input in pieces of 4 KiB: that took a quarter of what
    encoding a clip did. Raises TimeoutExpired.
    """
    source, sink = os.pipe()
    widen(sink)
    try:
        running = subprocess.Popen(
            command,
            stdin=source,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except BaseException:
        os.close(sink)
        raise
    finally:
        os.close(source)
    writer = threading.Thread(target=_write, args=(sink, data), daemon=True)
    writer.start()
    with running:
        try:
            log = running.communicate(timeout=limit_s)[1]
        finally:
            running.kill()  # without it the writer would wait for ever
            writer.join()
    return running.returncode, log.decode("utf-8", "replace")


def _write(sink: int, data: bytes | memoryview) -> None:
    left = memoryview(data).cast("B")
    try:
        while left:
            left = left[os.write(sink, left) :]
    except BrokenPipeError:
        pass  # the child has ended, and says why
    finally:
        os.close(sink)
