"""The experiment tracker: the only MLflow, and the only writer to it, on the driver.

Records go to a spool and from there to the store by a thread, in batches. A store that is away costs a warning and no run:
the spool is sent when it is back, by this process or by the next one. Sending twice changes nothing.
"""

import json
import logging
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.recording import LOCAL, Found, Run, Warn, artifact_uri, hopeless, now_ms, reason, send
from cluster.recording import embedded_uri as embedded_uri  # noqa: PLC0414  where a store is
from cluster.spool import Record, Spool, leftovers, shortened, spool_of, without_secrets

LOCAL_TAG = "kinoray.local_id"
PARENT_TAG = "mlflow.parentRunId"
NOW = "kinoray.now."
SEND_EVERY_S = 2.0
RETRY_AFTER_S = 20.0
METRICS_A_BATCH = 1000
ENTRIES_A_BATCH = 100
MAX_TAG_CHARS = 5000
MAX_DIGEST_CHARS = 36
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


class Tracker:
    """Starts runs in the store at `uri`; never raises for a store that is away, says so once through `warn`."""

    def __init__(self, uri: str, spool: Path, warn: Warn = lambda _text: None) -> None:
        self._uri, self._folder, self._warn = uri, spool_of(spool, uri), warn
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
    ) -> Run:
        """Start a run, or take up `run_id` again; without its store the run has an id that begins with "local-"."""
        told = {"name": name, "experiment": experiment, "parent_id": parent_id}
        opening: Record = {"do": "start", "time_ms": now_ms(), **told}
        found = self._tried(lambda store: store.open(opening, run_id or ""))
        run = self._run(self._spool(found or run_id or f"{LOCAL}{uuid.uuid4().hex}"))
        if not found:
            run.record(opening)
        run.again = run.again or bool(run_id)
        run.set_tags(tags or {})
        run.log_params(params or {})
        self._runs.append(run)
        if self._thread is None:
            self._take_leftovers()
            self._thread = threading.Thread(target=self._loop, name="tracking", daemon=True)
            self._thread.start()
        return run

    def _run(self, spool: Spool) -> Run:
        return Run(spool, hurry=self._hurry, fail=self._warn_once, away=self._is_away)

    def _is_away(self) -> bool:
        return time.monotonic() < self._retry_at_s

    def _take_leftovers(self) -> None:
        for spool in leftovers(self._folder):
            run = self._run(spool)
            run.ended = True
            self._runs.append(run)

    def _warn_once(self, error: BaseException) -> None:
        if not self._warned:
            self._warned = True
            self._warn(
                f"the tracking store {without_secrets(self._uri)} does not answer ({reason(error)}); "
                f"records are kept in {self._folder} and sent when it does"
            )

    def _hurry(self) -> None:
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
            self._warn_once(error)
            return None

    def _loop(self) -> None:
        while True:
            self._nudge.wait(SEND_EVERY_S)
            self._nudge.clear()
            for run in list(self._runs):
                if self._tried(lambda store, run=run: send(store, run, self._warn)) and run.ended:
                    self._runs.remove(run)
                    run.close()


class _Store:
    """MLflow's client behind the few calls that we need; not for more than one thread at a time."""

    def __init__(self, uri: str) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._lock = threading.RLock()
        self._artifacts = artifact_uri(uri)
        # MLflow and what it imports warn of each other's deprecations; none of it is for our user.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # MLflow takes seconds to import: only a process that has something to record pays for it.
            from mlflow import entities  # noqa: PLC0415
            from mlflow.tracking import MlflowClient  # noqa: PLC0415

            for name in ("mlflow", "alembic"):
                logging.getLogger(name).setLevel(logging.ERROR)
            self._entities = entities
            self._client: Any = MlflowClient(tracking_uri=uri)
            # The first question opens the store, and makes its tables.
            self._client.search_experiments(max_results=1)
        self._seen: dict[tuple[str, str], set[tuple[int, float]]] = {}
        self._unsure: set[str] = (
            set()
        )  # runs of which a request failed: the store is asked what it has

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

    def search(self, experiment: str) -> Iterator[Found]:
        """Yield every run of an experiment."""
        known = self._client.get_experiment_by_name(experiment)
        token = ""
        while known is not None and token is not None:
            page = self._client.search_runs([known.experiment_id], page_token=token or None)
            for run in page:
                yield Found(id=run.info.run_id, name=run.info.run_name, tags=dict(run.data.tags))
            token = page.token or None

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
            if hopeless(error):
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
        try:
            self._new_metrics(run_id, records, again=again or run_id in self._unsure)
        except Exception:
            # What was counted as seen may never have come, or come although no answer did.
            self._seen = {key: has for key, has in self._seen.items() if key[0] != run_id}
            self._unsure.add(run_id)
            raise

    def _new_metrics(self, run_id: str, records: Sequence[Record], *, again: bool) -> None:
        rows = []
        for record in records:
            for name, value in record["values"].items():
                seen = self._logged(run_id, name, again=again)
                if (record["step"], value) not in seen:
                    seen.add((record["step"], value))
                    told = (name, value, record["time_ms"], record["step"])
                    rows.append(self._entities.Metric(*told))
        for start in range(0, len(rows), METRICS_A_BATCH):
            self._client.log_batch(run_id, metrics=rows[start : start + METRICS_A_BATCH])

    def _logged(self, run_id: str, name: str, *, again: bool) -> set[tuple[int, float]]:
        key = (run_id, name)
        if key not in self._seen:
            history = self._client.get_metric_history(run_id, name) if again else ()
            self._seen[key] = {(metric.step, metric.value) for metric in history}
        return self._seen[key]

    def _tags(self, run_id: str, record: Record) -> None:
        values = record["values"].items()
        self._entries(run_id, tags=[self._entities.RunTag(n, v[:MAX_TAG_CHARS]) for n, v in values])

    def _params(self, run_id: str, record: Record) -> None:
        # A store never changes a param: what a continuation says otherwise becomes a tag.
        had = self._client.get_run(run_id).data.params
        told = {name: shortened(text) for name, text in record["values"].items()}
        other = {NOW + name: text for name, text in told.items() if had.get(name, text) != text}
        self._tags(run_id, {"values": other})
        same = {name: text for name, text in told.items() if NOW + name not in other}
        self._entries(run_id, params=[self._entities.Param(n, v) for n, v in same.items()])

    def _entries(self, run_id: str, **entries: list[Any]) -> None:
        for kind, some in entries.items():
            for start in range(0, len(some), ENTRIES_A_BATCH):
                self._client.log_batch(run_id, **{kind: some[start : start + ENTRIES_A_BATCH]})

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


def search(uri: str, experiment: str) -> Iterator[Found]:
    """Yield every run of an experiment with its tags; nothing where there is no such store or experiment."""
    path = uri.removeprefix("sqlite:///")
    if path != uri and not Path(path).exists():
        return
    yield from _Store(uri).search(experiment)
