"""Tracking in MLflow: one writer, on the driver; workers never talk to it.

Everything is an operation that is either carried out or spooled to a file and replayed later, in order, so that an absent store
never stops or slows a run. The embedded store is sqlite at an absolute path (ray-and-mlflow.md 9).
"""

import json
import logging
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

# Before the import: MLflow reads these once. A store that is away must cost seconds, not minutes.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
}.items():
    os.environ.setdefault(_name, _value)

import mlflow  # noqa: E402
from mlflow.data.dataset_source_registry import resolve_dataset_source  # noqa: E402
from mlflow.data.meta_dataset import MetaDataset  # noqa: E402
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag  # noqa: E402

Status = Literal["FINISHED", "FAILED", "KILLED"]
FLUSH_EVERY_S = 2.0
RETRY_EVERY_S = 15.0
BATCH = 1000
PARAM_BATCH = 100
PARAM_CHARS = 6000
Operation = dict[str, Any]


def embedded_uri(folder: Path) -> str:
    """Return the tracking URI of the store inside `folder`."""
    return f"sqlite:///{folder.resolve() / 'mlflow.db'}"


def without_secrets(uri: str) -> str:
    """Return a URI without its user and password, fit to be shown and stored."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested values as (a.b.c, text)."""
    for key, value in table.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from flatten(value, name)
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            yield name, text if len(text) <= PARAM_CHARS else text[: PARAM_CHARS - 1] + "…"


class Tracker:
    """The one connection to a store; `warn` is told once when the store is away."""

    def __init__(
        self, uri: str, spool: Path, warn: Callable[[str], None] = lambda _text: None
    ) -> None:
        self.uri = uri
        self._spool = _Spool(spool)
        self._warn = warn
        self._warned = False
        self._next_try_s = 0.0
        self._store: _Store | None = None

    def start(
        self,
        name: str,
        *,
        experiment: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        parent_id: str = "",
        run_id: str = "",
    ) -> "Run":
        """Begin a run, or go on with `run_id`; the run has an id even while the store is away."""
        if run_id:
            self.do({"op": "resume", "run": run_id})
            return Run(self, run_id, resumed=True)
        local = uuid.uuid4().hex
        self.do(
            {
                "op": "start",
                "run": local,
                "name": name,
                "experiment": experiment,
                "parent": parent_id,
                "tags": dict(tags),
                "params": dict(flatten(params)),
                "time": _now_ms(),
            }
        )
        return Run(self, local, resumed=False)

    def real_id(self, run: str) -> str:
        """Return the store's id of a run begun here, or the local one while the store does not know it."""
        return self._spool.real(run)

    def last_step(self, run: str, key: str) -> int:
        """Return the last step the store has of a metric, -1 when it has none or is away."""
        if self._store is None or self._spool.holds_any():
            return -1
        try:
            return self._store.last_step(self._spool.real(run), key)
        except Exception:  # noqa: BLE001  reading is a convenience; the write that follows will spool
            return -1

    def do(self, operation: Operation) -> None:
        """Carry an operation out now, or spool it; never raises because of the store."""
        self._spool.add(operation)
        if time.monotonic() >= self._next_try_s:
            self.replay()
        else:
            self._spool.keep()

    def replay(self) -> bool:
        """Carry out what is spooled, in order; returns whether nothing is left."""
        try:
            self._store = self._store or _Store(self.uri)
            for operation in self._spool.waiting():
                self._store.carry_out(operation, self._spool)
                self._spool.done()
        except Exception as error:  # noqa: BLE001  whatever the store says, the run goes on
            self._next_try_s = time.monotonic() + RETRY_EVERY_S
            self._spool.keep()
            if not self._warned:
                self._warned = True
                cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
                where = without_secrets(self.uri)
                self._warn(
                    f"tracking: {where} is away ({cause[:200]}); keeping a spool, the run goes on"
                )
            return False
        return True


class Run:
    """A run in the tracker: numbers are buffered and written every two seconds and at the end."""

    def __init__(self, tracker: Tracker, run: str, *, resumed: bool) -> None:
        self._tracker, self._run, self._resumed = tracker, run, resumed
        self._buffer: list[tuple[str, float, int, int]] = []
        self._flushed_s = time.monotonic()
        self._last: dict[str, int] = {}

    @property
    def id(self) -> str:
        """The store's id of the run, or a local one while the store is away."""
        return self._tracker.real_id(self._run)

    def log_metrics(self, numbers: Mapping[str, float], step: int) -> None:
        """Record numbers at a step; a step that a resumed run already has is not written twice."""
        for key, value in numbers.items():
            if self._resumed and step <= self._known(key):
                continue
            self._buffer.append((key, float(value), step, _now_ms()))
        if len(self._buffer) >= BATCH or time.monotonic() - self._flushed_s >= FLUSH_EVERY_S:
            self.flush()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters; nested ones with dotted names."""
        self._tracker.do({"op": "params", "run": self._run, "params": dict(flatten(params))})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._tracker.do({"op": "tags", "run": self._run, "tags": dict(tags)})

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Copy a file to the run's artifacts."""
        operation = {
            "op": "artifact",
            "run": self._run,
            "path": str(path.resolve()),
            "folder": folder,
        }
        self._tracker.do(operation)

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """Record which dataset version the run read or made."""
        operation = {"op": "dataset", "run": self._run, "name": name, "digest": digest}
        self._tracker.do({**operation, "source": without_secrets(source), "context": context})

    def flush(self) -> None:
        """Write the buffered numbers."""
        for first in range(0, len(self._buffer), BATCH):
            part = self._buffer[first : first + BATCH]
            self._tracker.do(
                {"op": "metrics", "run": self._run, "metrics": [list(m) for m in part]}
            )
        self._buffer = []
        self._flushed_s = time.monotonic()

    def end(self, status: Status) -> None:
        """End the run."""
        self.flush()
        self._tracker.do({"op": "end", "run": self._run, "status": status, "time": _now_ms()})

    def _known(self, key: str) -> int:
        if key not in self._last:
            self._last[key] = self._tracker.last_step(self._run, key)
        return self._last[key]


class _Spool:
    """Operations that wait, in order, and the ids the store gave; in files only while the store is away."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # A file for each process: two runs at once must not interleave. What a dead process left is adopted.
        self._path = folder / f"{os.getpid()}.jsonl"
        self._ids_path = folder / "ids.json"
        self._ids: dict[str, str] = _read_ids(self._ids_path)
        self._waiting: list[Operation] = _adopted(folder)
        if self._waiting:
            self.keep()

    def add(self, operation: Operation) -> None:
        self._waiting.append(operation)

    def waiting(self) -> list[Operation]:
        return list(self._waiting)

    def holds_any(self) -> bool:
        return bool(self._waiting)

    def done(self) -> None:
        self._waiting.pop(0)
        if not self._waiting:
            self._path.unlink(missing_ok=True)

    def keep(self) -> None:
        """Write what waits, whole: a later process reads it."""
        _replace(self._path, "".join(json.dumps(o) + "\n" for o in self._waiting))

    def learn(self, local: str, real: str) -> None:
        self._ids[local] = real
        _replace(self._ids_path, json.dumps(self._ids))

    def real(self, run: str) -> str:
        return self._ids.get(run, run)


class _Store:
    """The operations, in MLflow's terms."""

    def __init__(self, uri: str) -> None:
        for name in ("alembic", "mlflow", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.ERROR)
        if uri.startswith("sqlite:///"):
            self._root: Path | None = Path(uri.removeprefix("sqlite:///")).parent
            self._root.mkdir(parents=True, exist_ok=True)
        else:
            self._root = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            self._experiments = {e.name: e.experiment_id for e in self._client.search_experiments()}

    def last_step(self, run: str, key: str) -> int:
        return max((m.step for m in self._client.get_metric_history(run, key)), default=-1)

    def carry_out(self, operation: Operation, spool: _Spool) -> None:
        """Do one operation; doing it twice changes nothing."""
        if operation["op"] == "start":
            self._start(operation, spool)
            return
        run = spool.real(operation["run"])
        getattr(self, f"_{operation['op']}")(run, operation)

    def _start(self, operation: Operation, spool: _Spool) -> None:
        tags = {
            **operation["tags"],
            "mlflow.runName": operation["name"],
            "kinoray.run": operation["run"],
        }
        if operation["parent"]:
            tags["mlflow.parentRunId"] = spool.real(operation["parent"])
        experiment = self._experiment(operation["experiment"])
        run = self._client.create_run(
            experiment, start_time=operation["time"], tags=tags
        ).info.run_id
        spool.learn(operation["run"], run)
        self._params(run, operation)

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            place = (self._root / "artifacts").as_uri() if self._root else None
            self._experiments[name] = self._client.create_experiment(name, artifact_location=place)
        return self._experiments[name]

    def _resume(self, run: str, _operation: Operation) -> None:
        self._client.update_run(run, status="RUNNING")

    def _params(self, run: str, operation: Operation) -> None:
        params = [Param(key, value) for key, value in operation["params"].items()]
        for first in range(0, len(params), PARAM_BATCH):
            self._client.log_batch(run, params=params[first : first + PARAM_BATCH])

    def _metrics(self, run: str, operation: Operation) -> None:
        metrics = [
            Metric(key, value, moment, step) for key, value, step, moment in operation["metrics"]
        ]
        self._client.log_batch(run, metrics=metrics)

    def _tags(self, run: str, operation: Operation) -> None:
        self._client.log_batch(run, tags=[RunTag(k, v) for k, v in operation["tags"].items()])

    def _artifact(self, run: str, operation: Operation) -> None:
        if Path(operation["path"]).exists():
            self._client.log_artifact(run, operation["path"], operation["folder"] or None)

    def _dataset(self, run: str, operation: Operation) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = resolve_dataset_source(operation["source"])
        dataset = MetaDataset(source, name=operation["name"], digest=operation["digest"][:36])
        tags = [InputTag("mlflow.data.context", operation["context"])]
        entity = dataset._to_mlflow_entity()  # noqa: SLF001  the only way from a dataset to a client's call
        self._client.log_inputs(run, datasets=[DatasetInput(entity, tags)])

    def _end(self, run: str, operation: Operation) -> None:
        self._client.set_terminated(run, operation["status"], operation["time"])


def _now_ms() -> int:
    return int(time.time() * 1000)


def _replace(path: Path, text: str) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _read_ids(path: Path) -> dict[str, str]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _adopted(folder: Path) -> list[Operation]:
    """Return what dead processes left, oldest first, and take their files away."""
    operations: list[Operation] = []
    for path in sorted(folder.glob("*.jsonl"), key=lambda p: p.stat().st_mtime):
        if path.stem.isdigit() and not Path(f"/proc/{path.stem}").exists():
            operations += [
                json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
            ]
            path.unlink()
    return operations
