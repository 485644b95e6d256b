"""A Ray cluster of several nodes on this machine, each a process of its own, that outlives the command that started it.

Its token is a file of mode 0600 in the cluster's folder; Ray's ports listen on all interfaces, so a cluster that answers
without the token is ended at once. Whatever was killed in between, `down` finds every process by its session.
"""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cluster import process_ids, ray_node
from cluster.environment import make_token
from cluster.ray_node import Node

STATE, TOKEN = "cluster.json", "token"
PREFIX = "kray-"
# Unix sockets allow 107 bytes, of which Ray's own part takes up to 80.
MAX_TEMPORARY_CHARS = 14
MIN_OBJECT_STORE_BYTES = 80 << 20
MAX_NODES = 32
PATIENCE_S = 10.0
POLL_S = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Local:
    """`num_nodes` nodes, the head included, with `num_cpus` CPUs each; their state is kept in `folder`."""

    folder: Path = Path(".kinoray/cluster")
    num_nodes: int = 2
    num_cpus: int = 1
    object_store_bytes: int = 128 << 20
    timeout_s: float = 180.0

    def __post_init__(self) -> None:
        """Refuse what Ray could not start with."""
        problems = []
        if not 1 <= self.num_nodes <= MAX_NODES:
            problems.append(f"num_nodes: {self.num_nodes} must lie in 1..{MAX_NODES}")
        if self.num_cpus < 1:
            problems.append(f"num_cpus: {self.num_cpus} must be at least 1")
        if self.object_store_bytes < MIN_OBJECT_STORE_BYTES:
            problems.append(f"object_store_bytes: at least {MIN_OBJECT_STORE_BYTES} (80 MiB)")
        if not 0 < self.timeout_s < float("inf"):
            problems.append("timeout_s: above 0")
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """What is remembered of a cluster from before its first process to after its last; `address` is "" until it is up."""

    boot: str
    ray_folder: str
    num_nodes: int
    num_cpus: int
    address: str = ""
    dashboard: str
    token: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A cluster as it is: its state, its nodes, and how it answers a request without a token ("401" is right)."""

    state: State
    nodes: tuple[Node, ...]
    without_token: str
    counted: int

    @property
    def well(self) -> bool:
        """Return whether all nodes live, the head counts them all, and nobody is let in without the token."""
        whole = all(node.alive for node in self.nodes) and self.counted == self.state.num_nodes
        return whole and len(self.nodes) == self.state.num_nodes and self.without_token == "401"


class LocalClusterError(RuntimeError):
    """The local cluster could not be started, or is not whole; the message names the next step."""


def up(config: Local) -> tuple[Found, bool]:
    """Start the cluster, or return the one that is up already (then True); LocalClusterError when neither works."""
    with _locked(config.folder):
        before = _look(config.folder)
        if before is not None and before.state.address and before.well:
            _agree(before.state, config)
            return before, True
        if before is not None and any(node.alive for node in before.nodes):
            raise LocalClusterError(
                f"{_broken(before)}; next: kinoray cluster down folder={config.folder}"
            )
        _remove(config.folder)
        try:
            return _start(config), False
        except BaseException:
            _remove(config.folder)
            raise


def status(folder: Path) -> Found | None:
    """Return the cluster of `folder` as it is, or None where there is none; touches nothing."""
    return _look(folder)


def down(folder: Path) -> int:
    """End every process of the cluster and remove what it made; returns how many nodes there were, 0 for none."""
    if not folder.is_dir():
        return 0
    with _locked(folder):
        count = len(_nodes(folder))
        _remove(folder)
    with contextlib.suppress(OSError):  # somebody else's files stay, and so does their folder
        folder.rmdir()
    return count


def _start(config: Local) -> Found:
    folder = config.folder.resolve()
    port, dashboard, client, *ports = ray_node.free_ports(3 + ray_node.NUM_PORTS * config.num_nodes)
    state = _begun(folder, config, f"http://127.0.0.1:{dashboard}")
    token = Path(state.token).read_text()
    environment = ray_node.environment(token=state.token, ray_folder=state.ray_folder)
    last_s = time.monotonic() + config.timeout_s

    def begin(number: int, *words: str) -> None:
        own = ports[ray_node.NUM_PORTS * number :][: ray_node.NUM_PORTS]
        common = ray_node.words(
            num_cpus=config.num_cpus, object_store_bytes=config.object_store_bytes, ports=own
        )
        ray_node.begin(folder / f"node-{number}", [*words, *common], environment)

    begin(0, *ray_node.head_words(port=port, dashboard=dashboard, client=client))
    _wait(folder, lambda: len(ray_node.living(state.dashboard, token)) >= 1, last_s)
    # Ray takes the address of an interface, whatever it is told: the workers must be given that one.
    address = f"{ray_node.living(state.dashboard, token)[0]['node_ip']}:{port}"
    for number in range(1, config.num_nodes):
        begin(number, f"--address={address}")
    _wait(folder, lambda: len(ray_node.living(state.dashboard, token)) >= config.num_nodes, last_s)
    _write(folder, replace(state, address=address), _nodes(folder))
    found = _look(folder)
    if found is None or not found.well:
        cause = _broken(found) if found else "it is gone"
        raise LocalClusterError(f"{cause}; next: the same command again")
    return found


def _begun(folder: Path, config: Local, dashboard: str) -> State:
    """Write down what will be made before it is made, so that `down` finds it whatever happens."""
    state = State(
        boot=process_ids.boot(),
        ray_folder=tempfile.mkdtemp(prefix=PREFIX, dir=_temporary()),
        num_nodes=config.num_nodes,
        num_cpus=config.num_cpus,
        dashboard=dashboard,
        token=str(folder / TOKEN),
    )
    _write(folder, state, ())
    make_token(folder / TOKEN)
    (Path(state.ray_folder) / "ray").mkdir()
    return state


def _wait(folder: Path, done: Callable[[], bool], last_s: float) -> None:
    """Wait until `done`; LocalClusterError when a node that has begun ends, or the time is over."""
    while not done():
        nodes = _nodes(folder)
        dead = [node for node in nodes if node.leader is not None and not node.alive]
        late = time.monotonic() > last_s
        if dead or late:
            node = (dead or nodes)[-1]
            cause = "did not answer in time" if late else "ended"
            raise LocalClusterError(
                f"{node.name} {cause}: {ray_node.complaint(node.folder) or 'it said nothing'}; "
                "next: kinoray doctor, or a larger timeout_s"
            )
        time.sleep(POLL_S)


def _look(folder: Path) -> Found | None:
    state = _read(folder)
    if state is None:
        return None
    nodes = _nodes(folder) if state.boot == process_ids.boot() else ()
    token = ""
    with contextlib.suppress(OSError):
        token = Path(state.token).read_text()
    code, _ = ray_node.answer(state.dashboard, "/api/version") if nodes else (0, None)
    counted = ray_node.living(state.dashboard, token) if code else []
    return Found(
        state=state, nodes=nodes, without_token=str(code or "no answer"), counted=len(counted)
    )


def _agree(state: State, config: Local) -> None:
    asked = (config.num_nodes, config.num_cpus)
    if (state.num_nodes, state.num_cpus) != asked:
        raise LocalClusterError(
            f"a cluster of {state.num_nodes} nodes with {state.num_cpus} CPUs each is up in {config.folder}; "
            f"next: kinoray cluster down folder={config.folder}, or another folder"
        )


def _broken(found: Found) -> str:
    dead = [node.name for node in found.nodes if not node.alive]
    if dead:
        return f"{', '.join(dead)} of {found.state.num_nodes} nodes is dead"
    if found.without_token != "401":
        return f"a request without a token gets {found.without_token}, not 401"
    return f"the head counts {found.counted} of {found.state.num_nodes} nodes"


def _nodes(folder: Path) -> tuple[Node, ...]:
    found = (p for p in folder.glob("node-*") if p.name.removeprefix("node-").isdigit())
    return tuple(map(ray_node.read, sorted(found, key=lambda p: int(p.name.removeprefix("node-")))))


def _remove(folder: Path) -> None:
    """End what lives of a cluster, workers before their head, and take its files away; the state goes last."""
    state, nodes = _read(folder), _nodes(folder)
    if state is None:
        return
    if state.boot == process_ids.boot():
        leaders = [node.leader for node in nodes if node.leader is not None]
        process_ids.end(leaders[1:], patience_s=PATIENCE_S)
        process_ids.end(leaders[:1], patience_s=PATIENCE_S)
    shutil.rmtree(state.ray_folder, ignore_errors=True)
    for node in nodes:
        for name in (ray_node.PROCESS, f"{ray_node.PROCESS}.new", ray_node.LOG):
            (node.folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what a job wrote there stays
            node.folder.rmdir()
    (folder / TOKEN).unlink(missing_ok=True)
    (folder / STATE).unlink()


def _temporary() -> str:
    folder = tempfile.gettempdir()
    return folder if len(folder) <= MAX_TEMPORARY_CHARS else "/tmp"


def _write(folder: Path, state: State, nodes: tuple[Node, ...]) -> None:
    leaders = [asdict(node.leader) for node in nodes if node.leader]
    fresh = folder / f"{STATE}.new"
    fresh.write_text(json.dumps({**asdict(state), "nodes": leaders}, indent=1))
    fresh.replace(folder / STATE)


def _read(folder: Path) -> State | None:
    try:
        told: dict[str, Any] = json.loads((folder / STATE).read_text())
    except FileNotFoundError:
        return None
    told.pop("nodes")
    return State(**told)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other commands off the folder; LocalClusterError when one is at work there."""
    folder.mkdir(parents=True, exist_ok=True)
    itself = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(itself, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(itself)
        raise LocalClusterError(
            f"another kinoray cluster command is at work in {folder}; next: wait for it"
        ) from None
    try:
        yield
    finally:
        os.close(itself)
