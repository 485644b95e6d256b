"""The demo's promises on trained weights (`make trained`), each with its negative control.

The trained run is kept under .kinoray/trained, named by a digest of the code and the recipe that made it, so that a second
call measures without training again.
"""

import hashlib
from pathlib import Path

import pytest

from tests.pipelines.conftest import CHECKOUT, Ran, kinoray

RECIPE = CHECKOUT / "jobs" / "recipes" / "demo.toml"
pytestmark = [pytest.mark.trained, pytest.mark.ray, pytest.mark.timeout(3600)]

UNTRAINED = """
name = "untrained"
out = "{out}"
seed = 7
[steps.base]
verb = "train"
role = "base"
dataset = "{dataset}"
steps = 1
global_batch = 2
model = {{sample_px = 32, widths = [16, 32, 64], text_levels = 1}}
optimizer = {{learning_rate = 0.0, warmup_steps = 0}}
[steps.motion]
verb = "train"
role = "motion"
dataset = "{dataset}"
base = "@base"
steps = 1
global_batch = 2
optimizer = {{learning_rate = 0.0, warmup_steps = 0}}
[steps.sample]
verb = "sample"
prompts = "{dataset}"
max_prompts = 3
num_seeds = 4
base = "@base"
motion = "@motion"
base_solver = {{steps = 10}}
[steps.evaluate]
verb = "evaluate"
sets = ["@sample"]
reference = "{dataset}"
"""


def code_digest() -> str:
    whole = hashlib.sha256(RECIPE.read_bytes())
    for package in ("ingest", "models", "pipelines"):
        for path in sorted((CHECKOUT / package).rglob("*.py")):
            whole.update(path.read_bytes())
    return whole.hexdigest()[:16]


@pytest.fixture(scope="module")
def folder() -> Path:
    return CHECKOUT / ".kinoray" / "trained" / code_digest()


@pytest.fixture(scope="module")
def demo(folder: Path) -> Ran:
    ran = kinoray(CHECKOUT, "demo", f"out={folder}", "--json", timeout=1800)
    assert ran.code == 0, ran.err[-2000:]
    return ran


@pytest.mark.parametrize(("step", "most"), [("base", 0.6), ("ssr", 0.6), ("motion", 0.9)])
def test_the_loss_on_fixed_draws_falls(demo, step, most):
    told = demo.told["steps"][step]
    assert told["loss_last"] / told["loss_first"] <= most


def test_samples_look_like_their_prompts_clip(demo):
    metrics = demo.told["steps"]["evaluate"]["metrics"]
    assert metrics["nearest_of"] == 12
    assert metrics["nearest_is_own"] >= 8


@pytest.mark.usefixtures("demo")
def test_untrained_weights_do_not(folder, tmp_path):
    text = UNTRAINED.format(out=folder / "untrained", dataset=folder / "curate")
    (tmp_path / "untrained.toml").write_text(text)
    ran = kinoray(CHECKOUT, "run", str(tmp_path / "untrained.toml"), "--json", timeout=1800)
    assert ran.code == 0, ran.err[-2000:]
    for step in ("base", "motion"):
        told = ran.told["steps"][step]
        assert told["loss_last"] == pytest.approx(told["loss_first"], rel=1e-5)
    assert ran.told["steps"]["evaluate"]["metrics"]["nearest_is_own"] <= 6
