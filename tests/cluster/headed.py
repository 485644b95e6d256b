"""A real Ray head with its dashboard, in token mode, as a child process of the tests."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.cluster.served import free_port

START_S, STOP_S = 120.0, 40.0
CPUS = 4


@dataclass(frozen=True)
class Headed:
    """A head that answers: where, and the file and text of its token."""

    url: str
    token_path: Path
    token: str
    folder: Path

    def raw(self, path: str) -> str:
        """Return what the dashboard says of a path."""
        headers = {"Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(self.url + path, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read().decode()


@contextlib.contextmanager
def headed() -> Iterator[Headed]:
    """Start a head and give it when it takes jobs; in the end it is gone with all that it started."""
    folder = Path(tempfile.mkdtemp(prefix="kh-", dir="/tmp"))  # Ray's sockets allow few characters
    token = secrets.token_hex(32)
    (folder / "token").touch(mode=0o600)
    (folder / "token").write_text(token)
    port = free_port()
    made = Headed(f"http://127.0.0.1:{port}", folder / "token", token, folder)
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            _command(folder, port), env=_environment(folder), cwd=folder, stdout=log, stderr=log
        )
    try:
        _wait(made, process)
        yield made
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _command(folder: Path, port: int) -> list[str]:
    ports = ("port", "dashboard-agent-listen-port", "metrics-export-port", "ray-client-server-port")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--num-cpus={CPUS}", f"--object-store-memory={100 << 20}", "--disable-usage-stats"]
    command += ["--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={folder / 'r'}"]
    return [*command, f"--dashboard-port={port}", *(f"--{name}={free_port()}" for name in ports)]


def _environment(folder: Path) -> dict[str, str]:
    """Return that of an activated environment; nothing of the tests' own session."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "PYTHONPATH"}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_raylet_start_wait_time_s": "150",
    }


def _wait(head: Headed, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + START_S
    while not _ready(head):
        assert process.poll() is None, (head.folder / "head.log").read_text()[-2000:]
        assert time.monotonic() < deadline_s, (head.folder / "head.log").read_text()[-2000:]
        time.sleep(0.2)


def _ready(head: Headed) -> bool:
    with contextlib.suppress(OSError):
        return '"ALIVE"' in head.raw("/api/v0/nodes?limit=10")
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    own = psutil.Process(process.pid)
    family = [own, *own.children(recursive=True)] if own.is_running() else []
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait(30)
