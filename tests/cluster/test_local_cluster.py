"""One cluster of two nodes for the whole file: first it is well and used, then parts of it are killed, then it is gone."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from cluster import local_cluster, process_ids, ray_node
from cluster.environment import CHECKOUT
from cluster.local_cluster import Local, LocalClusterError

pytestmark = [pytest.mark.ray, pytest.mark.clusters]
STORE_BYTES = 80 << 20
# What a person's own driver sees of it.
DRIVER = """
import json, os, sys
import ray
from cluster.session import Cluster, session
with session(Cluster(address=sys.argv[1])):
    @ray.remote(num_cpus=1)
    def where():
        import time
        import ingest.clip
        time.sleep(1.0)
        return ray.get_runtime_context().get_node_id()
    print(json.dumps(ray.get([where.remote(), where.remote()])))
"""


def eventually(check, timeout_s: float = 30.0) -> None:
    last_s = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < last_s, "it never came"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return Local(
        folder=tmp_path_factory.mktemp("local") / "cluster", object_store_bytes=STORE_BYTES
    )


@pytest.fixture(scope="module")
def cluster(config):
    found, already = local_cluster.up(config)
    assert not already
    yield found
    local_cluster.down(config.folder)


def test_it_is_whole_and_shut(config, cluster):
    assert cluster.well
    assert cluster.without_token == "401"
    assert cluster.state.dashboard.startswith("http://127.0.0.1:")
    token = Path(cluster.state.token)
    assert token.stat().st_mode & 0o777 == 0o600
    told = json.loads((config.folder / local_cluster.STATE).read_text())
    assert [node["pid"] for node in told["nodes"]] == [node.leader.pid for node in cluster.nodes]
    assert token.read_text() not in json.dumps(told)
    logs = "".join((node.folder / ray_node.LOG).read_text() for node in cluster.nodes)
    assert token.read_text() not in logs


def test_up_again_starts_nothing(config, cluster):
    again, already = local_cluster.up(config)
    assert already
    assert again.nodes == tuple(ray_node.read(node.folder) for node in cluster.nodes)
    other = Local(folder=config.folder, num_nodes=3)
    with pytest.raises(
        LocalClusterError, match=r"2 nodes with 1 CPUs each is up.*next: kinoray cluster down"
    ):
        local_cluster.up(other)


def test_a_driver_with_the_token_works_on_both_nodes(cluster):
    environment = {
        **os.environ,
        "PYTHONPATH": str(CHECKOUT),
        "RAY_AUTH_TOKEN_PATH": cluster.state.token,
    }
    environment = {k: v for k, v in environment.items() if k != "RAY_AUTH_MODE"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, cluster.state.address],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(set(json.loads(done.stdout.splitlines()[-1]))) == 2


def test_a_job_finds_the_cluster_that_it_runs_in(cluster, tiny_videos, tmp_path):
    """What our RayJob's entrypoint does: the verb as a Ray job on the head, with `--address auto`."""
    recipe = CHECKOUT / "jobs" / "recipes" / "curate.toml"
    words = f"curate {recipe} source={tiny_videos} out={tmp_path / 'dataset'} --address auto --json"
    body = json.dumps({"entrypoint": f"cd {tmp_path} && {sys.executable} -m jobs {words}"}).encode()
    token = Path(cluster.state.token).read_text()
    request = urllib.request.Request(
        f"{cluster.state.dashboard}/api/jobs/", body, {"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        job = json.loads(response.read())["submission_id"]

    def ended():
        _, told = ray_node.answer(cluster.state.dashboard, f"/api/jobs/{job}", token)
        return told["status"] in {"SUCCEEDED", "FAILED", "STOPPED"} and told

    eventually(ended, 120)
    _, logs = ray_node.answer(cluster.state.dashboard, f"/api/jobs/{job}/logs", token)
    assert ended()["status"] == "SUCCEEDED", logs["logs"][-3000:]
    result = json.loads(logs["logs"].splitlines()[-1])
    assert result["status"] == "done"


def test_two_commands_do_not_meet_in_a_folder(config, cluster):  # noqa: ARG001
    with (
        local_cluster._locked(config.folder),
        pytest.raises(LocalClusterError, match="another kinoray cluster command"),
    ):
        local_cluster.down(config.folder)


def test_a_lost_node_is_told_and_down_ends_the_rest(config, cluster):
    leaders = [node.leader for node in cluster.nodes]
    everything = [process for leader in leaders for process in process_ids.members(leader)]
    assert len(everything) > 10
    node = cluster.nodes[1].leader
    raylet = next(
        p
        for p in process_ids.members(node)
        if Path(f"/proc/{p.pid}/comm").read_text().strip() == "raylet"
    )
    os.kill(raylet.pid, signal.SIGKILL)
    eventually(lambda: not local_cluster.status(config.folder).nodes[1].alive)
    found = local_cluster.status(config.folder)
    assert not found.well
    assert found.nodes[0].alive
    with pytest.raises(
        LocalClusterError, match=r"node-1 of 2 nodes is dead; next: kinoray cluster down"
    ):
        local_cluster.up(config)
    # Its head dies too, and nobody ends its children in the usual way.
    os.kill(leaders[0].pid, signal.SIGKILL)
    (config.folder / "node-0" / "notes.txt").write_text("somebody else's")
    assert local_cluster.down(config.folder) == 2
    assert not [p for p in everything if process_ids.alive(p)]
    assert not Path(cluster.state.ray_folder).exists()
    left = [str(p.relative_to(config.folder)) for p in config.folder.rglob("*") if p.is_file()]
    assert left == ["node-0/notes.txt"]
    assert local_cluster.status(config.folder) is None
    assert local_cluster.down(config.folder) in {0, 1}


def test_down_ends_what_a_killed_up_had_begun(tmp_path):
    folder = tmp_path / "cluster"
    begun = folder / "node-0" / ray_node.PROCESS
    words = [
        "cluster",
        "up",
        f"folder={folder}",
        "num_nodes=1",
        f"object_store_bytes={STORE_BYTES}",
    ]
    up = subprocess.Popen(
        [sys.executable, "-m", "jobs", *words], cwd=CHECKOUT, stderr=subprocess.DEVNULL
    )
    eventually(begun.exists)
    up.kill()
    up.wait(10)
    leader = ray_node.read(folder / "node-0").leader
    eventually(lambda: len(process_ids.members(leader)) > 2)
    ray_folder = Path(json.loads((folder / local_cluster.STATE).read_text())["ray_folder"])
    assert local_cluster.status(folder).state.address == ""
    with pytest.raises(LocalClusterError, match="next: kinoray cluster down"):
        local_cluster.up(Local(folder=folder))
    assert local_cluster.down(folder) == 1
    assert process_ids.members(leader) == []
    assert not folder.exists()
    assert not ray_folder.exists()


def test_after_a_reboot_nothing_is_ended(tmp_path):
    """The ids of another boot may be anybody's: here they are this test's own."""
    folder = tmp_path / "cluster"
    (folder / "node-0").mkdir(parents=True)
    sleeper = subprocess.Popen(["sleep", "60"], start_new_session=True)
    (folder / "node-0" / ray_node.PROCESS).write_text(Path(f"/proc/{sleeper.pid}/stat").read_text())
    gone = tmp_path / "ray"
    state = local_cluster.State(
        boot="another",
        ray_folder=str(gone),
        num_nodes=1,
        num_cpus=1,
        dashboard="http://127.0.0.1:9",
        token="none",
    )
    local_cluster._write(folder, state, ())
    assert local_cluster.status(folder).nodes == ()
    assert local_cluster.down(folder) == 1
    assert sleeper.poll() is None
    sleeper.kill()
    sleeper.wait(10)


def test_a_head_that_does_not_start_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(LocalClusterError, match=r"node-0 ended: it said nothing; next:"):
        local_cluster.up(Local(folder=tmp_path / "cluster"))
    assert local_cluster.down(tmp_path / "cluster") == 0
    assert list(tmp_path.iterdir()) == []


def test_ports_are_free_and_outside_rays_own():
    found = ray_node.free_ports(20)
    assert len(set(found)) == 20
    assert all(20000 <= port < 32000 for port in found)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"num_nodes": 0, "num_cpus": 0}, r"num_nodes: .*; num_cpus: "),
        ({"object_store_bytes": 1}, "object_store_bytes"),
        ({"timeout_s": float("nan")}, "timeout_s"),
    ],
)
def test_settings_are_checked(keys, said):
    with pytest.raises(ValueError, match=said):
        Local(**keys)
