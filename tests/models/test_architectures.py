"""Every architecture of the table builds by name, on the meta device too."""

import importlib

import pytest
import torch

from models import ARCHITECTURES


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_name_has_a_config_and_a_build(name):
    module = importlib.import_module(ARCHITECTURES[name])
    with torch.device("meta"):
        model = module.build(module.Config(), seed=0)
    assert sum(p.numel() for p in model.parameters()) > 10_000
    assert all(p.is_meta for p in model.parameters())
