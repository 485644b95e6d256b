"""The experiment tracker: the only MLflow, and the only writer to it, on the driver.

Records go to a spool and from there to the store by a thread, in batches. A store that is away costs a warning and no run:
the spool is sent when it is back, by this process or by the next one. Sending twice changes nothing.
"""

import hashlib
import itertools
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cluster.spool import Record, Spool, flat, leftovers, without_secrets

Status = Literal["FINISHED", "FAILED", "KILLED"]
Warn = Callable[[str], None]
LOCAL = "local-"
LOCAL_TAG = "kinoray.local_id"
PARENT_TAG = "mlflow.parentRunId"
SEND_EVERY_S = 2.0
RETRY_AFTER_S = 20.0
END_TIMEOUT_S = 5.0
RECORDS_A_PORTION = 200
METRICS_A_BATCH = 1000
ENTRIES_A_BATCH = 100
MAX_PARAM_CHARS = 6000
MAX_TAG_CHARS = 5000
MAX_DIGEST_CHARS = 36
# The store understood and said no; sending again would not help. Everything else means that it is away.
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST")
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def embedded_uri(folder: Path) -> str:
    """Return the URI of the embedded store in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder.resolve()}/mlflow.db"


class Tracker:
    """Starts runs in the store at `uri`; never raises for a store that is away, says so once through `warn`."""

    def __init__(self, uri: str, spool: Path, warn: Warn = lambda _text: None) -> None:
        self._uri, self._folder, self._warn = uri, spool, warn
        self._store: _Store | None = None
        self._runs: list[Run] = []
        self._warned = False
        self._nudge = threading.Event()
        self._retry_at_s = 0.0
        self._thread: threading.Thread | None = None

    def start(
        self,
        name: str,
        *,
        experiment: str,
        parent_id: str = "",
        run_id: str = "",
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> "Run":
        """Start a run, or take up `run_id` again; without its store the run has an id that begins with "local-"."""
        told = {"name": name, "experiment": experiment, "parent_id": parent_id}
        opening: Record = {"do": "start", "time_ms": _now_ms(), **told}
        found = self._tried(lambda store: store.open(opening, run_id or ""))
        run = Run(self, self._spool(found or run_id or f"{LOCAL}{uuid.uuid4().hex}"))
        if not found:
            run.record(opening)
        run.resumed = bool(run_id)
        run.set_tags(tags or {})
        run.log_params(params or {})
        self._runs.append(run)
        if self._thread is None:
            self._runs += [Run(self, spool, ended=True) for spool in leftovers(self._folder)]
            self._thread = threading.Thread(target=self._loop, name="tracking", daemon=True)
            self._thread.start()
        return run

    def warn_once(self, error: BaseException) -> None:
        """Say that the store is away, the first time."""
        if not self._warned:
            self._warned = True
            lines = without_secrets(str(error)).strip().splitlines() or [type(error).__name__]
            self._warn(
                f"the tracking store {without_secrets(self._uri)} does not answer ({lines[0][:200]}); "
                f"records are kept in {self._folder} and sent when it does"
            )

    def hurry(self) -> None:
        """Send now."""
        self._retry_at_s = 0.0
        self._nudge.set()

    def _spool(self, run_id: str) -> Spool:
        try:
            return Spool(self._folder, run_id)
        except BlockingIOError:
            # Another process has the same run open; both write to the store, each from its own file.
            return Spool(self._folder / f"beside-{os.getpid()}", run_id)

    def _tried(self, ask: Callable[["_Store"], Any]) -> Any:
        """Ask the store, or return None when it is away."""
        if time.monotonic() < self._retry_at_s:
            return None
        try:
            if self._store is None:
                self._store = _Store(self._uri)
            return ask(self._store)
        except Exception as error:  # noqa: BLE001  whatever a store's driver raises: the run goes on
            self._retry_at_s = time.monotonic() + RETRY_AFTER_S
            self.warn_once(error)
            return None

    def _loop(self) -> None:
        while True:
            self._nudge.wait(SEND_EVERY_S)
            self._nudge.clear()
            for run in list(self._runs):
                if self._tried(lambda store, run=run: _send(store, run, self._warn)) and run.ended:
                    self._runs.remove(run)
                    run.close()


class Run:
    """One run on record; every call returns at once."""

    def __init__(self, tracker: Tracker, spool: Spool, *, ended: bool = False) -> None:
        self.id = spool.run_id
        self.stored_id = "" if self.id.startswith(LOCAL) else self.id
        self.spool, self.ended, self.resumed = spool, ended, ended
        self._tracker = tracker
        self._closed = threading.Event()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at a step; the same number at the same step is recorded once."""
        values = {name: float(value) for name, value in metrics.items()}
        self.record({"do": "metrics", "time_ms": _now_ms(), "step": step, "values": values})

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
        self.record({"do": "end", "time_ms": _now_ms(), "status": status})
        self.ended = True
        self._tracker.hurry()
        self._closed.wait(END_TIMEOUT_S)

    def record(self, record: Record) -> None:
        """Put one record on its way."""
        try:
            self.spool.append(record)
        except (OSError, ValueError) as error:
            self._tracker.warn_once(error)

    def close(self) -> None:
        """Give up the spool; the store has everything."""
        self.spool.close()
        self._closed.set()


def _send(store: "_Store", run: Run, warn: Warn) -> bool:
    """Send what waits and return True; raises when the store is away."""
    waiting = run.spool.waiting()
    if waiting and not run.stored_id:
        opening = next((r for r in waiting if r["do"] == "start"), {"do": "start", "name": "run"})
        run.stored_id = store.open(opening, run.id)
    for kind, group in itertools.groupby(waiting, key=lambda record: record["do"]):
        for some in _portions(kind, list(group)):
            try:
                store.send(run.stored_id, kind, some, again=run.resumed)
            except Exception as error:
                if not _hopeless(error):
                    raise
                warn(f"the tracking store refused {kind}: {without_secrets(str(error))[:200]}")
            run.spool.confirm(len(some))
    return True


def _portions(kind: str, records: list[Record]) -> list[list[Record]]:
    size = RECORDS_A_PORTION if kind == "metrics" else 1
    return [records[start : start + size] for start in range(0, len(records), size)]


def _hopeless(error: Exception) -> bool:
    return getattr(error, "error_code", "") in REFUSALS or isinstance(error, FileNotFoundError)


class _Store:
    """MLflow's client behind the few calls that we need; not for more than one thread at a time."""

    def __init__(self, uri: str) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # MLflow takes seconds to import: only a process that has something to record pays for it.
        from mlflow import entities
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._lock = threading.RLock()
        self._entities = entities
        self._artifacts = _artifact_uri(uri)
        self._client: Any = MlflowClient(tracking_uri=uri)
        self._seen: dict[tuple[str, str], set[tuple[int, float]]] = {}

    def open(self, opening: Record, run_id: str) -> str:
        """Return the run of that id, or with that local id, set running again; a new one when there is none."""
        with self._lock:
            experiment_id = self._experiment(opening.get("experiment") or "Default")
            found = self._known(run_id, experiment_id)
            if found:
                self._client.update_run(found, status="RUNNING")
                return found
            tags = {LOCAL_TAG: run_id} if run_id.startswith(LOCAL) else {}
            parent = self._known(opening.get("parent_id", ""), experiment_id)
            if parent:
                tags[PARENT_TAG] = parent
            made = self._client.create_run(
                experiment_id,
                start_time=opening.get("time_ms"),
                run_name=opening["name"],
                tags=tags,
            )
            return made.info.run_id

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        return self._client.create_experiment(name, artifact_location=self._artifacts)

    def _known(self, run_id: str, experiment_id: str) -> str:
        """Return the store's id of a run known by its own or its local id, "" when the store has no such run."""
        if run_id.startswith(LOCAL):
            query = f"tags.`{LOCAL_TAG}` = '{run_id}'"
            found = self._client.search_runs([experiment_id], query, max_results=1)
            return found[0].info.run_id if found else ""
        if not run_id:
            return ""
        try:
            run = self._client.get_run(run_id)
        except Exception as error:
            if _hopeless(error):
                return ""
            raise
        return run_id if run.info.lifecycle_stage == "active" else ""

    def send(self, run_id: str, kind: str, records: Sequence[Record], *, again: bool) -> None:
        """Write records of one kind; `again` when some of them may be there already."""
        with self._lock:
            if kind == "metrics":
                self._metrics(run_id, records, again=again)
                return
            for record in records:
                getattr(self, f"_{kind}")(run_id, record)

    def _start(self, run_id: str, record: Record) -> None:
        """Nothing to write: the run was made when it was opened."""

    def _metrics(self, run_id: str, records: Sequence[Record], *, again: bool) -> None:
        rows = []
        for record in records:
            for name, value in record["values"].items():
                seen = self._logged(run_id, name, again=again)
                if (record["step"], value) not in seen:
                    seen.add((record["step"], value))
                    rows.append(
                        self._entities.Metric(name, value, record["time_ms"], record["step"])
                    )
        for start in range(0, len(rows), METRICS_A_BATCH):
            self._client.log_batch(run_id, metrics=rows[start : start + METRICS_A_BATCH])

    def _logged(self, run_id: str, name: str, *, again: bool) -> set[tuple[int, float]]:
        key = (run_id, name)
        if key not in self._seen:
            history = self._client.get_metric_history(run_id, name) if again else ()
            self._seen[key] = {(metric.step, metric.value) for metric in history}
        return self._seen[key]

    def _tags(self, run_id: str, record: Record) -> None:
        tags = [
            self._entities.RunTag(name, text[:MAX_TAG_CHARS])
            for name, text in record["values"].items()
        ]
        for start in range(0, len(tags), ENTRIES_A_BATCH):
            self._client.log_batch(run_id, tags=tags[start : start + ENTRIES_A_BATCH])

    def _params(self, run_id: str, record: Record) -> None:
        params = [
            self._entities.Param(name, _shortened(text)) for name, text in record["values"].items()
        ]
        for start in range(0, len(params), ENTRIES_A_BATCH):
            self._client.log_batch(run_id, params=params[start : start + ENTRIES_A_BATCH])

    def _artifact(self, run_id: str, record: Record) -> None:
        if not Path(record["path"]).exists():
            raise FileNotFoundError(f"{record['path']}: not there any more")
        self._client.log_artifact(run_id, record["path"], record["folder"] or None)

    def _dataset(self, run_id: str, record: Record) -> None:
        source = json.dumps({"uri": record["source"]})
        dataset = self._entities.Dataset(
            record["name"], record["digest"][:MAX_DIGEST_CHARS], "local", source
        )
        tags = [
            self._entities.InputTag("mlflow.data.context", record["context"]),
            self._entities.InputTag("kinoray.digest", record["digest"]),
        ]
        self._client.log_inputs(run_id, [self._entities.DatasetInput(dataset, tags)])

    def _end(self, run_id: str, record: Record) -> None:
        self._client.set_terminated(run_id, record["status"], record["time_ms"])


def _artifact_uri(uri: str) -> str | None:
    """Return where the embedded store keeps artifacts, beside its file; a server decides by itself."""
    path = uri.removeprefix("sqlite:///")
    return None if path == uri else (Path(path).resolve().parent / "artifacts").as_uri()


def _shortened(text: str) -> str:
    if len(text) <= MAX_PARAM_CHARS:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text[: MAX_PARAM_CHARS - 100]}... ({len(text)} characters, sha256 {digest})"


def _now_ms() -> int:
    return int(time.time() * 1000)
