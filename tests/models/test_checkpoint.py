"""Checkpoints come back to the bit, and any damage is named."""

import json

import pytest
import torch

from models import checkpoint


def saved(folder, **change):
    told = {
        "role": "motion",
        "spec": {"widths": [8, 16]},
        "tensors": {
            "params": {
                "w": torch.arange(6.0).reshape(2, 3),
                "b": torch.ones(2, dtype=torch.bfloat16),
            },
            "ema": {"num_updates": torch.tensor(3)},
        },
        "parents": {"base": "ab" * 32},
        "meta": {"step": 12},
    }
    return checkpoint.save(folder, **{**told, **change})


def test_round_trip(tmp_path):
    digest = saved(tmp_path / "c")
    loaded = checkpoint.load(tmp_path / "c", groups=("params", "ema"))
    assert loaded.digest == digest
    assert (loaded.role, loaded.spec, loaded.meta) == ("motion", {"widths": [8, 16]}, {"step": 12})
    assert loaded.parents == {"base": "ab" * 32}
    assert torch.equal(loaded.tensors["params"]["w"], torch.arange(6.0).reshape(2, 3))
    assert loaded.tensors["params"]["b"].dtype == torch.bfloat16
    assert loaded.tensors["ema"]["num_updates"].item() == 3
    assert set(checkpoint.load(tmp_path / "c").tensors) == {"params"}


def test_the_digest_covers_weights_spec_and_parents_but_not_meta(tmp_path):
    first = saved(tmp_path / "a")
    assert saved(tmp_path / "b", meta={"step": 13}) == first
    assert saved(tmp_path / "c", parents={}) != first
    assert saved(tmp_path / "d", spec={}) != first
    assert saved(tmp_path / "e", tensors={"params": {"w": torch.zeros(1)}}) != first


def test_memory_order_does_not_matter_to_the_file_or_the_digest(tmp_path):
    x = torch.randn(2, 8, 4, 4)
    last = x.to(memory_format=torch.channels_last)
    assert checkpoint.state_digest({"x": x}) == checkpoint.state_digest({"x": last})
    one = saved(tmp_path / "a", tensors={"params": {"x": x}})
    assert saved(tmp_path / "b", tensors={"params": {"x": last}}) == one


def test_state_digest_sees_names_types_shapes_and_bits():
    x = torch.zeros(4)
    states = [
        {"x": x},
        {"y": x},
        {"x": x.to(torch.int32)},
        {"x": x.reshape(2, 2)},
        {"x": x + 1e-45},
    ]
    assert len({checkpoint.state_digest(state) for state in states}) == len(states)


def test_every_flipped_byte_of_the_weights_is_found(tmp_path):
    saved(tmp_path / "c")
    path = tmp_path / "c" / "params.safetensors"
    whole = path.read_bytes()
    for place in (0, 9, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(bytes(damaged))
        with pytest.raises(ValueError, match=r"params\.safetensors is missing or damaged"):
            checkpoint.load(tmp_path / "c")
    path.write_bytes(whole)
    checkpoint.load(tmp_path / "c")


def test_damaged_and_missing_indexes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint\.json is missing"):
        checkpoint.load(tmp_path)
    saved(tmp_path / "c")
    path = tmp_path / "c" / "checkpoint.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "spec": {"widths": [8, 32]}}))
    with pytest.raises(ValueError, match="its digest is not that of its contents"):
        checkpoint.load(tmp_path / "c")
    path.write_text("{")
    with pytest.raises(ValueError, match=r"checkpoint\.json is damaged"):
        checkpoint.load(tmp_path / "c")
    (tmp_path / "c" / "params.safetensors").unlink()
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="is missing or damaged"):
        checkpoint.load(tmp_path / "c")


def test_unknown_groups_and_occupied_folders_are_refused(tmp_path):
    saved(tmp_path)
    with pytest.raises(ValueError, match="already holds a checkpoint"):
        saved(tmp_path)
    with pytest.raises(ValueError, match=r"no tensors called \['optimizer'\]"):
        checkpoint.load(tmp_path, groups=("optimizer",))


def steps(layer: torch.nn.Linear, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        layer(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()


def test_an_optimizer_continues_to_the_bit_through_a_checkpoint(tmp_path):
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    steps(layer, optimizer, 3)
    tensors, groups = checkpoint.pack_optimizer(optimizer)
    params = {name: p.detach().clone() for name, p in layer.named_parameters()}
    saved(tmp_path, tensors={"params": params, "optimizer": tensors}, meta={"groups": groups})
    steps(layer, optimizer, 3)

    loaded = checkpoint.load(tmp_path, groups=("params", "optimizer"))
    other = torch.nn.Linear(3, 2)
    other.load_state_dict(loaded.tensors["params"])
    fresh = torch.optim.AdamW(other.parameters(), lr=0.5)
    checkpoint.unpack_optimizer(fresh, loaded.tensors["optimizer"], loaded.meta["groups"])
    steps(other, fresh, 3)
    assert torch.equal(other.weight, layer.weight)
    assert torch.equal(other.bias, layer.bias)
