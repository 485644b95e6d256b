"""Whether the embedded session's raylet lives: without it Ray answers nothing, and says so only after minutes."""

import os

import psutil


class RayletLost(ConnectionError):
    """The process that schedules this machine's work is gone; what was committed stays."""


class _Watch:
    """The raylet that this process started, if any."""

    def __init__(self) -> None:
        self.process: psutil.Process | None = None


_watch = _Watch()


def watch() -> None:
    """Remember the raylet that this process has just started; nothing when none was (a remote cluster's are not ours)."""
    own = psutil.Process(os.getpid()).children()
    _watch.process = next((child for child in own if _is_raylet(child)), None)


def forget() -> None:
    """Stop watching: the session is being closed."""
    _watch.process = None


def lost() -> bool:
    """Return whether the watched raylet has died."""
    process = _watch.process
    if process is None:
        return False
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def check() -> None:
    """Raise RayletLost when the watched raylet has died."""
    if lost():
        raise RayletLost(
            "Ray's own process on this machine (raylet) has died, for example because memory ran out; "
            "what is committed stays; next: the same command again continues"
        )


def _is_raylet(process: psutil.Process) -> bool:
    try:
        return process.name() == "raylet"
    except psutil.Error:
        return False
