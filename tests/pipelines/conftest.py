"""One whole chain for this room, run as a user runs it: in a process of its own, with its own Ray."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.interrupt import Interrupt
from cluster.session import Cluster
from cluster.tracking import Tracker, embedded_uri
from pipelines import sample
from pipelines.context import Context, silent

CHECKOUT = Path(__file__).resolve().parents[2]

RECIPE = """
# Every verb on three tiny videos, a step or two each: wiring, not learning.
name = "tiny"
out = "out"
seed = 5

[steps.curate]
verb = "curate"
source = ["{videos}"]
keep = {{min_motion = 0.0, max_duplicate_frame_share = 1.0, min_luma = 0.0, min_luma_range = 0.0, max_motion = 9.0}}
prep = {{payload_short_side_px = 64}}

[steps.base]
verb = "train"
role = "base"
dataset = "@curate"
steps = 2
global_batch = 2
frames = 2
model = {{sample_px = 16, widths = [8, 16], temporal_factor = [2], text_dim = 16, head_dim = 8}}

[steps.motion]
verb = "train"
role = "motion"
dataset = "@curate"
base = "@base"
steps = 1
global_batch = 2
num_workers = 1

[steps.ssr]
verb = "train"
role = "ssr"
dataset = "@curate"
steps = 1
global_batch = 2
num_workers = 1
frames = 4
ssr = {{sample_px = 32, widths = [8, 16], text_dim = 16, head_dim = 8}}

[steps.sample]
verb = "sample"
prompts = "@curate"
max_prompts = 2
num_seeds = 2
base = "@base"
motion = "@motion"
ssr = "@ssr"
base_solver = {{steps = 2}}
ssr_solver = {{steps = 2}}

[steps.evaluate]
verb = "evaluate"
sets = ["@sample"]
reference = "@curate"
"""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors: spinning threads would only starve the other test workers."""
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Ran:
    """A finished command: its exit code, the JSON of its last line, what it said, where it worked."""

    code: int
    told: dict[str, Any]
    err: str
    folder: Path


def kinoray(folder: Path, *words: str, timeout: float = 560) -> Ran:
    """Run the command line in `folder` from the plain checkout, with nothing of it installed."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    told = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return Ran(done.returncode, told, done.stderr, folder)


@pytest.fixture(scope="session")
def chain_folder(tmp_path_factory: pytest.TempPathFactory, tiny_videos: Path) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    (folder / "tiny.toml").write_text(RECIPE.format(videos=tiny_videos))
    return folder


@pytest.fixture(scope="session")
def chain(chain_folder: Path) -> Ran:
    ran = kinoray(chain_folder, "run", "tiny.toml", "--json", "--debug")
    assert ran.code == 0, ran.err[-3000:]
    return ran


def killed_when(folder: Path, sign: str, *words: str, timeout: float = 240) -> str:
    """Run the command line and kill -9 its process as soon as it says `sign`; return what it said until then."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said, deadline_s = "", time.monotonic() + timeout
    for line in process.stderr:
        said += line
        if sign in line or time.monotonic() > deadline_s:
            break
    process.kill()
    process.wait(30)
    process.stderr.close()
    assert sign in said, said[-2000:]
    return said


@pytest.fixture
def disk_of(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Give a function that mounts a disk of so many bytes ("400k"); skipped where this user may not."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if (
            os.geteuid() != 0
            or subprocess.run(command, capture_output=True, check=False).returncode
        ):
            pytest.skip("mounting a small disk needs root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def run_sample(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., sample.Result]:
    """Give a function that makes the set of a config in the session's own Ray; a warning is a failure."""
    tracked = tmp_path_factory.mktemp("tracked")

    def run(config: sample.Config, *, verify: bool = False) -> sample.Result:
        tracker = Tracker(embedded_uri(tracked), spool=tracked / "spool", warn=pytest.fail)
        context = Context(
            cluster=Cluster(),
            tracker=tracker,
            stop=Interrupt(),
            show=silent,
            resume=True,
            verify=verify,
            _started=[True],
        )
        return sample.run(config, context=context)

    return run
