"""Noise is a function of its address: known answers, numpy = torch, independence of batch and order."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import noise

# Random123, file kat_vectors, lines "philox4x32 10": counter, key, words
KNOWN = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]
GOLDEN = Path(__file__).parents[1] / "golden" / "noise_v1.json"


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def by_torch(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    c = [torch.from_numpy(counter[..., i].astype(np.int64)) for i in range(4)]
    k = [torch.from_numpy(key[..., i].astype(np.int64)) for i in range(2)]
    return torch.stack(noise.philox(c, k), dim=-1).numpy()


def test_a_long_video_is_drawn_in_groups_of_frames_that_do_not_show(monkeypatch):
    frames_BT = torch.tensor([[0, 1, 2, 9, 4], [5, 6, 7, 8, 3]])

    def drawn() -> torch.Tensor:
        return noise.normals([1, 2], stream="step", step=3, frames_BT=frames_BT, shape=(3, 2, 3))

    whole = drawn()
    for at_once in (1, 2 * 18, 2 * 18 * 2):
        monkeypatch.setattr(noise, "_AT_ONCE", at_once)
        assert torch.equal(drawn(), whole)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers_of_philox(counter, key, expected):
    c, k = np.array(words(counter), np.uint32), np.array(words(key), np.uint32)
    assert noise.philox_numpy(c, k).tolist() == words(expected)
    assert by_torch(c, k).tolist() == words(expected)


word = st.integers(0, 2**32 - 1)


@given(st.lists(st.tuples(word, word, word, word, word, word), min_size=1, max_size=8))
def test_torch_and_numpy_words_are_equal(rows):
    table = np.array(rows, dtype=np.uint32)
    counter, key = table[:, :4], table[:, 4:]
    assert (noise.philox_numpy(counter, key).astype(np.int64) == by_torch(counter, key)).all()


@settings(max_examples=25)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.lists(word, min_size=1, max_size=4))
def test_normals_agree_within_two_ulp(seed, step, frames):
    kind = {"stream": "step", "step": step, "frames": frames, "shape": (3, 5, 7)}
    ours, reference = noise.normal(seed, **kind).numpy(), noise.normal_numpy(seed, **kind)
    assert ours.dtype == reference.dtype == np.float32
    assert (np.abs(ours - reference) <= 2 * np.spacing(np.abs(reference))).all()


@settings(max_examples=25)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_uniforms_are_the_reference_integers(seed, step, count):
    """53 bits of two words: no rounding, so that every device must give these."""
    counter = np.zeros((5, 4), np.uint32)
    counter[:, 0], counter[:, 1], counter[:, 3] = noise.STREAMS["level"], step, range(5)
    key = np.array([seed % 2**32, seed >> 32], np.uint32)
    pairs = noise.philox_numpy(counter, key).astype(object).reshape(-1, 2)
    expected = [((int(a) >> 5) * 2**26 + (int(b) >> 6)) / 2**53 for a, b in pairs][:count]
    assert noise.uniform(seed, stream="level", step=step, count=count).tolist() == expected


def test_a_frame_does_not_depend_on_its_neighbours_batch_or_order():
    kind = {"stream": "initial", "step": 3, "shape": (3, 6, 5)}
    whole = noise.normal(11, frames=range(20), **kind)
    assert torch.equal(noise.normal(11, frames=[17, 4, 4], **kind), whole[[17, 4, 4]])
    frames_BT = torch.tensor([[4, 5], [0, 19], [7, 7]])
    batch = noise.normals([9, 11, 12], frames_BT=frames_BT, **kind)
    assert torch.equal(batch[1], whole[[0, 19]])


def test_every_part_of_the_address_matters():
    base = {"stream": "initial", "step": 0, "frames": [0], "shape": (64,)}
    first = noise.normal(1, **base)
    for other in ({"stream": "train"}, {"step": 1}, {"frames": [1]}):
        assert not torch.isclose(noise.normal(1, **{**base, **other}), first).any()
    assert not torch.isclose(noise.normal(2, **base), first).any()
    assert not torch.isclose(noise.normal(1 + 2**32, **base), first).any()


def test_moments_and_independence_of_frames():
    x = noise.normal(5, stream="train", step=0, frames=range(2), shape=(200_000,)).double()
    assert x.mean().abs() < 0.01
    assert (x.std() - 1).abs() < 0.01
    assert ((x**4).mean() - 3).abs() < 0.05
    assert (x[0] * x[1]).mean().abs() < 0.01


def test_uniform_is_addressed_and_in_range():
    u = noise.uniform(5, stream="timestep", step=2, count=50_001)
    assert u.dtype == torch.float64
    assert 0 <= u.min() < 1e-3
    assert 0.999 < u.max() < 1
    assert (u.mean() - 0.5).abs() < 0.01
    assert torch.equal(noise.uniform(5, stream="timestep", step=2, count=7), u[:7])


def test_golden_values():
    golden = json.loads(GOLDEN.read_text())
    assert golden["id"] == noise.NOISE_ID
    assert golden["streams"] == noise.STREAMS
    assert noise.seed_for(*golden["seed_parts"]) == golden["seed"]
    kind = {"stream": "train", "step": 7, "frames": [0, 79], "shape": (3,)}
    assert noise.normal_numpy(golden["seed"], **kind).view(np.uint32).tolist() == golden["bits"]


def test_seeds_do_not_run_together():
    assert noise.seed_for("a", 12) != noise.seed_for("a1", 2)
    assert noise.seed_for("a", 1) != noise.seed_for("a", "1")
    assert 0 <= noise.seed_for("x") < 2**64


def test_bad_addresses_are_named():
    with pytest.raises(ValueError, match="unknown noise stream 'inital'"):
        noise.normal(0, stream="inital", step=0, frames=[0], shape=(1,))
    with pytest.raises(ValueError, match=r"seed -1 is outside"):
        noise.uniform(-1, stream="step", step=0, count=1)
    with pytest.raises(ValueError, match="noise step"):
        noise.uniform(0, stream="step", step=2**32, count=1)
