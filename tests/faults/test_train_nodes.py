"""`make faults`: two raylets on this machine, one killed in a training; it goes on elastically, or resumes on a new one."""

import itertools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from models import checkpoint
from tests.faults.train_kills import reached
from tests.pipelines.conftest import CHECKOUT

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(1800)]

# The head and one more node, one CPU each; a line on standard input kills that one (with -9), says that it will be
# taken away in 40 s, or adds another.
NODES = """
import subprocess
import sys
from ray.cluster_utils import Cluster

store = 90 << 20
cluster = Cluster(initialize_head=True, head_node_args={
    "num_cpus": 1, "object_store_memory": store, "include_dashboard": False})
node = cluster.add_node(num_cpus=1, object_store_memory=store)
print(cluster.address, flush=True)
for line in sys.stdin:
    if line.strip() == "kill":
        cluster.remove_node(node, allow_graceful=False)
    elif line.strip() == "drain":
        subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", cluster.address,
            "--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
            "--deadline-remaining-seconds", "40"], check=True, stdout=subprocess.DEVNULL)
    elif line.strip() == "add":
        node = cluster.add_node(num_cpus=1, object_store_memory=store)
    print("done", flush=True)
cluster.shutdown()
"""
RECIPE = """
verb = "train"
role = "base"
dataset = "{dataset}"
out = "{out}"
steps = {steps}
global_batch = 2
frames = 2
num_workers = 2
min_workers = {least}
checkpoint_every = {every}
model = {{sample_px = 16, widths = [8, 16], temporal_factor = [2], text_dim = 16, head_dim = 8}}
"""
STEPS, EVERY = 60, 5


class Nodes:
    """Two nodes of our own; `say` kills or adds one."""

    def __init__(self, process: "subprocess.Popen[str]", environment: dict[str, str]) -> None:
        self.process, self.environment = process, environment
        self.address = self._line()
        assert self.address, "the cluster did not start"

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        assert self._line() == "done"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def nodes(folder: Path) -> Iterator[Nodes]:
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    short = Path("/tmp") / f"kn{os.getpid()}"  # Unix sockets have short names
    (short / "ray").mkdir(parents=True)  # where Ray notes the address of its newest cluster
    own = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(CHECKOUT),
    }
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", NODES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**own, "RAY_TMPDIR": str(short)},
    )
    try:
        yield Nodes(process, own)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()
        shutil.rmtree(short, ignore_errors=True)


def started(
    folder: Path, name: str, cluster: Nodes, tiny, **keys: int
) -> "subprocess.Popen[bytes]":
    recipe = folder / f"{name}.toml"
    told = {"dataset": tiny.root, "out": folder / name, "steps": STEPS, "every": EVERY, **keys}
    recipe.write_text(RECIPE.format(**told))
    words = ["train", str(recipe), "--address", cluster.address]
    with (folder / f"{name}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", *words],
            cwd=folder,
            env=cluster.environment,
            stdout=log,
            stderr=log,
        )


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def steps(folder: Path) -> list[dict[str, Any]]:
    return [e for e in events(folder) if e["event"] == "step"]


@pytest.mark.parametrize("least", [1, 2])
def test_a_lost_node_costs_no_more_than_the_steps_since_the_last_checkpoint(tiny, tmp_path, least):
    with nodes(tmp_path) as cluster:
        began_s = time.time()
        calm = started(tmp_path, "calm", cluster, tiny, least=least)
        assert calm.wait(600) == 0, (tmp_path / "calm.log").read_text()[-3000:]
        whole = steps(tmp_path / "calm")
        cold_s = whole[0]["time"] - began_s
        run = started(tmp_path, "out", cluster, tiny, least=least)
        while reached(tmp_path / "out" / "events.jsonl", 0) < 2 * EVERY + 3:
            assert run.poll() is None, (tmp_path / "out.log").read_text()[-3000:]
            time.sleep(0.02)
        cluster.say("kill")
        if least == 2:
            cluster.say("add")
        assert run.wait(900) == 0, (tmp_path / "out.log").read_text()[-3000:]
    found = steps(tmp_path / "out")
    numbers = [step["step"] for step in found]
    again = len(numbers) - len(set(numbers))
    assert set(numbers) == set(range(1, STEPS + 1))
    assert again <= 2 * EVERY  # the newest checkpoint may have been on its way
    # what was lost is as long as a gap between two steps
    gap_s = max(b["time"] - a["time"] for a, b in itertools.pairwise(found))
    print(f"cold start {cold_s:.1f} s, gap {gap_s:.1f} s, {again} steps again")  # noqa: T201  a figure for the note
    assert gap_s < 3 * cold_s
    losses = {step["step"]: step["loss"] for step in found}
    assert losses == pytest.approx({s["step"]: s["loss"] for s in whole}, rel=1e-3)
    metas = [checkpoint.load(tmp_path / name / "checkpoint", groups=()).meta for name in ("calm", "out")]  # fmt: skip
    assert metas[0]["loss_last"] == pytest.approx(metas[1]["loss_last"], rel=1e-2)


def test_a_node_that_will_be_taken_away_is_saved_from_before_it_goes(tiny, tmp_path):
    many = 100_000  # it is stopped long before, and saves nothing by itself
    with nodes(tmp_path) as cluster:
        run = started(tmp_path, "out", cluster, tiny, least=1, steps=many, every=many)
        log = tmp_path / "out" / "events.jsonl"
        while reached(log, 0) < 5:
            assert run.poll() is None, (tmp_path / "out.log").read_text()[-3000:]
            time.sleep(0.02)
        cluster.say("drain")
        last_s = time.monotonic() + 300
        while not any(
            "started again with 1 workers" in e.get("text", "") for e in events(tmp_path / "out")
        ):
            assert run.poll() is None, (tmp_path / "out.log").read_text()[-3000:]
            assert time.monotonic() < last_s, (tmp_path / "out.log").read_text()[-3000:]
            time.sleep(0.2)
        before = reached(log, 0)
        while reached(log, 0) < before + 5:
            assert time.monotonic() < last_s, (tmp_path / "out.log").read_text()[-3000:]
            time.sleep(0.2)
        run.send_signal(signal.SIGTERM)
        assert run.wait(120) == 130, (tmp_path / "out.log").read_text()[-3000:]
    found = events(tmp_path / "out")
    numbers = [e["step"] for e in found if e["event"] == "step"]
    again = len(numbers) - len(set(numbers))
    assert set(numbers) == set(range(1, max(numbers) + 1))
    print(f"{again} of {before} steps again")  # noqa: T201  a figure for the note
    assert again < before // 4
