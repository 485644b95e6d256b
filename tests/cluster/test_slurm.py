"""The batch script is run: with stand-ins for Slurm's commands that start real Ray nodes, and against a clock that runs out."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster import process_ids, render, shapes
from cluster.environment import CHECKOUT
from ingest.store import Dataset

# Starts the command on as many "nodes" as it is told, each a session of its own, and hands SIGTERM on to them as srun does.
SRUN = """
import json, os, signal, subprocess, sys
from pathlib import Path
words = sys.argv[1:]
options = [word for word in words if word.startswith("--") and "=" in word]
number = next(int(word.partition("=")[2]) for word in options if word.startswith("--ntasks="))
run, log = Path(os.environ["KINORAY_RUN"]), Path(os.environ["TEST_LOG"])
token = run / "token"
told = {"mode": oct(token.stat().st_mode & 0o777), "token": token.read_text(), "options": options}
nodes = []
for rank in range(number):
    own = {**os.environ, "SLURM_PROCID": str(rank)}
    if rank:  # another machine has another /tmp
        own["RAY_TMPDIR"] += f"-{rank}"
    nodes.append(subprocess.Popen(words[len(options):], env=own, start_new_session=True))
log.write_text(json.dumps({**told, "nodes": [node.pid for node in nodes]}))
def hand_on(number, frame):
    for node in nodes:
        if node.poll() is None:
            os.killpg(node.pid, number)
signal.signal(signal.SIGTERM, hand_on)
sys.exit(max(node.wait() for node in nodes))
"""
# Ray, but: other Ray on this machine is nobody's business, the second node takes itself for another machine, ports are its own,
# and `ray stop` ends this node's processes instead of every Ray on the machine.
RAY = """
import os, sys
import psutil
from cluster import ray_node
what, rest = sys.argv[1], sys.argv[2:]
if what == "symmetric-run":
    from ray.scripts import symmetric_run
    symmetric_run.check_ray_already_started = lambda: False
    if os.environ["SLURM_PROCID"] != "0":
        psutil.net_if_addrs = dict
    symmetric_run.symmetric_run()
elif what == "start":
    *ports, dashboard = ray_node.free_ports(5)
    words = ray_node.words(num_cpus=1, object_store_bytes=80 << 20, ports=ports)[1:]
    head = [f"--dashboard-port={dashboard}"] if "--head" in rest else []
    os.execv(sys.executable, [sys.executable, "-m", "ray.scripts.scripts", "start", *rest, *head, *words])
elif what == "stop":
    above = {process.pid for process in psutil.Process().parents()} | {os.getpid()}
    own = [p for p in psutil.process_iter() if p.pid not in above and os.getsid(p.pid) == os.getsid(0)]
    for process in own:
        process.terminate()
    for process in psutil.wait_procs(own, timeout=5)[1]:
        process.kill()
"""
SCONTROL = """
import os, sys
from pathlib import Path
with Path(os.environ["TEST_LOG"]).with_name("scontrol").open("a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
"""
# `ray symmetric-run ... -- command`, without Ray.
ONLY_THE_COMMAND = """
import os, sys
words = sys.argv[sys.argv.index("--") + 1:]
os.execvp(words[0], words)
"""
# A verb that takes its time to save.
SAVES = """
import signal, sys, time
from pathlib import Path
folder = Path(sys.argv[2])
def save(number, frame):
    time.sleep(1.0)
    (folder / "saved").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
(folder / "begun").touch()
while not (folder / "finish").exists():
    time.sleep(0.05)
"""
IGNORES = SAVES.replace("time.sleep(1.0)", "return")
NOT_AT_ALL = "import sys"


class Job:
    """The rendered script with stand-ins before everything else on its PATH."""

    def __init__(self, folder: Path, commands: dict[str, str], **keys) -> None:
        self.folder = folder
        self.number = str(os.getpid())
        programs = folder / "venv" / "bin"
        programs.mkdir(parents=True)
        for name, text in {"srun": SRUN, "scontrol": SCONTROL, **commands}.items():
            (programs / name).write_text(f"#!{sys.executable}\n{text}")
            (programs / name).chmod(0o755)
        keys = {"storage": str(folder), "venv": str(folder / "venv"), "cpus_per_node": 1, **keys}
        made = render.slurm(shapes.Slurm(**keys))
        self.script = folder / "kinoray.sbatch"
        self.script.write_text(made.files["kinoray.sbatch"])
        environment = {
            **os.environ,
            "SLURM_JOB_ID": self.number,
            "TEST_LOG": str(folder / "srun"),
            "PYTHONPATH": str(CHECKOUT),
        }
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["bash", str(self.script)],
                env=environment,
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def told(self):
        return json.loads((self.folder / "srun").read_text())

    def said(self) -> str:
        return self.log.read_text()

    def requeued(self) -> list[str]:
        path = self.folder / "scontrol"
        return path.read_text().splitlines() if path.exists() else []

    def left(self) -> list[str]:
        """What there still is of the job: processes and folders."""
        sessions = [self.process.pid, *self.told()["nodes"]]
        own = [p for p in process_ids.everybody() if p.session in sessions and not p.ended]
        folders = [*self.folder.glob(".slurm-*"), *Path("/tmp").glob(f"kray-{self.number}*")]
        return [*(f"process {p.pid}" for p in own), *map(str, folders)]

    def end(self) -> None:
        """Whatever a test left, by the sessions that this job began."""
        pids = [
            self.process.pid,
            *(self.told()["nodes"] if (self.folder / "srun").exists() else []),
        ]
        for process in psutil.process_iter():
            if os.getsid(process.pid) in pids:
                process.kill()
        self.process.wait(10)


@pytest.fixture
def job(tmp_path):
    begun = []

    def begin(commands, **keys):
        begun.append(Job(tmp_path, commands, **keys))
        return begun[-1]

    yield begin
    for one in begun:
        one.end()


def eventually(check, timeout_s: float = 20.0) -> None:
    last_s = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < last_s, "it never came"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "keys", [{}, {"gpus_per_node": 8, "accelerator": "H100", "partition": "gpu", "account": "lab"}]
)
def test_bash_reads_it(tmp_path, keys):
    shape = shapes.Slurm(command="run /s/chain.toml", storage="/s", venv="/s/venv", **keys)
    text = render.slurm(shape).files["kinoray.sbatch"]
    script = tmp_path / "kinoray.sbatch"
    script.write_text(text)
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = [line for line in text.splitlines() if line.startswith("#SBATCH ")]
    for line in ("--requeue", "--exclusive", "--signal=B:USR1@300", "--nodes=2", "--time=04:00:00"):
        assert f"#SBATCH {line}" in lines
    assert any("--gpus-per-node" in line for line in lines) == bool(keys)
    # Slurm reads no #SBATCH line after the first command.
    assert text.rindex("#SBATCH") < text.index("set -uo")


@pytest.mark.ray
@pytest.mark.clusters
def test_two_nodes_curate_and_nothing_is_left(tmp_path, tiny_videos, job):
    """Ray's own `symmetric-run` starts both nodes here: the stand-ins give the second one ports and a /tmp of its own."""
    recipe = tmp_path / "curate.toml"
    shutil.copy(CHECKOUT / "jobs" / "recipes" / "curate.toml", recipe)
    videos = tmp_path / "videos"
    shutil.copytree(tiny_videos, videos)
    out = tmp_path / "dataset"
    ours = "import runpy\nrunpy.run_module('jobs', run_name='__main__')"
    one = job({"ray": RAY, "kinoray": ours}, command=f"curate {recipe} source={videos} out={out}")
    assert one.process.wait(300) == 0, one.said()[-3000:]
    found = Dataset.open(out)
    assert found.balance().ok
    assert found.query("SELECT count(DISTINCT source_uri) AS n FROM ledger").to_pylist() == [
        {"n": 3}
    ]
    assert one.told()["mode"] == "0o600"
    assert len(one.told()["token"]) == 64
    assert one.told()["token"] not in one.said()
    assert "On worker node" in one.said()
    assert one.requeued() == []
    eventually(lambda: one.left() == [], 30)


def test_before_its_time_is_over_it_saves_and_is_queued_again(tmp_path, job):
    one = job({"ray": ONLY_THE_COMMAND, "kinoray": SAVES}, command=f"train {tmp_path}", num_nodes=1)
    eventually((tmp_path / "begun").exists)
    one.process.send_signal(signal.SIGUSR1)
    assert one.process.wait(20) == 0, one.said()
    assert (tmp_path / "saved").exists()
    assert one.requeued() == [f"requeue {one.number}"]
    eventually(lambda: one.left() == [], 30)


def test_a_verb_that_does_not_save_in_time_is_queued_again_all_the_same(tmp_path, job):
    keys = {"command": f"train {tmp_path}", "num_nodes": 1, "checkpoint_s": 1}
    one = job({"ray": ONLY_THE_COMMAND, "kinoray": IGNORES}, **keys)
    eventually((tmp_path / "begun").exists)
    one.process.send_signal(signal.SIGUSR1)
    eventually(lambda: one.requeued() == [f"requeue {one.number}"])


def test_a_verb_that_ends_in_the_last_minutes_is_not_queued_again(tmp_path, job):
    one = job(
        {"ray": ONLY_THE_COMMAND, "kinoray": IGNORES}, command=f"train {tmp_path}", num_nodes=1
    )
    eventually((tmp_path / "begun").exists)
    one.process.send_signal(signal.SIGUSR1)
    (tmp_path / "finish").touch()
    assert one.process.wait(20) == 0, one.said()
    assert one.requeued() == []


def test_the_exit_status_is_the_verbs(job):
    one = job(
        {"ray": ONLY_THE_COMMAND, "kinoray": "import sys; sys.exit(3)"},
        command="run /x",
        num_nodes=1,
    )
    assert one.process.wait(20) == 3, one.said()


def test_ray_that_does_not_start_is_a_failure(job):
    """`ray symmetric-run` ends with 0 then."""
    one = job({"ray": NOT_AT_ALL}, command="run /x", num_nodes=1)
    assert one.process.wait(20) == 1
    assert "next:" in one.said()
