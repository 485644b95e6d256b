"""The embedded raylet killed under running work: the run ends at once with a sentence, not after minutes."""

import os
import subprocess
import sys
import textwrap

import pytest

from tests.pipelines.conftest import CHECKOUT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

SCRIPT = """
import time
import psutil
from cluster import raylet
from cluster.interrupt import Interrupt
from cluster.pool import Pool, Unit, run_tasks
from cluster.session import Cluster, session

def work(number):
    time.sleep(0 if number == 0 else 600)
    return number

with session(Cluster(num_cpus=2)):
    assert not raylet.lost()
    units = (Unit(key=str(n), payload=n) for n in range(3))
    outcomes = run_tasks(work, units, config=Pool(), stop=Interrupt())
    print("done", next(outcomes).value)
    own = next(c for c in psutil.Process().children() if c.name() == "raylet")
    own.kill()
    died_s = time.monotonic()
    try:
        next(outcomes)
    except raylet.RayletLost as error:
        print("lost", error)
closed_s = time.monotonic() - died_s
assert not raylet.lost(), "a closed session has nothing to lose"
print("closed", closed_s < 30, closed_s)
"""


def test_a_dead_raylet_ends_the_run_with_a_next_step(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        cwd=tmp_path,
        env={**_environment(), "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout.splitlines()
    assert said[0] == "done 0"
    assert said[1].startswith("lost ")
    assert "next: the same command again" in said[1]
    assert said[2].startswith("closed True"), said[2]


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
