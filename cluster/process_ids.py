"""A process that is known again later: by its id and the moment it started, because ids are used again.

A node of ours begins a session (setsid) of its own, and everything that Ray starts in it stays in that session, also when its
parents were killed; Ray's agents overwrite their command line and environment, so nothing else tells whose they are.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
POLL_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessId:
    """A process of one boot of this machine; `started` counts clock ticks since then."""

    pid: int
    started: int
    session: int
    state: str = "R"

    @property
    def ended(self) -> bool:
        """Return whether nothing is left of it but its exit status."""
        return self.state in {"Z", "X"}


def boot() -> str:
    """Return the name of this boot of the machine: ids of another one mean nothing."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def parse(line: str) -> ProcessId:
    """Return the process that a line of /proc/PID/stat describes; ValueError for another text."""
    head, closing, tail = line.rpartition(")")
    fields = tail.split()
    if not closing or len(fields) < 20:
        raise ValueError(f"no line of /proc/PID/stat: {line[:40]!r}")
    return ProcessId(
        pid=int(head.split()[0]), state=fields[0], session=int(fields[3]), started=int(fields[19])
    )


def look(pid: int) -> ProcessId | None:
    """Return the process that has this id now, if any."""
    try:
        return parse((PROC / str(pid) / "stat").read_text())
    except (OSError, ValueError):
        return None


def alive(process: ProcessId) -> bool:
    """Return whether this very process runs."""
    now = look(process.pid)
    return now is not None and not now.ended and now.started == process.started


def members(leader: ProcessId) -> list[ProcessId]:
    """Return the living processes of the session that `leader` began, itself included.

    An id is not given to another process while a session has it; so if it is somebody else's now, none of ours lives.
    """
    now = look(leader.pid)
    if now is not None and now.started != leader.started:
        return []
    own = (p for p in everybody() if p.session == leader.pid and p.started >= leader.started)
    return [process for process in own if not process.ended]


def end(leaders: Iterable[ProcessId], *, patience_s: float) -> None:
    """End the sessions of `leaders`: SIGTERM to the leaders, then to what is left, then SIGKILL; TimeoutError if one stays."""
    leaders = list(leaders)
    steps = (
        (signal.SIGTERM, lambda: [leader for leader in leaders if alive(leader)]),
        (signal.SIGTERM, lambda: _members(leaders)),
        (signal.SIGKILL, lambda: _members(leaders)),
    )
    for number, whom in steps:
        for process in whom():
            _send(process, number)
        if _gone(whom, patience_s) and not _members(leaders):
            return
    left = ", ".join(str(process.pid) for process in _members(leaders))
    if left:
        raise TimeoutError(f"processes {left} did not end; next: the same command again")


def _members(leaders: list[ProcessId]) -> list[ProcessId]:
    return [process for leader in leaders for process in members(leader)]


def _gone(whom: Callable[[], list[ProcessId]], patience_s: float) -> bool:
    last_s = time.monotonic() + patience_s
    while whom():
        if time.monotonic() > last_s:
            return False
        time.sleep(POLL_S)
    return True


def _send(process: ProcessId, number: signal.Signals) -> None:
    # Looked at again right before: the time in which an id could pass to another process is microseconds.
    if alive(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def everybody() -> Iterator[ProcessId]:
    """Yield every process of this machine that may be looked at."""
    for path in PROC.iterdir():
        if path.name.isdigit() and (found := look(int(path.name))):
            yield found
