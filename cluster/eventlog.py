"""What happened, as it happens: a log of one JSON object a line, readable without anything of Ray."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]
Take = Callable[[Event], None]


class EventLog:
    """An append-only file of events; a torn last line of a killed writer is ended before the next event."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._takers: list[Take] = []
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._torn = path.exists() and not _ends_whole(path)

    def subscribe(self, take: Take) -> None:
        """Hand every event from now on to `take` as well."""
        self._takers.append(take)

    def emit(self, /, *, verb: str, event: str, **fields: Any) -> None:
        """Append one event, with the time in UNIX seconds; raises OSError when the disk is full."""
        row = {"time": round(time.time(), 3), "verb": verb, "event": event, **fields}
        line = json.dumps(row, ensure_ascii=False, default=str) + "\n"
        with self._lock:
            mend, self._torn = self._torn, True  # until it is all there
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n" + line if mend else line)
            self._torn = False
        for take in self._takers:
            take(row)


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a log, skipping lines that a kill left torn."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    yield event


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:
            return True
        file.seek(-1, 2)
        return file.read(1) == b"\n"
