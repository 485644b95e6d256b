import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from cluster import session
from cluster.session import PREFIX, Cluster, ClusterUnavailable

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
# A driver as a person starts one: its own process group, our packages only through the checkout.
DRIVER = """
import json, os, sys, time
from pathlib import Path
from cluster import pool
from cluster.interrupt import Interrupt
from cluster.session import Cluster, session

folder = Path(sys.argv[1])

def look(_):
    import ingest.clip
    return ingest.clip.__file__

def die(n):
    os.kill(os.getpid(), 9)

def slow(n):
    (folder / f"begun-{n}").touch()
    time.sleep(1.5)
    return n

def run(function, count, attempts=1):
    units = (pool.Unit(key=str(i), payload=i) for i in range(count))
    config = pool.Pool(max_attempts=attempts, window=2)
    yield from pool.run_tasks(function, units, config=config, stop=stop)

with Interrupt() as stop, session(Cluster(num_cpus=2, object_store_bytes=80 << 20)):
    told = {"file": next(run(look, 1)).value, "died": next(run(die, 1)).failure.error_class}
    import psutil
    told["pids"] = [p.pid for p in psutil.Process().children(recursive=True)]
    print(json.dumps(told), flush=True)
    done = [outcome.value for outcome in run(slow, int(sys.argv[2]))]
    print(json.dumps({"done": done, "stopped": stop.requested}), flush=True)
"""


class Driver:
    """The script running in a process group and with a temporary folder of its own."""

    def __init__(self, folder: Path, temporary: Path, units: int) -> None:
        self._folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(folder), str(units)],
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("{"), self.process.communicate(timeout=60)
        self.told = json.loads(line)

    def begun(self) -> set[int]:
        return {int(path.name.removeprefix("begun-")) for path in self._folder.glob("begun-*")}


def eventually(check, timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.1)


def alive(pids: list[int]) -> list[str]:
    found = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.name())
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A short one: Ray keeps sockets in it."""
    with tempfile.TemporaryDirectory(prefix="k-", dir="/tmp") as folder:
        yield Path(folder)


def test_ctrl_c_finishes_what_is_in_flight_quietly_and_leaves_nothing(tmp_path, temporary):
    driver = Driver(tmp_path, temporary, units=40)
    eventually(driver.begun)
    os.killpg(driver.process.pid, signal.SIGINT)
    out, err = driver.process.communicate(timeout=60)
    told = json.loads(out)
    assert (driver.process.returncode, err) == (0, "")
    assert told["stopped"]
    assert set(told["done"]) == driver.begun()
    assert 1 <= len(told["done"]) <= 4
    assert driver.told["died"] == "WorkerCrashedError", "the silence was not put to the test"
    assert driver.told["file"] == str(ROOT / "ingest" / "clip.py")
    eventually(lambda: alive(driver.told["pids"]) == [])
    assert list(temporary.iterdir()) == []


def test_a_killed_driver_leaves_no_process_and_the_next_start_cleans_up(
    tmp_path, temporary, monkeypatch
):
    driver = Driver(tmp_path, temporary, units=40)
    eventually(driver.begun)
    assert alive(driver.told["pids"])
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert session.clean_stale() == [], "a living owner's folder"
    driver.process.kill()
    driver.process.communicate(timeout=60)
    eventually(lambda: not {"raylet", "gcs_server"} & set(alive(driver.told["pids"])), 10)
    eventually(lambda: not [n for n in alive(driver.told["pids"]) if "call" in n], 10)
    (left,) = temporary.glob(f"{PREFIX}*")
    assert session.clean_stale() == [left]
    assert list(temporary.iterdir()) == []
    # Ray's small agents, which run none of our code, look for their head up to a minute longer.
    left_alive = {name.removeprefix("ray::") for name in alive(driver.told["pids"])}
    assert left_alive <= {"DashboardAgent", "RuntimeEnvAgent", "python"}


def test_folders_of_others_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(session, "MAX_FOLDER_CHARS", 1000)
    (tmp_path / "other").mkdir()
    (tmp_path / f"{PREFIX}by-hand").mkdir()
    with session._folder() as mine:
        assert session.clean_stale() == []
        assert mine.exists()
    assert not mine.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"other", f"{PREFIX}by-hand"}


def test_a_long_temporary_folder_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 40)))
    assert session._temporary() == Path("/tmp")


@pytest.mark.usefixtures("ray_session")
def test_a_second_session_is_refused_and_the_first_is_shut_to_strangers():
    with (
        pytest.raises(ClusterUnavailable, match="open in this process"),
        session.session(Cluster()),
    ):
        pass
    assert os.environ["RAY_AUTH_MODE"] == "token"
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o777 == 0o600
    asked = "import ray, sys; ray.init(address=sys.argv[1], logging_level='critical')"
    address = ray.get_runtime_context().gcs_address
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-c", asked, address],
        env={**environment, "HOME": "/nonexistent", "RAY_NUM_REDIS_GET_RETRIES": "2"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9"])
def test_an_address_where_nobody_listens_is_told_at_once(address):
    started_s = time.monotonic()
    with pytest.raises(ClusterUnavailable, match=r"127.0.0.1:9.*next:"):
        session._knock(address)
    assert time.monotonic() - started_s < 10


def test_settings_are_checked():
    with pytest.raises(ValueError, match="object_store_bytes"):
        Cluster(object_store_bytes=1)
    with pytest.raises(ValueError, match="num_cpus"):
        Cluster(num_cpus=0)
    with pytest.raises(ValueError, match="address"):
        Cluster(address="")


GPUS = """
import json, os, time
from cluster import pool, session
from cluster.interrupt import Interrupt

shape = session._shape  # GPUs that need not be there: Ray counts what it is told
session._shape = lambda *given: shape(*given) | {"num_gpus": 2}

class Sees:
    def __call__(self, _):
        time.sleep(0.5)
        return os.environ.get("CUDA_VISIBLE_DEVICES", "everything")

def asked(num_gpus):
    units = (pool.Unit(key=str(i), payload=i) for i in range(4))
    config = pool.Pool(num_gpus=num_gpus)
    told = pool.run_actors(Sees, (), units, num_actors=2, config=config, stop=stop)
    return sorted({outcome.value for outcome in told})

cluster = session.Cluster(num_cpus=2, object_store_bytes=80 << 20)
with Interrupt() as stop, session.session(cluster):
    print(json.dumps([asked(0.0), asked(1.0), asked(0.0)]))
"""


def test_who_asks_for_no_gpu_sees_none(tmp_path):
    """And those that ask for one each see different ones."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    environment |= {"CUDA_VISIBLE_DEVICES": "4,7"}
    done = subprocess.run(
        [sys.executable, "-c", GPUS],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [[""], ["4", "7"], [""]]
