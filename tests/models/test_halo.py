"""Windows spread over parts: each part gets, to the bit, its frames of the whole reduction."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import halo, multidiffusion, windows
from models.halo import HaloPlan


@st.composite
def cases(draw):
    """A plan with any overlaps (also of three windows and more), a trim it bears, any split."""
    frames = draw(st.integers(2, 40))
    window = draw(st.integers(1, frames))
    spread = draw(st.sampled_from([windows.even, windows.clamped]))
    plan = spread(frames, window, draw(st.integers(0, window - 1)))
    trim = draw(st.integers(0, min((o // 2 for o in plan.overlaps), default=3)))
    inner = st.integers(1, max(1, len(plan.starts) - 1))
    cuts = draw(st.sets(inner)) if len(plan.starts) > 1 else set()
    split = HaloPlan(plan=plan, bounds=(0, *sorted(cuts), len(plan.starts)), trim=trim)
    kind = draw(st.sampled_from(["linear", "uniform", "hann"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    parts = [torch.randn(1, 2, window, 2, 1, generator=generator) for _ in plan.starts]
    return split, windows.weights(plan, kind, trim), parts


def own(split: HaloPlan, part: int, parts: list[torch.Tensor]) -> dict[int, torch.Tensor]:
    return {k: parts[k] for k in split.windows(part)}


def post(split: HaloPlan, parts: list[torch.Tensor]) -> list[halo.Piece]:
    """Everything that all parts send at one step."""
    return [
        piece for p in range(split.num_parts) for piece in halo.outgoing(split, p, own(split, p, parts))
    ]  # fmt: skip


@given(cases(), st.randoms())
def test_every_split_is_bit_equal_to_the_central_reduction(case, random):
    split, weights_KT, parts = case
    whole = multidiffusion.reduce(enumerate(parts), split.plan, weights_KT)
    pieces = post(split, parts)
    for part in range(split.num_parts):
        received = [piece for piece in pieces if piece[0].receiver == part]
        received += received[:1]  # one was thought lost and sent again
        random.shuffle(received)
        ours = halo.reduce(split, part, own(split, part, parts), received, weights_KT)
        assert torch.equal(ours, whole[:, :, split.frames(part)])


@given(cases())
def test_parts_own_every_window_and_every_frame_once(case):
    split, _, _ = case
    parts = range(split.num_parts)
    assert [k for p in parts for k in split.windows(p)] == list(range(len(split.plan.starts)))
    frames = range(split.plan.frames)
    assert [t for p in parts for t in frames[split.own_frames(p)]] == list(frames)
    for p in parts:
        assert set(frames[split.own_frames(p)]) <= set(frames[split.frames(p)])


@given(cases())
def test_exactly_what_another_part_needs_is_sent(case):
    """Checked frame by frame against the definition; the bytes are those of the pieces."""
    split, weights_KT, parts = case
    owner = {k: p for p in range(split.num_parts) for k in split.windows(p)}
    needed = {
        (owner[k], p, k, t)
        for k in owner
        for p in range(split.num_parts)
        for t in range(split.plan.frames)[split.frames(p)]
        if owner[k] != p and weights_KT[k, t] > 0
    }
    sent = {(e.sender, e.receiver, e.window, t) for e in split.exchanges for t in range(e.start, e.stop)}  # fmt: skip
    assert sent == needed
    pieces = post(split, parts)
    assert split.bytes_per_step((1, 2, 2, 1)) == sum(v.numel() * 4 for _, v in pieces)


@given(cases())
def test_many_steps_stay_together_with_no_state_exchanged(case):
    """Each part denoises and steps its own frames only; overlaps never drift apart by a bit."""
    split, weights_KT, _ = case
    plan = split.plan
    whole = torch.randn(1, 2, plan.frames, 2, 1, generator=torch.Generator().manual_seed(3))
    states = [whole[:, :, split.frames(p)].clone() for p in range(split.num_parts)]

    def network(x, k):
        return torch.sin(x + 0.3 * k) + x.mean(2, keepdim=True)

    for _ in range(3):
        parts = [network(whole[:, :, plan.slice(k)], k) for k in range(len(plan.starts))]
        whole = whole - 0.3 * multidiffusion.reduce(enumerate(parts), plan, weights_KT)
        said = []
        for p, x in enumerate(states):
            first = split.frames(p).start
            views = {k: x[:, :, plan.starts[k] - first :][:, :, : plan.window] for k in split.windows(p)}  # fmt: skip
            said.append({k: network(view, k) for k, view in views.items()})
        pieces = [piece for p in range(split.num_parts) for piece in halo.outgoing(split, p, said[p])]  # fmt: skip
        states = [
            x - 0.3 * halo.reduce(split, p, said[p], [e for e in pieces if e[0].receiver == p], weights_KT)
            for p, x in enumerate(states)
        ]  # fmt: skip
    for p, x in enumerate(states):
        assert torch.equal(x, whole[:, :, split.frames(p)])


def test_the_traffic_of_the_design():
    """80 x 3 x 1024 x 1024: 25 MB a boundary and direction for 2 frames, not 1 GB for the state."""
    plan = windows.exact(80, 28, 2)
    split = halo.plan(plan, 3)
    assert [(e.sender, e.receiver, e.window, e.start, e.stop) for e in split.exchanges] == [
        (0, 1, 0, 26, 28),
        (1, 0, 1, 26, 28),
        (1, 2, 1, 52, 54),
        (2, 1, 2, 52, 54),
    ]
    assert split.bytes_per_step((1, 3, 1024, 1024)) == 4 * 2 * 3 * 2**20 * 4
    assert split.bytes_per_step((1, 3, 1024, 1024), itemsize=2) == 2 * 2 * 3 * 2**20 * 4
    assert halo.plan(plan, 1).exchanges == ()
    assert halo.plan(plan, 8) == split
    assert halo.plan(windows.exact(80, 8, 2), 5).bounds == (0, 2, 5, 7, 10, 13)


def test_windows_that_reach_beyond_a_neighbour_are_sent_there_too():
    """Windows of 8 at stride 2: each shares frames with three on either side."""
    split = halo.plan(windows.exact(16, 8, 6), 5)
    assert {(e.sender, e.receiver) for e in split.exchanges if e.sender == 0} == {(0, 1), (0, 2), (0, 3)}  # fmt: skip


PLAN = windows.exact(6, 4, 2)
SPLIT = halo.plan(PLAN, 2)
PARTS = [torch.zeros(1, 1, 4, 1, 1), torch.ones(1, 1, 4, 1, 1)]
SENT = halo.outgoing(SPLIT, 1, {1: PARTS[1]})


@pytest.mark.parametrize(
    ("received", "message"),
    [
        ([], r"pieces of windows \[1\] are missing at part 0"),
        ([(SENT[0][0], SENT[0][1] * float("nan"))], "window 1 holds NaN"),
        ([SENT[0], (SENT[0][0], SENT[0][1] + 1)], "window 1 arrived twice"),
        ([(SENT[0][0], PARTS[1])], "came with 4 frames"),
        (halo.outgoing(SPLIT, 0, {0: PARTS[0]}), "part 0 expects nothing like"),
    ],
)
def test_wrong_pieces_are_named(received, message):
    with pytest.raises(ValueError, match=message):
        halo.reduce(SPLIT, 0, {0: PARTS[0]}, received, windows.weights(PLAN))


def test_wrong_requests_are_named():
    with pytest.raises(ValueError, match=r"part 0 owns windows \[0\], not \[1\]"):
        halo.reduce(SPLIT, 0, {1: PARTS[1]}, SENT, windows.weights(PLAN))
    with pytest.raises(ValueError, match="num_parts 0"):
        halo.plan(PLAN, 0)
    with pytest.raises(ValueError, match="every part owns a window"):
        HaloPlan(plan=PLAN, bounds=(0, 1, 1, 2))
    with pytest.raises(ValueError, match="must run from 0 to the 2 windows"):
        HaloPlan(plan=PLAN, bounds=(0, 1))
    with pytest.raises(ValueError, match="trim 2 needs overlaps of 4"):
        halo.plan(PLAN, 2, trim=2)
    trimmed = halo.plan(PLAN, 2, trim=1)
    with pytest.raises(ValueError, match="has weight on frames that trim 1"):
        halo.reduce(trimmed, 0, {0: PARTS[0]}, [], windows.weights(PLAN))
