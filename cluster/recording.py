"""A run on record: what is said about it goes to its spool at once and from there, in batches, to a store.

The store is whatever answers `open` and `send`; the records are plain data, so that a later process can send them.
"""

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from cluster.spool import Record, Spool, flat, without_secrets

Status = Literal["FINISHED", "FAILED", "KILLED"]
Warn = Callable[[str], None]
LOCAL = "local-"
END_TIMEOUT_S, SLOW_TIMEOUT_S = 5.0, 30.0  # for a store that is away, and for one that is slow
RECORDS_A_PORTION = 200
# The store understood and said no; sending again would not help. Everything else means that it is away.
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST")


class Store(Protocol):
    """Where records end; raises whatever it likes when it is away."""

    def open(self, opening: Record, run_id: str) -> str:
        """Return the store's id of the run, made when it is not there."""
        ...

    def send(self, run_id: str, kind: str, records: Sequence[Record], *, again: bool) -> None:
        """Write records of one kind; `again` when some of them may be there already."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A run in the store: its id, name and tags."""

    id: str
    name: str
    tags: Mapping[str, str]


class Run:
    """One run on record; every call returns at once."""

    def __init__(
        self,
        spool: Spool,
        *,
        hurry: Callable[[], None],
        fail: Callable[[BaseException], None],
        away: Callable[[], bool],
    ) -> None:
        self.id = spool.run_id
        self.stored_id = "" if self.id.startswith(LOCAL) else self.id
        self.spool = spool
        self.ended = False
        # Whether the store may know some of the records already.
        self.again = bool(spool.waiting())
        self._hurry, self._fail, self._away = hurry, fail, away
        self._closed = threading.Event()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at a step; the same number at the same step is recorded once."""
        values = {name: float(value) for name, value in metrics.items()}
        self.record({"do": "metrics", "time_ms": now_ms(), "step": step, "values": values})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, replacing those of the same name."""
        if tags:
            self.record({"do": "tags", "values": flat(tags)})

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings under dotted names; a longer value than the store takes ends with its digest."""
        if params:
            self.record({"do": "params", "values": flat(params)})

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Record a small file; it is read when it is sent."""
        self.record({"do": "artifact", "path": str(path.resolve()), "folder": folder})

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """Record that the run used a dataset: lineage by digest."""
        told = {"name": name, "digest": digest, "source": without_secrets(source)}
        self.record({"do": "dataset", "context": context, **told})

    def end(self, status: Status) -> None:
        """End the run and wait some seconds for the store to have all of it."""
        if self.ended:
            return
        self.record({"do": "end", "time_ms": now_ms(), "status": status})
        self.ended = True
        self._hurry()
        last_s = time.monotonic() + SLOW_TIMEOUT_S
        if not self._closed.wait(END_TIMEOUT_S):
            while time.monotonic() < last_s and not self._away() and not self._closed.wait(0.2):
                pass

    def record(self, record: Record) -> None:
        """Put one record on its way."""
        try:
            self.spool.append(record)
        except (OSError, ValueError) as error:
            self._fail(error)

    def close(self) -> None:
        """Give up the spool; the store has everything."""
        self.spool.close()
        self._closed.set()


def send(store: Store, run: Run, warn: Warn) -> bool:
    """Send what waits and return True; raises when the store is away."""
    waiting = run.spool.waiting()
    if waiting and not run.stored_id:
        opening = next((r for r in waiting if r["do"] == "start"), {"do": "start", "name": "run"})
        run.stored_id = store.open(opening, run.id)
    for kind, group in itertools.groupby(waiting, key=lambda record: record["do"]):
        for some in _portions(kind, list(group)):
            try:
                store.send(run.stored_id, kind, some, again=run.again)
            except Exception as error:
                if not hopeless(error):
                    raise
                warn(f"the tracking store refused {kind}: {without_secrets(str(error))[:200]}")
            run.spool.confirm(len(some))
    return True


def _portions(kind: str, records: list[Record]) -> list[list[Record]]:
    size = RECORDS_A_PORTION if kind == "metrics" else 1
    return [records[start : start + size] for start in range(0, len(records), size)]


def hopeless(error: Exception) -> bool:
    """Return whether the store has refused, so that sending the same again is in vain."""
    return getattr(error, "error_code", "") in REFUSALS or isinstance(error, FileNotFoundError)


def reason(error: BaseException) -> str:
    """Return the first cause in one line: the libraries in between wrap it in ever longer sentences."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    lines = without_secrets(str(error)).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def now_ms() -> int:
    """Return the time in UNIX milliseconds, as records carry it."""
    return int(time.time() * 1000)


def embedded_uri(folder: Path) -> str:
    """Return the URI of the embedded store in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder.resolve()}/mlflow.db"


def artifact_uri(uri: str) -> str | None:
    """Return where the embedded store keeps artifacts, beside its file; a server decides by itself."""
    path = uri.removeprefix("sqlite:///")
    return None if path == uri else (Path(path).resolve().parent / "artifacts").as_uri()
