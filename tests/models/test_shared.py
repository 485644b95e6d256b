"""One video made by several parts: each part's frames are, to the bit, those of sample_ssr in one process."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import guidance, halo, known, samplers, shared, ssr, windows
from models.conditioning import HashedText
from models.halo import HaloPlan
from models.known import Known
from models.samplers import Sampling

PX, SCALE = 4, 2
TEXT = HashedText(dim=16, length=4)
SSR = ssr.Config(sample_px=8, scale=SCALE, widths=(8, 16), text_dim=16, head_dim=8, known=True)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def low(frames: int, videos: int = 1) -> torch.Tensor:
    return randn(videos, 3, frames, PX, PX).clamp(-1, 1)


def cinema(frames: int, videos: int = 1) -> Known:
    """Pixels known here and there, in every frame others."""
    video = randn(videos, 3, frames, SCALE * PX, SCALE * PX, seed=1).clamp(-1, 1)
    return Known(video, (randn(*video[:, :1].shape, seed=2) > 0.5).float())


class Window(torch.nn.Module):
    """A cheap network that looks at all frames of its window, at their order, its text and what is known."""

    def forward(self, x_BCTHW, timestep_B, text_BND, *, level_B, known_BCTHW=None):
        place = torch.arange(x_BCTHW.shape[2]).reshape(1, 1, -1, 1, 1) * 0.1
        t = (timestep_B / 1000 + text_BND.mean((1, 2)) + level_B).reshape(-1, 1, 1, 1, 1)
        x = torch.sin(2 * x_BCTHW[:, :3] + x_BCTHW[:, 3:] + place + t)
        seen = x + 0.3 * x_BCTHW[:, :3].mean(2, keepdim=True)
        return (
            seen if known_BCTHW is None else seen + 0.2 * known_BCTHW[:, :3].mean(2, keepdim=True)
        )


def network() -> torch.nn.Module:
    """A real SSR whose temporal modules take part: as built, they say nothing."""
    model = ssr.build(SSR, seed=0)
    with torch.no_grad():
        for i, weight in enumerate(model.parameters()):
            weight.add_(randn(*weight.shape, seed=i), alpha=0.05)
    return model.eval()


class Board:
    """Where the parts of a test, threads that take turns, leave their pieces."""

    def __init__(self, split: HaloPlan, *, spoilt: float = 0.0) -> None:
        self.split, self.spoilt = split, spoilt
        self.barrier = threading.Barrier(split.num_parts, timeout=60)
        self.said: dict[int, tuple[int, list[halo.Piece]]] = {}
        self.turns: list[list[int]] = [[] for _ in range(split.num_parts)]
        self.sent_bytes = 0

    def carrier(self, part: int) -> shared.Carry:
        def carry(turn, outgoing):
            self.turns[part].append(turn)
            self.said[part] = turn, outgoing
            self.barrier.wait()
            assert {theirs for theirs, _ in self.said.values()} == {turn}
            pieces = [p for _, said in self.said.values() for p in said]
            if self.barrier.wait() == 0:
                self.sent_bytes += sum(v.numel() * v.element_size() for _, v in pieces)
            return [(e, v + self.spoilt) for e, v in pieces if e.receiver == part]

        return carry


def parts_of(split: HaloPlan, model, video, board: Board | None = None, **told) -> torch.Tensor:
    """Make all parts at once and put their own frames together."""
    board = board or Board(split)
    count = len(video)

    def make(part: int) -> torch.Tensor:
        try:
            return shared.sample_ssr_part(
                model,
                video,
                TEXT(["a word"] * count),
                TEXT([""]),
                part=part,
                halo=split,
                exchange=board.carrier(part),
                seeds=range(3, 3 + count),
                scale=SCALE,
                **told,
            )
        except BaseException:
            board.barrier.abort()
            raise

    with ThreadPoolExecutor(split.num_parts) as pool:
        return torch.cat(list(pool.map(make, range(split.num_parts))), dim=2)


def whole(split: HaloPlan, model, video, **told) -> torch.Tensor:
    """Make the same video in one process."""
    return samplers.sample_ssr(
        model,
        video,
        TEXT(["a word"] * len(video)),
        TEXT([""]),
        seeds=range(3, 3 + len(video)),
        scale=SCALE,
        plan=split.plan,
        trim=split.trim,
        **told,
    )


@st.composite
def cases(draw):
    """Any plan, a trim that it bears, any split, any settings but a dynamic threshold."""
    frames = draw(st.integers(2, 20))
    window = draw(st.integers(1, frames))
    spread = draw(st.sampled_from([windows.even, windows.clamped]))
    plan = spread(frames, window, draw(st.integers(0, window - 1)))
    trim = draw(st.integers(0, min((o // 2 for o in plan.overlaps), default=2)))
    cuts = draw(st.sets(st.integers(1, max(1, len(plan.starts) - 1)), max_size=5))
    cuts = sorted(cut for cut in cuts if cut < len(plan.starts))
    split = HaloPlan(plan=plan, bounds=(0, *cuts, len(plan.starts)), trim=trim)
    settings = Sampling(
        steps=3,
        sampler=draw(st.sampled_from(["ddim", "dpm++", "ddpm"])),
        guidance_scale=draw(st.sampled_from([1.0, 2.5])),
        threshold=draw(st.sampled_from(["none", "static"])),
    )
    told = {
        "settings": settings,
        "weights": draw(st.sampled_from(["linear", "uniform", "hann"])),
        "micro_batch": draw(st.integers(1, 4)),
        "augment_level": draw(st.sampled_from([0.0, 0.3])),
        "precondition": draw(st.booleans()),
    }
    videos = draw(st.integers(1, 2))
    if draw(st.booleans()):
        told["known"] = cinema(frames, videos)
        told["composite"] = draw(st.sampled_from(["none", "final", "every_step"]))
    return split, low(frames, videos), told


@given(cases())
def test_all_parts_together_are_the_whole_video(case):
    split, video, told = case
    made = parts_of(split, Window(), video, **told)
    assert torch.equal(made, whole(split, Window(), video, **told))


PLAN = windows.even(20, 6, 2)


@pytest.mark.parametrize("parts", range(1, len(PLAN.starts) + 1))
@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_a_real_network_in_micro_batches(parts, micro_batch):
    split, model = halo.plan(PLAN, parts, trim=1), network()
    settings = Sampling(steps=2, sampler="ddpm", guidance_scale=3.0)
    told = {"settings": settings, "micro_batch": micro_batch, "known": cinema(20)}
    made = parts_of(split, model, low(20), **told)
    assert torch.equal(made, whole(split, model, low(20), **told))


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "ddpm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_real_network_of_two_videos_without_preconditioning(sampler, dtype):
    split, model = halo.plan(PLAN, 3), network().to(dtype)
    told = {"settings": Sampling(steps=3, sampler=sampler), "precondition": False}
    told |= {"known": cinema(20, 2), "composite": "every_step", "micro_batch": 2}
    made = parts_of(split, model, low(20, 2), **told)
    assert torch.equal(made, whole(split, model, low(20, 2), **told))


def test_control_a_piece_that_is_a_little_wrong_shows():
    split = halo.plan(PLAN, 3)
    told = {"settings": Sampling(steps=3)}
    made = parts_of(split, Window(), low(20), Board(split, spoilt=1e-3), **told)
    exact = whole(split, Window(), low(20), **told)
    assert not torch.equal(made, exact)
    assert torch.allclose(made, exact, atol=0.05)


def test_a_part_calls_the_network_for_its_own_windows_only_and_needs_its_own_frames_only():
    split, told = halo.plan(PLAN, 2), {"settings": Sampling(steps=1), "micro_batch": 2}
    exact = whole(split, Window(), low(20), **told)
    seen: list[int] = []

    class Counting(Window):
        def forward(self, x_BCTHW, *more, **named):
            seen.append(len(x_BCTHW))
            return super().forward(x_BCTHW, *more, **named)

    first = split.frames(1).start
    board, holed = Board(split), low(20)
    holed[:, :, :first] = float("nan")
    with ThreadPoolExecutor(1) as pool:
        # the other part runs beside it on the video as it is
        other = pool.submit(
            shared.sample_ssr_part, Window(), low(20), TEXT(["a word"]), TEXT([""]), part=0, halo=split,
            exchange=board.carrier(0), seeds=[3], scale=SCALE, **told,
        )  # fmt: skip
        made = shared.sample_ssr_part(
            Counting(), holed, TEXT(["a word"]), TEXT([""]), part=1, halo=split,
            exchange=board.carrier(1), seeds=[3], scale=SCALE, **told,
        )  # fmt: skip
        made = torch.cat([other.result(), made], dim=2)
    assert torch.equal(made, exact)
    assert len(split.windows(1)) == 3
    assert seen == [2, 2]  # three windows, the last pass filled up


@pytest.mark.parametrize(
    ("guided", "payloads"),
    [
        (guidance.Constant(scale=1.0), 3),
        (guidance.Constant(scale=2.0), 6),
        # weights 4, 1, 4: the step in the middle needs no null text
        (guidance.Oscillating(high=4.0, low=1.0, after_step=1), 5),
    ],
)
def test_a_turn_a_step_with_both_branches_where_it_is_guided(guided, payloads):
    split = halo.plan(PLAN, 3)
    told = {"settings": Sampling(steps=3, guidance=guided)}
    board = Board(split)
    made = parts_of(split, Window(), low(20), board, **told)
    assert torch.equal(made, whole(split, Window(), low(20), **told))
    assert board.turns == [list(range(3))] * 3
    assert board.sent_bytes == payloads * split.bytes_per_step((1, 3, SCALE * PX, SCALE * PX))


def test_a_model_in_training_is_evaluated_and_goes_on_training():
    class Dropping(Window):
        def forward(self, *given, **named):
            assert not self.training
            return super().forward(*given, **named)

    model = Dropping().train()
    parts_of(halo.plan(PLAN, 1), model, low(20), settings=Sampling(steps=1))
    assert model.training


def alone(**more):
    told = {
        "part": 0,
        "halo": halo.plan(PLAN, 2),
        "exchange": lambda _turn, _outgoing: [],
        "settings": Sampling(steps=1),
        **more,
    }
    video = told.pop("video", low(20))
    return shared.sample_ssr_part(
        Window(), video, TEXT(["a"]), TEXT([""]), seeds=[3], scale=SCALE, **told
    )


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"settings": Sampling(threshold="dynamic")}, "dynamic threshold is a quantile"),
        ({"part": 2}, r"part 2 must lie in 0\.\.1"),
        ({"part": -1}, r"part -1 must lie in 0\.\.1"),
        ({"video": low(19)}, "a plan for 20 frames: low_BCTHW has 19"),
        (
            {"known": known.nothing(torch.zeros(1, 3, 21, 8, 8))},
            "a plan for 20 frames: known has 21",
        ),
        ({"known": known.nothing(torch.zeros(1, 3, 20, 4, 4))}, "`known` has shape"),
        ({"composite": "final"}, "needs known pixels"),
        ({"micro_batch": 0}, "micro_batch 0: at least 1"),
        ({"weights": "round"}, "unknown window weights 'round'"),
        ({"augment_level": 1.0}, "augment_level 1.0"),
        ({}, r"pieces of windows \[2\] are missing at part 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(told, message):
    with pytest.raises(ValueError, match=message):
        alone(**told)


def test_what_the_exchange_raises_ends_the_part():
    def gone(_turn, _outgoing):
        raise ConnectionError("part 1 is gone")

    with pytest.raises(ConnectionError, match="part 1 is gone"):
        alone(exchange=gone)
