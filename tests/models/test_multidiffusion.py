"""The reduction is the least-squares solution, keeps constants, and does not know the order of arrival."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import windows
from models.multidiffusion import reduce

KINDS = st.sampled_from(["linear", "uniform", "hann"])


@st.composite
def cases(draw):
    frames = draw(st.integers(2, 40))
    window = draw(st.integers(1, frames))
    plan = windows.even(frames, window, draw(st.integers(0, window - 1)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    parts = [torch.randn(1, 2, window, 2, 1, generator=generator) for _ in plan.starts]
    return plan, windows.weights(plan, draw(KINDS)), parts


@given(cases())
def test_it_is_the_weighted_least_squares_solution(case):
    plan, weights, parts = case
    rows, values = [], []
    for k, part in enumerate(parts):
        root = weights[k, plan.slice(k)].sqrt().numpy()
        choose = np.zeros((plan.window, plan.frames))
        choose[np.arange(plan.window), np.arange(plan.starts[k], plan.starts[k] + plan.window)] = (
            root
        )
        rows.append(choose)
        values.append(
            root[:, None] * part.double().permute(0, 2, 1, 3, 4).reshape(plan.window, -1).numpy()
        )
    best, *_ = np.linalg.lstsq(np.concatenate(rows), np.concatenate(values), rcond=None)
    ours = reduce(enumerate(parts), plan, weights).permute(0, 2, 1, 3, 4).reshape(plan.frames, -1)
    assert np.allclose(ours.numpy(), best, atol=2e-6)


@given(cases(), st.randoms())
def test_the_order_of_arrival_does_not_change_a_bit(case, random):
    plan, weights, parts = case
    arrivals = list(enumerate(parts))
    random.shuffle(arrivals)
    assert torch.equal(reduce(arrivals, plan, weights), reduce(enumerate(parts), plan, weights))


def test_control_naive_sums_depend_on_the_order():
    parts = torch.randn(3, 4000, generator=torch.Generator().manual_seed(0))
    assert not torch.equal((parts[0] + parts[1]) + parts[2], (parts[2] + parts[1]) + parts[0])


@given(cases())
def test_windows_that_agree_are_kept_to_the_bit(case):
    plan, weights, parts = case
    video = torch.randn(1, 2, plan.frames, 2, 1, generator=torch.Generator().manual_seed(1))
    agreeing = [(k, video[:, :, plan.slice(k)]) for k in range(len(parts))]
    assert torch.equal(reduce(agreeing, plan, weights), video)


@given(cases(), st.floats(-3, 3))
def test_it_is_linear(case, factor):
    plan, weights, parts = case
    mixed = [(k, part + factor * part.flip(2)) for k, part in enumerate(parts)]
    flipped = [(k, part.flip(2)) for k, part in enumerate(parts)]
    expected = reduce(enumerate(parts), plan, weights) + factor * reduce(flipped, plan, weights)
    assert torch.allclose(reduce(mixed, plan, weights), expected, atol=1e-5)


def test_uniform_weights_are_the_plain_mean_of_the_paper():
    plan = windows.exact(6, 4, 2)
    parts = [torch.full((1, 1, 4, 1, 1), value) for value in (1.0, 3.0)]
    video = reduce(enumerate(parts), plan, windows.weights(plan, "uniform"))
    assert video.flatten().tolist() == [1, 1, 2, 2, 3, 3]


def test_one_window_and_disjoint_windows_pass_through():
    whole = torch.randn(2, 3, 8, 2, 2)
    one = windows.even(8, 8, 0)
    assert torch.equal(reduce([(0, whole)], one, windows.weights(one)), whole)
    apart = windows.even(8, 4, 0)
    parts = [(0, whole[:, :, :4]), (1, whole[:, :, 4:])]
    assert torch.equal(reduce(parts, apart, windows.weights(apart)), whole)


def test_time_reversal_of_a_symmetric_plan():
    plan = windows.exact(10, 6, 2)
    parts = [torch.randn(1, 1, 6, 2, 2) for _ in plan.starts]
    forward = reduce(enumerate(parts), plan, windows.weights(plan))
    mirrored = [(1 - k, part.flip(2)) for k, part in enumerate(parts)]
    assert torch.allclose(reduce(mirrored, plan, windows.weights(plan)).flip(2), forward, atol=1e-6)


def test_low_precision_windows_are_summed_in_fp32():
    plan = windows.exact(6, 4, 2)
    parts = [torch.full((1, 1, 4, 1, 1), v, dtype=torch.bfloat16) for v in (1.0, 1.0078125)]
    video = reduce(enumerate(parts), plan, windows.weights(plan, "uniform"))
    assert video.dtype == torch.float32
    assert video[0, 0, 2].item() == 1.00390625


def part(value: float = 0.0, frames: int = 4) -> torch.Tensor:
    return torch.full((1, 1, frames, 1, 1), value)


@pytest.mark.parametrize(
    ("arrived", "message"),
    [
        ([(0, part())], r"windows \[1\] are missing"),
        ([(0, part()), (0, part(1.0)), (1, part())], "window 0 arrived twice, with different"),
        ([(0, part()), (2, part())], "window 2 is not in the plan of 2"),
        ([(0, part()), (1, part(frames=3))], "window 1 has 3 frames, not 4"),
        ([(0, part()), (1, part(float("nan")))], "window 1 holds NaN"),
    ],
)
def test_wrong_windows_are_named(arrived, message):
    plan = windows.exact(6, 4, 2)
    with pytest.raises(ValueError, match=message):
        reduce(arrived, plan, windows.weights(plan))


@pytest.mark.parametrize("frame", range(4))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_value_that_is_not_finite_gets_into_the_video(frame, value):
    """On a frame that is trimmed it has no weight and does nothing; on any other it is told."""
    plan = windows.exact(6, 4, 2)
    bad = part()
    bad[:, :, frame] = value
    told = reduce, [(0, part()), (1, bad)], plan, windows.weights(plan, trim=1)
    if frame == 0:
        assert torch.equal(told[0](*told[1:]), torch.zeros(1, 1, 6, 1, 1))
    else:
        with pytest.raises(ValueError, match="window 1 holds NaN"):
            told[0](*told[1:])


def test_weights_must_cover_every_frame():
    plan = windows.exact(6, 4, 2)
    with pytest.raises(ValueError, match="positive somewhere"):
        reduce([(0, part()), (1, part())], plan, torch.zeros(2, 6))


def test_nothing_is_broadcast():
    plan = windows.exact(6, 4, 2)
    whole, part = torch.ones(2, 3, 4, 8, 8), torch.zeros(1, 1, 4, 1, 1)
    with pytest.raises(ValueError, match=r"window 1 has \(B, C, H, W\)"):
        reduce([(0, whole), (1, part)], plan, windows.weights(plan))
    other = windows.weights(windows.exact(8, 4, 0))
    with pytest.raises(ValueError, match=r"the plan's are \(2, 6\)"):
        reduce([(0, whole), (1, whole)], plan, other)
