"""The README's example of the models, run as it stands on tiny weights in the layout that it names."""

import re
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from tests.models import test_text_t5, tiny_unet

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def test_the_example_runs(tmp_path, monkeypatch):
    folder = test_text_t5.made(tmp_path / "weights" / "if-like")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**tiny_unet.DEEPFLOYD | {"encoder_hid_dim": 16})
    unet.save_pretrained(folder / "unet")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    made: dict[str, Any] = {}
    exec(example.replace("steps=50", "steps=3"), made)
    assert made["video"].shape == made["again"].shape == (1, 3, 16, 64, 64)
    assert made["again"].isfinite().all()
    assert not torch.equal(made["video"], made["again"])
