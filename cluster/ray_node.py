"""One node of a local cluster: `ray start --block` with a session, a folder and ports of its own, and what its head answers.

Ray's defaults for metrics, agents and clients are fixed ports, so a second node on a machine must be given others; they are
taken from below the range in which the kernel, and Ray itself, pick free ones, so that nobody takes them in between.
"""

import contextlib
import json
import os
import random
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import process_ids
from cluster.environment import DRAIN_S, ENVIRONMENT, TOKEN_VARIABLES, python_path
from cluster.process_ids import ProcessId

PROCESS, LOG = "process", "ray.log"
# Not Ray's own 10002 to 19999, in which it refuses some of these.
PORTS = range(20000, 32000)
PORT_FLAGS = (
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "runtime-env-agent-port",
)
NUM_PORTS = len(PORT_FLAGS)
ANSWER_TIMEOUT_S = 5.0
# The process says itself who it is, before it is Ray: whoever starts it may be killed in between.
BEGIN = 'cd "$0" && cat "/proc/$$/stat" > process.new && mv process.new process && exec "$@"'


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A node: its folder, and the process that leads its session once it has begun."""

    folder: Path
    leader: ProcessId | None

    @property
    def name(self) -> str:
        """Return the node's name, its folder's."""
        return self.folder.name

    @property
    def alive(self) -> bool:
        """Return whether its leader runs; Ray ends the leader when one of the node's processes is lost."""
        return self.leader is not None and process_ids.alive(self.leader)


def read(folder: Path) -> Node:
    """Return the node of `folder` as it is now."""
    leader = None
    with contextlib.suppress(OSError, ValueError):
        leader = process_ids.parse((folder / PROCESS).read_text())
    return Node(folder=folder, leader=leader)


def begin(folder: Path, words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Start `ray start` with `words` as a node in `folder`; returns at once."""
    folder.mkdir(mode=0o700)
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *words]
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    os.posix_spawn(
        "/bin/sh",
        ["/bin/sh", "-c", BEGIN, str(folder), *ray],
        environment,
        setsid=True,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(folder / LOG), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )


def words(*, num_cpus: int, object_store_bytes: int, ports: Sequence[int]) -> list[str]:
    """Return what every node of one machine must be told."""
    own = [f"--{flag}={port}" for flag, port in zip(PORT_FLAGS, ports, strict=True)]
    free = [
        f"--{flag}-port=0"
        for flag in ("node-manager", "object-manager", "min-worker", "max-worker")
    ]
    return [f"--num-cpus={num_cpus}", f"--object-store-memory={object_store_bytes}", *own, *free]


def head_words(*, port: int, dashboard: int, client: int) -> list[str]:
    """Return what the head must be told besides; the dashboard and its Jobs API listen on loopback only."""
    given = {"port": port, "dashboard-port": dashboard, "ray-client-server-port": client}
    return ["--head", "--dashboard-host=127.0.0.1", *(f"--{k}={v}" for k, v in given.items())]


def environment(*, token: str, ray_folder: str) -> dict[str, str]:
    """Return the environment of a node: ours without what belongs to another cluster; `token` is the token's file."""
    dropped = (*TOKEN_VARIABLES, "RAY_ADDRESS", "PYTHONDONTWRITEBYTECODE")
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token, "RAY_TMPDIR": ray_folder}
    return {**kept, **ENVIRONMENT, **own, DRAIN_S: "0", "PYTHONPATH": python_path()}


def free_ports(count: int) -> list[int]:
    """Return `count` ports on which nobody listens; OSError when there are not so many."""
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if len(found) == count:
            return found
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("", port))
            found.append(port)
    raise OSError(f"no {count} free ports between {PORTS.start} and {PORTS.stop}")


def answer(dashboard: str, path: str, token: str = "") -> tuple[int, Any]:
    """Return the status and the JSON that the head answers; status 0 when nobody does."""
    request = urllib.request.Request(f"{dashboard}{path}")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    # A proxy of the environment must not see a token, and could not reach loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=ANSWER_TIMEOUT_S) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, None
    except (OSError, ValueError):
        return 0, None


def living(dashboard: str, token: str) -> list[dict[str, Any]]:
    """Return the nodes that the head counts as alive, the head first; nothing when it does not answer."""
    status, told = answer(dashboard, "/api/v0/nodes?limit=1000", token)
    if status != 200:
        return []
    rows = [row for row in told["data"]["result"]["result"] if row["state"] == "ALIVE"]
    return sorted(rows, key=lambda row: not row["is_head_node"])


def complaint(folder: Path) -> str:
    """Return the last line that a node's log has to say, or ""."""
    try:
        lines = (folder / LOG).read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
