"""Every plan covers every frame; weights are a partition of unity; fades have their closed forms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import windows
from models.windows import Plan


@st.composite
def plans(draw):
    frames = draw(st.integers(1, 120))
    window = draw(st.integers(1, frames + 5))
    overlap = draw(st.integers(0, min(window, frames) - 1))
    spread = draw(st.sampled_from([windows.even, windows.clamped]))
    return spread(frames, window, overlap), overlap


@given(plans())
def test_plans_cover_every_frame_with_at_least_the_overlap(drawn):
    plan, overlap = drawn
    covered = torch.zeros(plan.frames)
    for k in range(len(plan.starts)):
        covered[plan.slice(k)] += 1
    assert covered.min() >= 1
    assert all(size >= overlap for size in plan.overlaps)


@given(plans(), st.sampled_from(["linear", "uniform", "hann"]))
def test_weights_are_a_partition_of_unity_within_their_windows(drawn, kind):
    plan, _ = drawn
    table = windows.weights(plan, kind)
    assert torch.allclose(table.sum(0), torch.ones(plan.frames, dtype=torch.float64), atol=1e-12)
    for k in range(len(plan.starts)):
        outside = torch.ones(plan.frames, dtype=torch.bool)
        outside[plan.slice(k)] = False
        assert (table[k][outside] == 0).all()
        assert (table[k][plan.slice(k)] > 0).all()


@given(plans())
def test_boundaries_are_where_the_covering_windows_change(drawn):
    plan, _ = drawn
    inside = [
        {k for k in range(len(plan.starts)) if plan.slice(k).start <= t < plan.slice(k).stop}
        for t in range(plan.frames)
    ]
    changes = tuple(t for t in range(plan.frames - 1) if inside[t] != inside[t + 1])
    assert windows.boundaries(plan) == changes


@given(plans(), st.sampled_from(["linear", "uniform", "hann"]), st.integers(0, 4))
def test_trimmed_weights_are_a_partition_of_unity_away_from_cuts(drawn, kind, trim):
    plan, _ = drawn
    if any(overlap < 2 * trim for overlap in plan.overlaps):
        with pytest.raises(ValueError, match=f"trim {trim} needs overlaps of {2 * trim} frames"):
            windows.weights(plan, kind, trim)
        return
    table = windows.weights(plan, kind, trim)
    assert torch.allclose(table.sum(0), torch.ones(plan.frames, dtype=torch.float64), atol=1e-12)
    for k, start in enumerate(plan.starts):
        cut = [t for t in range(plan.frames) if
               (start > 0 and t < start + trim)
               or (start + plan.window < plan.frames and t >= start + plan.window - trim)
               or not start <= t < start + plan.window]  # fmt: skip
        kept = sorted(set(range(plan.frames)) - set(cut))
        assert (table[k][cut] == 0).all()
        assert (table[k][kept] > 0).all()
        assert list(range(plan.frames))[windows.trimmed(plan, k, trim)] == kept


def test_trimming_shortens_the_fade():
    """Overlap 6 without the 2 frames beside each cut leaves 2 to fade over: steps of 1/3."""
    plan = windows.exact(26, 16, 6)
    second = windows.weights(plan, trim=2)[1]
    assert second[10:17].tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3, 1, 1, 1])
    assert windows.weights(plan, trim=3)[1, 12:14].tolist() == [0, 1]
    assert torch.equal(windows.weights(plan, trim=0), windows.weights(plan))
    with pytest.raises(ValueError, match="trim -1 must be >= 0"):
        windows.weights(plan, trim=-1)


def test_examples_of_the_design():
    assert windows.clamped(80, 16, 2).starts == (0, 14, 28, 42, 56, 64)
    assert windows.even(80, 16, 2).starts == (0, 13, 26, 38, 51, 64)
    assert windows.even(80, 16, 4).starts == (0, 11, 21, 32, 43, 53, 64)
    assert windows.even(80, 16, 2).overlaps == (3, 3, 4, 3, 3)
    assert [len(windows.exact(80, w, 2).starts) for w in (8, 15, 28, 41)] == [13, 6, 3, 2]
    assert windows.even(10, 16, 2) == Plan(frames=10, window=10, starts=(0,))


@pytest.mark.parametrize(
    ("kind", "overlap", "step"),
    [("linear", 2, 1 / 3), ("linear", 4, 1 / 5), ("linear", 8, 1 / 9),
     ("uniform", 4, 0.5), ("hann", 2, 0.5), ("hann", 4, 0.309), ("hann", 8, 0.174)],
)  # fmt: skip
def test_largest_step_of_a_constant_disagreement(kind, overlap, step):
    plan = windows.exact(32 - overlap, 16, overlap)
    second = windows.weights(plan, kind)[1]
    assert float((second[1:] - second[:-1]).abs().max()) == pytest.approx(step, abs=5e-4)


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ((0, 4, 9, 12), "frames 8..8 are in no window"),
        ((1, 5, 10), "must start at frame 0"),
        ((0, 5, 8), "must end at frame 16"),
        ((0, 8, 4, 12), "must ascend"),
        ((), "must start at frame 0"),
    ],
)
def test_plans_with_holes_are_refused(starts, message):
    with pytest.raises(ValueError, match=message):
        Plan(frames=16, window=4, starts=starts)


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="overlap 8"):
        windows.even(80, 8, 8)
    with pytest.raises(ValueError, match="no exact tiling"):
        windows.exact(80, 16, 2)
    with pytest.raises(ValueError, match="unknown window weights"):
        windows.weights(windows.even(80, 16, 2), "triangle")


@pytest.mark.parametrize("make", [windows.even, windows.clamped, windows.exact])
@pytest.mark.parametrize(("frames", "overlap"), [(8, 8), (2, 2), (1, 0), (28, 27)])
def test_a_video_no_longer_than_a_window_is_one_window(make, frames, overlap):
    plan = make(frames, 28, overlap)
    assert (plan.frames, plan.window, plan.starts) == (frames, frames, (0,))
