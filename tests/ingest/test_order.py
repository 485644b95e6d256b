import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.order import ROUNDS, Cursor, permute, slots

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "order_v1.json").read_text())
MASK = (1 << 64) - 1


def mix(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def slow_permute(position, n, seed, epoch):
    """The same law in plain integers, one position at a time."""
    golden = 0x9E3779B97F4A7C15
    state = mix((seed + golden) & MASK)
    state = (mix(state ^ (epoch & MASK)) + golden) & MASK
    keys = [mix((state + i * golden) & MASK) for i in range(1, ROUNDS + 1)]
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = position >> half, position & mask
        for key in keys:
            left, right = right, left ^ (mix((right + key) & MASK) & mask)
        position = left << half | right
        if position < n:
            return position


@pytest.mark.parametrize("vector", GOLDEN["vectors"], ids=lambda v: f"n{v['n']}s{v['seed']}")
def test_golden_vectors(vector):
    where = {name: vector[name] for name in ("n", "seed", "epoch")}
    got = permute(np.array(vector["positions"]), **where)
    assert got.tolist() == vector["indices"]
    assert [slow_permute(p, **where) for p in vector["positions"]] == vector["indices"]


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, MASK), st.integers(0, 1000))
def test_every_epoch_is_a_bijection(n, seed, epoch):
    order = permute(np.arange(n), n=n, seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(n))


@given(st.integers(1, 10**12), st.integers(0, MASK), st.integers(0, 99), st.data())
def test_equals_plain_integers(n, seed, epoch, data):
    position = data.draw(st.integers(0, n - 1))
    got = permute(np.array([position]), n=n, seed=seed, epoch=epoch)
    assert int(got[0]) == slow_permute(position, n, seed, epoch)


def test_it_shuffles():
    """Neighbours part, and epochs and seeds differ: chi-square of places in 20 bins."""
    n = 20_000
    order = permute(np.arange(n), n=n, seed=1, epoch=0)
    counts = np.histogram2d(np.arange(n), order, bins=20)[0]
    chi_per_freedom = ((counts - 50) ** 2 / 50).sum() / 19**2
    assert 0.7 < chi_per_freedom < 1.3
    assert np.mean(np.abs(np.diff(order)) < n / 100) < 0.04
    for other in ({"seed": 2, "epoch": 0}, {"seed": 1, "epoch": 1}):
        assert np.mean(order == permute(np.arange(n), n=n, **other)) < 0.001


def test_positions_outside_are_refused():
    for positions, n in (([5], 5), ([-1], 5), ([0], 0)):
        with pytest.raises(ValueError, match="positions"):
            permute(np.array(positions), n=n, seed=0, epoch=0)


@given(st.integers(1, 200), st.integers(1, 70))
def test_slots_tile_the_global_batch(global_batch, world_size):
    parts = [slots(global_batch, world_size, rank) for rank in range(world_size)]
    assert [slot for part in parts for slot in part] == list(range(global_batch))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_cursor_crosses_epochs_and_travels():
    cursor = Cursor(view_digest="d", seed=3, global_batch=4)
    order = cursor.indices(np.arange(21), 7)
    for epoch in range(3):
        assert sorted(order[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert order[:7].tolist() != order[7:14].tolist()
    assert Cursor.from_state(json.loads(json.dumps(cursor.state_dict()))) == cursor
    with pytest.raises(ValueError, match="order_v0"):
        Cursor(view_digest="d", seed=3, global_batch=4, order_version="order_v0")
    with pytest.raises(ValueError, match="global_batch"):
        Cursor(view_digest="d", seed=3, global_batch=0)
    with pytest.raises(ValueError, match="slots"):
        slots(4, 2, 2)
