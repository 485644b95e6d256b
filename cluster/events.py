"""Events: one JSON object a line in the run's folder, and a board that Ray Train's workers post to.

The file is what survives; a viewer without a cluster reads it. The board carries events from workers to the driver, the only
one that writes, and carries the wish to stop back to them.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray

POST_TIMEOUT_S = 60.0


class EventLog:
    """Appends events to a file; each line is flushed, so that a kill loses none that was written."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._end_half_line()

    def emit(self, **fields: Any) -> None:
        """Append one event with the time (seconds since the epoch)."""
        line = json.dumps({"time": round(time.time(), 3), **fields}, ensure_ascii=False)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _end_half_line(self) -> None:
        """Drop what a killed writer left of its last line: a later reader wants whole lines only."""
        if not self._path.exists():
            return
        content = self._path.read_bytes()
        if content and not content.endswith(b"\n"):
            with self._path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)


class _Board:
    """The actor behind a Board."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._stop = False

    def post(self, event: dict[str, Any]) -> bool:
        self._events.append(event)
        return self._stop

    def drain(self, *, stop: bool) -> list[dict[str, Any]]:
        self._stop = self._stop or stop
        events, self._events = self._events, []
        return events


class Board:
    """Where workers post and the driver drains; `handle` travels to the workers."""

    def __init__(self) -> None:
        self.handle: Any = ray.remote(num_cpus=0)(_Board).remote()

    def drain(self, *, stop: bool) -> list[dict[str, Any]]:
        """Return what was posted since the last call, and tell the workers whether to stop."""
        return ray.get(self.handle.drain.remote(stop=stop), timeout=POST_TIMEOUT_S)

    def close(self) -> None:
        """End the actor."""
        ray.kill(self.handle)


@contextlib.contextmanager
def board() -> Iterator[Board]:
    """Open a board for the time of a with block."""
    opened = Board()
    try:
        yield opened
    finally:
        with contextlib.suppress(Exception):
            opened.close()


def post(handle: Any, event: Mapping[str, Any]) -> bool:
    """Post from a worker; returns whether a stop was asked for."""
    return bool(ray.get(handle.post.remote(dict(event)), timeout=POST_TIMEOUT_S))
