"""Aesthetic heads: published layouts, numbers computed by hand, and files that are none."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.clip import AestheticHead

EMBEDDINGS = np.array([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]], np.float32)


def written(path: Path, state: dict) -> tuple[Path, str]:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["linear.safetensors", "linear.pth"])
def test_one_layer_by_hand(tmp_path, name):
    state = {"weight": torch.tensor([[1.0, 2.0, -3.0]]), "bias": torch.tensor([4.0])}
    head = AestheticHead.load(*written(tmp_path / name, state))
    # 0.6 + 1.6 + 4 and -3 + 4
    assert head(EMBEDDINGS) == pytest.approx([6.2, 1.0], abs=1e-6)
    assert head.dim == 3


def test_improved_layers_by_hand_and_in_the_order_of_their_numbers(tmp_path):
    state = {
        "layers.10.weight": torch.tensor([[1.0, -1.0]]),
        "layers.10.bias": torch.tensor([0.5]),
        "layers.2.weight": torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 1.0]]),
        "layers.2.bias": torch.tensor([1.0, -1.0]),
    }
    head = AestheticHead.load(*written(tmp_path / "mlp.pth", state))
    # (1.6, -1.8) -> 3.4 + 0.5; (3, 0) -> 3 + 0.5: no activation cuts the negative one
    assert head(EMBEDDINGS) == pytest.approx([3.9, 3.5], abs=1e-6)


def test_the_published_shape_equals_torch(tmp_path):
    torch.manual_seed(0)
    widths = [(768, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)]
    layers = [torch.nn.Linear(*width) for width in widths]
    drops = [torch.nn.Dropout(0.2), torch.nn.Dropout(0.2), torch.nn.Dropout(0.1)]
    model = torch.nn.Sequential(
        layers[0], drops[0], layers[1], drops[1], layers[2], drops[2], layers[3], layers[4]
    ).eval()
    state = {f"layers.{name}": value for name, value in model.state_dict().items()}
    head = AestheticHead.load(*written(tmp_path / "sac.pth", state))
    x = torch.nn.functional.normalize(torch.randn(5, 768), dim=1)
    with torch.no_grad():
        assert head(x.numpy()) == pytest.approx(model(x)[:, 0].tolist(), abs=1e-5)
    assert np.array_equal(head(x.numpy())[3:4], head(x.numpy()[3:4]))


@pytest.mark.parametrize(
    "state",
    [
        {"weight": torch.ones(1, 3)},
        {"weight": torch.ones(2, 3), "bias": torch.ones(2)},
        {"mlp.0.weight": torch.ones(1, 3), "mlp.0.bias": torch.ones(1)},
        {"layers.0.weight": torch.ones(2, 3), "layers.0.bias": torch.ones(2)},
        {
            "layers.0.weight": torch.ones(2, 3),
            "layers.0.bias": torch.ones(2),
            "layers.1.weight": torch.ones(1, 3),
            "layers.1.bias": torch.ones(1),
        },
        {},
    ],
)
def test_other_layouts_are_refused(tmp_path, state):
    path, sha256 = written(tmp_path / "head.pth", state)
    with pytest.raises(ValueError, match=r"head\.pth is no aesthetic head"):
        AestheticHead.load(path, sha256)


def test_another_file_or_width_is_refused(tmp_path):
    state = {"weight": torch.ones(1, 3), "bias": torch.ones(1)}
    path, sha256 = written(tmp_path / "head.safetensors", state)
    with pytest.raises(ValueError, match="not the file that was pinned"):
        AestheticHead.load(path, "0" * 64)
    with pytest.raises(ValueError, match="needs sha256"):
        AestheticHead.load(path, "")
    with pytest.raises(ValueError, match="name the model"):
        AestheticHead.load(path, sha256)(np.ones((2, 4), np.float32))
