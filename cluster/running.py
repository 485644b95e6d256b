"""Who works in a run folder at this moment: a file that names the process, under a lock that the kernel gives up with it.

For those who look or want to stop the run; it keeps nobody out. A process id alone would lie: ids are reused, and differ
between machines that share the folder.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

NAME = "running.json"
# What Ray sets in the drivers of its jobs alone.
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
TRIES, AGAIN_S = 20, 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """The process at work in a folder; `job` is the name of the Ray job that it is the driver of, or "" for none."""

    pid: int
    host: str
    job: str
    begun_s: float

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine, where its id means it."""
        return self.host == socket.gethostname()


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Say for the time of a with block that this process works in `folder`; where there are no locks nothing is said."""
    with contextlib.ExitStack() as exits:
        with contextlib.suppress(OSError):
            file = exits.enter_context((folder / NAME).open("a+", encoding="utf-8"))
            if _lock(file):
                told = {"pid": os.getpid(), "host": socket.gethostname(), "job": job_name()}
                file.truncate(0)
                file.write(json.dumps({**told, "begun_s": round(time.time(), 3)}) + "\n")
                file.flush()
                exits.callback((folder / NAME).unlink, missing_ok=True)
        yield


def worker(folder: Path) -> Worker | None:
    """Return who works in `folder`, or None for nobody."""
    try:
        with (folder / NAME).open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return Worker(**json.loads(file.read()))
    except (OSError, ValueError, TypeError):
        return None
    return None


def job_name() -> str:
    """Return the name of the Ray job whose driver this process is, or "" for none."""
    with contextlib.suppress(ValueError, AttributeError):
        settings = json.loads(os.environ.get(JOB, "{}"))
        return str((settings.get("metadata") or {}).get("job_submission_id", ""))
    return ""


def _lock(file: IO[str]) -> bool:
    """Take the lock; whoever only looks holds it for an instant."""
    for _ in range(TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(AGAIN_S)
        else:
            return True
    return False
