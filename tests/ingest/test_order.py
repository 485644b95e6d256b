import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.clip import digest_of
from ingest.order import ROUNDS, Cursor, Mixture, mixture_digest, permute, slots

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


def slow_clip(part, number, *, sizes, seed, attempt=0):
    own = (seed + part * 0x9E3779B97F4A7C15) & MASK
    if attempt:
        own = mix((own + attempt * 0xD1B54A32D192ED03) & MASK)
    return slow_permute(number % sizes[part], sizes[part], own, number // sizes[part])


def slow_draw(position, *, sizes, weights, seed):
    """Return part, draw number, epoch and index by the words of the law."""
    weights = [weight // int(np.gcd.reduce(weights)) for weight in weights]
    block, value = divmod(position, sum(weights))
    if sum(weights) > 1:
        value = slow_permute(value, sum(weights), seed, block)
    part = next(c for c in range(len(weights)) if value < sum(weights[: c + 1]))
    number = block * weights[part] + value - sum(weights[:part])
    index = slow_clip(part, number, sizes=sizes, seed=seed)
    return part, number, number // sizes[part], index


def draws_of(positions, *, sizes, weights, seed):
    found = Mixture(sizes=tuple(sizes), weights=tuple(weights)).draws(
        np.array(positions), seed=seed
    )
    columns = found.parts, found.numbers, found.epochs, found.indices
    return [tuple(int(value) for value in row) for row in zip(*columns, strict=True)]


PARTS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=5)


@pytest.mark.parametrize("vector", GOLDEN["mixtures"], ids=lambda v: "-".join(map(str, v["sizes"])))
def test_golden_mixtures(vector):
    law = {name: vector[name] for name in ("sizes", "weights", "seed")}
    found = draws_of(vector["positions"], **law)
    assert [part for part, _, _, _ in found] == vector["parts"]
    assert [epoch for _, _, epoch, _ in found] == vector["epochs"]
    assert [index for _, _, _, index in found] == vector["indices"]
    assert found == [slow_draw(position, **law) for position in vector["positions"]]
    mixture = Mixture(sizes=tuple(law["sizes"]), weights=tuple(law["weights"]))
    for (part, number, _, _), wanted in zip(found, vector["substitutes"], strict=True):
        got = mixture.clips(part, np.array([number]), seed=law["seed"], attempt=1)
        assert got.tolist() == [wanted]
        assert slow_clip(part, number, sizes=law["sizes"], seed=law["seed"], attempt=1) == wanted


@settings(deadline=None, max_examples=40)
@given(PARTS, st.integers(0, MASK), st.integers(0, 10**9))
def test_every_block_of_a_mixture_is_exact(parts, seed, block):
    mixture = Mixture(sizes=tuple(n for n, _ in parts), weights=tuple(w for _, w in parts))
    total = sum(mixture.weights)
    assert np.gcd.reduce(mixture.weights) == 1
    found = mixture.draws(np.arange(block * total, (block + 1) * total), seed=seed)
    assert np.bincount(found.parts, minlength=len(parts)).tolist() == list(mixture.weights)
    for part, weight in enumerate(mixture.weights):  # nothing of a part is left out or doubled
        numbers = sorted(found.numbers[found.parts == part].tolist())
        assert numbers == list(range(block * weight, (block + 1) * weight))


@settings(deadline=None, max_examples=40)
@given(PARTS, st.integers(0, MASK), st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_any_position_is_found_alone(parts, seed, positions):
    law = {"sizes": [n for n, _ in parts], "weights": [w for _, w in parts], "seed": seed}
    together = draws_of(positions, **law)
    assert together == [draws_of([position], **law)[0] for position in positions]
    assert together == [slow_draw(position, **law) for position in positions]


def test_each_part_goes_through_its_clips_epoch_by_epoch():
    sizes = 7, 4, 1
    found = Mixture(sizes=sizes, weights=(6, 3, 3)).draws(np.arange(4 * 84), seed=9)
    for part, size in enumerate(sizes):
        own = found.parts == part
        order = np.argsort(found.numbers[own], kind="stable")
        indices, epochs = found.indices[own][order], found.epochs[own][order]
        for epoch in range(epochs.max()):
            assert sorted(indices[epochs == epoch]) == list(range(size))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 300), st.integers(1, 9), st.integers(0, MASK))
def test_one_part_is_the_plain_order(size, weight, seed):
    found = Mixture(sizes=(size,), weights=(weight,)).draws(np.arange(2 * size), seed=seed)
    for epoch in range(2):
        own = found.indices[epoch * size : (epoch + 1) * size]
        assert own.tolist() == permute(np.arange(size), n=size, seed=seed, epoch=epoch).tolist()
        assert set(found.epochs[epoch * size : (epoch + 1) * size].tolist()) == {epoch}


def test_substitutes_are_other_orders_of_the_same_part():
    mixture, numbers = Mixture(sizes=(500, 300), weights=(2, 1)), np.arange(300)
    orders = [mixture.clips(1, numbers, seed=4, attempt=attempt) for attempt in range(4)]
    for order in orders:
        assert sorted(order) == list(range(300))
    same = [np.mean(one == two) for one in orders for two in orders if one is not two]
    assert max(same) < 0.03


def test_a_mixture_has_a_name_and_no_empty_part():
    assert mixture_digest(["aa"], [5]) == "aa"
    assert mixture_digest(["aa", "bb"], [6, 4]) == digest_of([["aa", 3], ["bb", 2]])
    for sizes, weights in (((), ()), ((1,), (1, 1)), ((0, 4), (1, 1)), ((4, 4), (1, 0))):
        with pytest.raises(ValueError, match=r"mixture|at least 1"):
            Mixture(sizes=sizes, weights=weights)
    with pytest.raises(ValueError, match="positions"):
        Mixture(sizes=(3, 3), weights=(1, 1)).draws(np.array([-1]), seed=0)
