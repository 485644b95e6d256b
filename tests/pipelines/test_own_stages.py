"""Stages from somebody's own wheel, found by PYTHONPATH alone; and a kill -9 in the middle of their work."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from ingest.store import Dataset
from tests.pipelines.made_clips import made_clips

pytestmark = pytest.mark.ray
CHECKOUT = Path(__file__).resolve().parents[2]
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "lab-stages"
version = "1.0"
[tool.hatch.build.targets.wheel]
packages = ["lab_stages"]
"""
STAGES = '''
"""One of each kind, as a lab would write them against ingest.stage."""

import time
from pathlib import Path

import numpy as np

from ingest.stage import Needs, Objection, ScoreFact


class Slow:
    """Says how bright a clip is, and writes down that it was asked."""

    name, version = "slow", "v1"
    needs = Needs(frames=1, batch_clips=1)

    def __init__(self, log: str = "", pause_s: float = 0.0, prompt: str = "grey {}") -> None:
        self.log, self.pause_s, self.prompt = log, pause_s, prompt

    def settings(self):
        return {"prompt": self.prompt}

    def __call__(self, clips):
        for clip in clips:
            if self.log:
                with Path(self.log).open("a") as file:
                    file.write(clip.clip_id + chr(10))
            time.sleep(self.pause_s)
        return [self.prompt.format(round(float(clip.frames_THWC.mean()))) for clip in clips]


class Contrast:
    name, version = "contrast", "v1"
    scores = (ScoreFact(name="contrast", unit="grey level", range="[0, 128]", direction="higher"),)

    def settings(self):
        return {}

    def __call__(self, clips):
        return [{"contrast": float(np.std(clip.frames_THWC))} for clip in clips]


class Means:
    """An embedder: the mean colour, as a vector of length 1."""

    name, version = "means", "v1"
    needs = Needs(frames=2, costly=True, memory_bytes=1 << 20)

    def settings(self):
        return {}

    def __call__(self, clips):
        means = [clip.frames_THWC.mean(axis=(0, 1, 2)) + 1 for clip in clips]
        return [(mean / np.linalg.norm(mean)).astype(np.float32) for mean in means]


class Redness:
    """A scorer that reads stored embeddings, and no frames."""

    name, version = "redness", "v1"
    needs = Needs(frames=0, embedding=True)
    scores = (ScoreFact(name="redness", unit="1", range="[0, 1]", direction="higher"),)

    def settings(self):
        return {}

    def __call__(self, clips):
        return [{"redness": float(clip.facts["embedding"][0])} for clip in clips]


class Jumps:
    name, version = "jumps", "v1"

    def __init__(self, levels: float = 20.0) -> None:
        self.levels, self.before = levels, None

    def settings(self):
        return {"levels": self.levels}

    def look(self, small_HW, at_s):
        now, before = small_HW.astype(float), self.before
        self.before = now
        return [before is not None and bool(abs(now - before).mean() > self.levels)]

    def end(self):
        return []


class Lively:
    name, version, needs_scores = "lively", "v1", ("motion",)

    def settings(self):
        return {}

    def __call__(self, rows):
        return [None if (row["motion"] or 0.0) > 0.01 else Objection(score=row["motion"]) for row in rows]
'''
RUN = """
import json, sys
from cluster.session import Cluster
from ingest.caption import Captions
from ingest.conformance import check
from ingest.scorers import Scorers
from ingest.stage import load
from ingest.store import Dataset
from pipelines.annotate import annotate
from pipelines.captioners import passes_of
from pipelines.identity import plain
from tests.pipelines.made_clips import Heard, surroundings

root, keys = sys.argv[1], json.loads(sys.argv[2])
kinds = {"captioner": "Slow", "scorer": "Contrast", "shot_detector": "Jumps", "keep_rule": "Lively", "embedder": "Means"}
problems = {kind: check(kind, load(f"lab_stages:{name}", {}, kind)) for kind, name in kinds.items()}
captions = Captions(captioners=({"use": "lab_stages:Slow", **keys},))
own = [{"use": f"lab_stages:{name}"} for name in ("Contrast", "Redness", "Means")]
passes = passes_of(captions, Scorers(scorers=tuple(own[:2]), embedder=own[2]))
around = surroundings(ray_is_open=False, cluster=Cluster(num_cpus=2, object_store_bytes=80 << 20))
with around._exits:
    told = annotate(Dataset.open(root), passes, context=around, recorder=Heard())
print(json.dumps({"told": plain(told), "problems": problems}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the wheel installed in it, that nothing else knows of."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "src" / "lab_stages").mkdir(parents=True)
    (folder / "src" / "pyproject.toml").write_text(PROJECT)
    (folder / "src" / "lab_stages" / "__init__.py").write_text(STAGES)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", "dist", "./src"]
    subprocess.run([*pip, *build], cwd=folder, check=True, timeout=120)
    (wheel,) = folder.glob("dist/*.whl")
    install = ["install", "--no-deps", "--no-index", "--target", "site", str(wheel)]
    subprocess.run([*pip, *install], cwd=folder, check=True, timeout=120)
    return folder / "site"


def begun(site, root, **keys):
    path = os.pathsep.join((str(CHECKOUT), str(site)))
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(root), json.dumps(keys)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_wheel_and_a_kill(site, tmp_path):
    dataset = made_clips(tmp_path / "dataset", tmp_path / "videos", sources=4, frames=16)
    log = tmp_path / "log"
    process = begun(site, dataset.root, log=str(log), pause_s=0.8)
    try:
        deadline_s = time.monotonic() + 120
        while not dataset.captions().num_rows:
            assert process.poll() is None, process.communicate()[1][-3000:]
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
            dataset.refresh()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    time.sleep(2)  # what its workers were at ends with them
    dataset.refresh()
    before = {row["clip_id"]: row for row in dataset.captions().to_pylist()}
    assert 0 < len(before) < 8

    out, err = begun(site, dataset.root, log=str(log), pause_s=0.0).communicate(timeout=200)
    told = json.loads(out.splitlines()[-1]) if out else pytest.fail(err[-3000:])
    assert not any(told["problems"].values())
    means, slow, contrast, redness = told["told"]
    assert (means["unchanged"], redness["made"]) == (8, 8)
    assert (slow["unchanged"], slow["made"]) == (len(before), 8 - len(before))
    assert contrast["made"] == 8
    dataset = Dataset.open(dataset.root)
    rows = dataset.captions().to_pylist()
    assert len(rows) == len({row["clip_id"] for row in rows}) == 8
    assert {row["clip_id"]: row for row in rows}.items() >= before.items()
    assert all(row["contrast"] > 0 for row in dataset.kept_clips().to_pylist())
    assert all(0 < row["redness"] < 1 for row in dataset.kept_clips().to_pylist())
    asked = Counter(log.read_text().split())
    assert all(asked[clip] == 1 for clip in before)
