"""The verb under real Ray Train: a killed worker, errors that last, warnings and samples on the record."""

import json
from pathlib import Path
from typing import Any

import pytest

from models import checkpoint
from tests.faults.train_kills import killed_at_step
from tests.pipelines.conftest import kinoray

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

RECIPE = """
verb = "train"
role = "base"
dataset = "{dataset}"
out = "out"
steps = 6
global_batch = 2
frames = 2
num_workers = 2
checkpoint_every = 2
caption_dropout = 0.2
model = {{sample_px = 16, widths = [8, 16], temporal_factor = [2], text_dim = 16, head_dim = 8}}
"""


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    (tmp_path / "train.toml").write_text(RECIPE.format(dataset=tiny.root))
    return tmp_path


def events(folder: Path, name: str = "out") -> list[dict[str, Any]]:
    lines = (folder / name / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(folder: Path, name: str = "out") -> list[tuple[int, float]]:
    return [(e["step"], e["loss"]) for e in events(folder, name) if e["event"] == "step"]


def test_a_killed_worker_changes_neither_losses_nor_weights(folder):
    words = ("train", "train.toml", "show.every=3", "probe_every=3")
    whole = kinoray(folder, *words, "out=whole", "--json")
    assert whole.code == 0, whole.err[-2000:]
    assert [step for step, _ in losses(folder, "whole")] == [1, 2, 3, 4, 5, 6]
    code, said = killed_at_step(folder, "worker", 3, *words)
    assert code == 0, said[-2000:]
    found = losses(folder)
    # what was not in a checkpoint is done again, with the same numbers
    assert dict(found) == dict(losses(folder, "whole"))
    assert len(found) <= 6 + 2
    digests = [checkpoint.load(folder / out / "checkpoint").digest for out in ("whole", "out")]
    assert digests[0] == digests[1] == whole.told["digest"]
    assert any("started again with 2 workers" in e.get("text", "") for e in events(folder))
    shown = sorted(path.name for path in (folder / "whole" / "samples").iterdir())
    assert shown == [f"step-000000{step}-{n}.png" for step in (3, 6) for n in (0, 1)]
    numbers = next(e for e in events(folder) if e["event"] == "step")
    assert {"clips_per_s", "frames_per_s", "tflop_per_s", "data_wait_share", "grad_norm"} <= set(
        numbers
    )


@pytest.mark.faults
def test_a_training_that_diverges_ends_at_once_with_a_next_step(folder):
    # a learning rate that makes NaN of the weights, and a guard that does not wait
    words = ("optimizer.learning_rate=1e30", "guard.patience=1", "guard.rollbacks=0", "steps=60")
    ran = kinoray(folder, "train", "train.toml", *words)
    assert ran.code == 1
    lines = [line for line in ran.err.splitlines() if "diverged" in line]
    assert len(lines) == 1, ran.err[-2000:]
    assert "next: a lower learning_rate" in lines[0]
    assert "Traceback" not in ran.err


@pytest.mark.faults
def test_a_damaged_checkpoint_is_passed_over_and_said(folder):
    words = ("train", "train.toml", "num_workers=1", "out=out")
    code, said = killed_at_step(folder, "driver", 5, *words)
    assert code != 0, said[-500:]
    newest = max((folder / "out" / "checkpoints").iterdir())
    (newest / "ema-00000.safetensors").write_bytes(b"half")
    again = kinoray(folder, *words, "--json")
    assert again.code == 0, again.err[-2000:]
    assert f"checkpoint of step {int(newest.name[5:])} is damaged and was passed over" in again.err
    whole = kinoray(folder, "train", "train.toml", "num_workers=1", "out=whole", "--json")
    assert again.told["digest"] == whole.told["digest"]
