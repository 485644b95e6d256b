"""Ray sessions: one embedded in this process, or a connection to a running cluster.

The embedded one never attaches to somebody else's cluster, never opens without a token, takes a stated amount of memory and
leaves nothing behind; folders of owners that were killed are cleaned at the next start. Ray's ports listen on all interfaces,
so token mode is always on.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import ray

from cluster import raylet
from cluster.environment import (
    CHECKOUT,
    ENVIRONMENT,
    NO_GPU_UNASKED,
    TOKEN_VARIABLES,
    make_token,
    python_path,
)
from cluster.head import ClusterUnavailable, Job
from cluster.quiet import hushed, reread_environment
from cluster.running import job_name

PACKAGES = ("cluster", "ingest", "models", "pipelines", "jobs")
PREFIX = "kinoray-"
LOCK = "owner.lock"
# Unix sockets allow 107 bytes, of which Ray's own part takes up to 70.
MAX_FOLDER_CHARS = 36
MIN_OBJECT_STORE_BYTES = 80 << 20
# Two workers are the least that a group is worth testing with, also on a machine with one core.
MIN_CPUS = 2
ATTEMPTS = 2
KNOCK_TIMEOUT_S = 5.0
# Ray's start-up races on a busy machine; it says so in one of these ways and a second try works.
TRANSIENT = ("gcs_server_port", "timed out", "Failed to start GCS", "node timed out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Where Ray runs: "local" is embedded in this process, anything else is the address of a running cluster.

    "auto" is the cluster that this process is a job of. `num_cpus` and `object_store_bytes` shape the embedded one; a running
    cluster has what it has. `job` is for those who submit.
    """

    address: str = "local"
    num_cpus: int | Literal["all"] = "all"
    object_store_bytes: int = 128 << 20
    job: Job = field(default_factory=Job)

    def __post_init__(self) -> None:
        """Refuse what Ray could not start with."""
        if self.object_store_bytes < MIN_OBJECT_STORE_BYTES:
            raise ValueError(f"object_store_bytes: at least {MIN_OBJECT_STORE_BYTES} (80 MiB)")
        if self.num_cpus != "all" and self.num_cpus < 1:
            raise ValueError('num_cpus: at least 1, or "all"')
        if not self.address:
            raise ValueError('address: "local" or the address of a running cluster')


@contextlib.contextmanager
def session(cluster: Cluster) -> Iterator[None]:
    """Be connected to Ray for the time of a with block; raises ClusterUnavailable."""
    if ray.is_initialized():
        raise ClusterUnavailable("a Ray session is open in this process already; next: close it")
    opened = _embedded(cluster) if cluster.address == "local" else _remote(_named(cluster.address))
    with hushed(), opened:
        yield


@contextlib.contextmanager
def _embedded(cluster: Cluster) -> Iterator[None]:
    clean_stale()
    with _folder() as folder:
        token = folder / "token"
        make_token(token)
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        with _environment({**ENVIRONMENT, **own, "PYTHONPATH": python_path()}):
            os.environ.pop("RAY_AUTH_TOKEN", None)
            with _connected(cluster.address, **_shape(cluster, folder)):
                raylet.watch()
                try:
                    yield
                finally:
                    raylet.forget()


def _shape(cluster: Cluster, folder: Path) -> dict[str, Any]:
    cpus = cluster.num_cpus
    return {
        "num_cpus": max(MIN_CPUS, len(os.sched_getaffinity(0))) if cpus == "all" else cpus,
        "include_dashboard": False,
        "object_store_memory": cluster.object_store_bytes,
        "_temp_dir": str(folder),
    }


def _named(address: str) -> str:
    """Return the address that Ray gave to a job for "auto"; elsewhere "auto" is what Ray finds on this machine."""
    return os.environ.get("RAY_ADDRESS", address) if address == "auto" else address


def _code() -> dict[str, Any]:
    """Return what workers over there need of us: this very code; the heavy libraries are theirs."""
    if job_name():
        return {}  # the job's own environment, which its workers get, has the code and the variables
    return {
        "py_modules": [str(CHECKOUT / name) for name in PACKAGES],
        "env_vars": {NO_GPU_UNASKED: ENVIRONMENT[NO_GPU_UNASKED]},
    }


@contextlib.contextmanager
def _remote(address: str) -> Iterator[None]:
    _knock(address)
    settings = dict(ENVIRONMENT)
    if "RAY_AUTH_MODE" not in os.environ and _has_token():
        settings["RAY_AUTH_MODE"] = "token"
    with _environment(settings), _connected(address, runtime_env=_code()):
        yield


def _knock(address: str) -> None:
    """Raise ClusterUnavailable when nobody listens there: Ray itself would try for more than five minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_TIMEOUT_S):
            return
    except OSError as error:
        raise ClusterUnavailable(_advice(address, error)) from error


def _has_token() -> bool:
    named = any(name in os.environ for name in TOKEN_VARIABLES)
    return named or (Path.home() / ".ray" / "auth_token").exists()


@contextlib.contextmanager
def _connected(address: str, **settings: Any) -> Iterator[None]:
    reread_environment()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with _own_signals():
                ray.init(
                    address=address, log_to_driver=False, logging_level=logging.CRITICAL, **settings
                )
            break
        except Exception as error:
            _shut_down()
            again = address == "local" and any(sign in str(error) for sign in TRANSIENT)
            if attempt == ATTEMPTS or not again:
                raise ClusterUnavailable(_advice(address, error)) from error
            time.sleep(1.0)
    try:
        yield
    finally:
        _shut_down()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handler of SIGTERM, which ray.init replaces by one that exits at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _advice(address: str, error: Exception) -> str:
    lines = str(error).strip().splitlines()
    cause = lines[0] if lines else type(error).__name__
    if address == "local":
        return f"Ray did not start: {cause}; next: kinoray doctor"
    return (
        f"no Ray cluster answers at {address} ({cause}); next: check that it is running there and "
        "that RAY_AUTH_TOKEN_PATH names its token file"
    )


def _shut_down() -> None:
    with contextlib.suppress(Exception):
        ray.shutdown()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Make the session's folder, locked for as long as this process lives, however it ends."""
    made = Path(tempfile.mkdtemp(prefix=f".new-{PREFIX}", dir=_temporary()))
    lock = (made / LOCK).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    # Only now may another process's clean_stale see it.
    folder = made.rename(made.with_name(made.name.removeprefix(".new-")))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _temporary() -> Path:
    folder = Path(tempfile.gettempdir())
    fits = len(str(folder / PREFIX)) + 8 <= MAX_FOLDER_CHARS
    return folder if fits else Path("/tmp")


def clean_stale() -> list[Path]:
    """Remove the folders of embedded sessions whose owner is gone and return them; the others' are left alone.

    A lock tells, not a process id: ids are reused, and differ between containers that share the folder.
    """
    removed = []
    for folder in _temporary().glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == os.getuid() and _abandoned(folder / LOCK):
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder)
    return removed


def _abandoned(path: Path) -> bool:
    lock: IO[str]
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Set variables that Ray and its children read, and take them back: they must not leak into the caller."""
    touched = (*settings, *TOKEN_VARIABLES, "PYTHONDONTWRITEBYTECODE")
    before = {key: os.environ.get(key) for key in touched}
    os.environ.update(settings)
    # Without bytecode every worker compiles the libraries anew: 17 s instead of 7 s to start.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
        reread_environment()
