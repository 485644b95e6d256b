"""Sampling through windows: the laws of sampling-and-evaluation.md, section 5, by their numbers.

1-6, 9-13 stand here as far as they concern a whole reverse process or need a control; single
reductions are in test_multidiffusion.py (5-8), plans in test_windows.py (5), parts in test_halo.py.
"""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models import diffusion, noise, samplers, ssr, windows
from models.diffusion import Schedule
from models.metrics import motion
from models.multidiffusion import reduce
from models.samplers import Sampling

SCHEDULE = Schedule()
KINDS = ["linear", "uniform", "hann"]
TEXT, LEVEL = torch.zeros(1, 1, 4), torch.tensor([0.3])


def told(sampler: str = "ddim", steps: int = 5, threshold: str = "none") -> Sampling:
    return Sampling(schedule=SCHEDULE, sampler=sampler, steps=steps, threshold=threshold)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def plans(draw, least_overlap: int = 0, frames: int = 18):
    window = draw(st.integers(least_overlap + 1, frames))
    spread = draw(st.sampled_from([windows.even, windows.clamped]))
    return spread(frames, window, draw(st.integers(least_overlap, window - 1)))


class Reach(torch.nn.Module):
    """A network that sees `reach` frames to either side: 0 is frame-local, else zeros beyond the ends."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach

    def forward(self, x_BCTHW, timestep_B, _text_BND, *, level_B):
        x = torch.tanh(x_BCTHW[:, :3] + x_BCTHW[:, 3:])
        around = torch.nn.functional.pad(x, (0, 0, 0, 0, self.reach, self.reach))
        count, t = 2 * self.reach + 1, x.shape[2]
        seen = sum((i + 1) * around[:, :, i : i + t] for i in range(count)) / count
        return (
            0.5 * seen
            + level_B.reshape(-1, 1, 1, 1, 1)
            - (timestep_B / 4000).reshape(-1, 1, 1, 1, 1)
        )


def through_windows(model, condition, plan, weights_KT, *, order=None):
    """The windowed denoiser written out once more, so that the order of arrival can be set."""

    def denoise(x, timestep_B):
        parts = []
        for k in order or range(len(plan.starts)):
            view = [v[:, :, plan.slice(k)] for v in (x, condition)]
            one = ssr.denoiser(model, view[1], TEXT, LEVEL, schedule=SCHEDULE)
            parts.append((k, one(view[0], timestep_B)))
        return reduce(parts, plan, weights_KT)

    return denoise


def whole(model, condition):
    return ssr.denoiser(model, condition, TEXT, LEVEL, schedule=SCHEDULE)


def solved(denoise, frames: int, settings_: Sampling, px: int = 2) -> torch.Tensor:
    x = samplers.initial([7], frames=frames, shape=(3, px, px))
    return samplers.solve(denoise, x, seeds=[7], settings=settings_)


def windowed(model, condition, plan, **more):
    return samplers.windowed(
        model, condition, TEXT, level_B=LEVEL, schedule=SCHEDULE, plan=plan, **more
    )


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "ddpm"])
@pytest.mark.parametrize("threshold", ["none", "static", "dynamic"])
def test_1_one_window_is_the_plain_sampler_to_the_bit(sampler, threshold):
    condition, how = randn(1, 3, 9, 2, 2), told(sampler, 5, threshold)
    plain = solved(whole(Reach(1), condition), 9, how)
    one = windowed(Reach(1), condition, windows.even(9, 20, 2))
    assert torch.equal(solved(one, 9, how), plain)
    two = windowed(Reach(1), condition, windows.even(9, 6, 2))
    assert not torch.allclose(solved(two, 9, how), plain, atol=1e-3)


@settings(max_examples=20)
@given(plans(), st.sampled_from(KINDS), st.sampled_from(["ddim", "dpm++", "ddpm"]))
def test_2_a_frame_local_network_knows_no_windows(plan, kind, sampler):
    """Multistep solvers too: there is one history, of the reduced prediction."""
    condition = randn(1, 3, 18, 2, 2)
    plain = solved(whole(Reach(0), condition), 18, told(sampler))
    found = solved(windowed(Reach(0), condition, plan, kind=kind), 18, told(sampler))
    assert (found - plain).abs().max() <= 1e-6


@settings(max_examples=30)
@given(st.integers(1, 3), st.data(), st.sampled_from(KINDS), st.sampled_from(["ddim", "dpm++"]))
def test_3_trim_as_wide_as_the_receptive_field_gives_the_whole_video(reach, data, kind, sampler):
    plan = data.draw(plans(least_overlap=2 * reach))
    condition = randn(1, 3, 18, 2, 2)
    plain = solved(whole(Reach(reach), condition), 18, told(sampler))

    def by(trim):
        found = windowed(Reach(reach), condition, plan, kind=kind, trim=trim)
        return solved(found, 18, told(sampler))

    assert (by(reach) - plain).abs().max() <= 1e-6
    if len(plan.starts) > 1:  # control: without trim, and with one frame too few, it shows
        assert (by(0) - plain).abs().max() > 1e-4
        assert (by(reach - 1) - plain).abs().max() > 1e-5


@settings(max_examples=20)
@given(plans(), st.sampled_from(KINDS))
def test_4_windows_cut_from_the_result_agree_and_a_second_reduction_changes_nothing(plan, kind):
    parts = [(k, randn(1, 2, plan.window, 2, 1, seed=k)) for k in range(len(plan.starts))]
    weights_KT = windows.weights(plan, kind)
    video = reduce(parts, plan, weights_KT)
    again = [(k, video[:, :, plan.slice(k)]) for k, _ in parts]
    assert torch.equal(reduce(again, plan, weights_KT), video)


@given(plans(), st.sampled_from(KINDS), st.integers(0, 2))
def test_6_time_reversal_of_plans_that_are_their_own_mirror(plan, kind, trim):
    count = len(plan.starts)
    mirror = tuple(plan.frames - plan.window - start for start in reversed(plan.starts))
    assume(mirror == plan.starts and all(overlap >= 2 * trim for overlap in plan.overlaps))
    weights_KT = windows.weights(plan, kind, trim)
    assert torch.allclose(weights_KT.flip(0, 1), weights_KT, atol=1e-12)
    parts = [randn(1, 2, plan.window, 2, 1, seed=k) for k in range(count)]
    mirrored = [(count - 1 - k, part.flip(2)) for k, part in enumerate(parts)]
    forward = reduce(enumerate(parts), plan, weights_KT)
    assert torch.allclose(reduce(mirrored, plan, weights_KT).flip(2), forward, atol=2e-6)


@given(plans(), st.sampled_from(KINDS), st.integers(0, 2**31))
def test_8_every_other_video_has_a_larger_objective(plan, kind, seed):
    weights_KT = windows.weights(plan, kind)
    parts = [randn(1, 2, plan.window, 2, 1, seed=k) for k in range(len(plan.starts))]

    def objective(video):
        gaps = [weights_KT[k, plan.slice(k), None, None] * (video[:, :, plan.slice(k)] - p).square()
                for k, p in enumerate(parts)]  # fmt: skip
        return float(sum(gap.sum() for gap in gaps))

    best = reduce(enumerate(parts), plan, weights_KT).double()
    change = 0.01 * randn(*best.shape, seed=seed)
    # weights sum to 1 on a frame, so that the objective grows by exactly the change's square
    grown = objective(best + change) - objective(best)
    assert grown == pytest.approx(float(change.square().sum()), rel=1e-3)


@settings(max_examples=15)
@given(plans(), st.randoms(), st.sampled_from(["ddim", "dpm++", "ddpm"]))
def test_9_order_repetition_and_retries_change_no_bit(plan, random, sampler):
    condition, count = randn(1, 3, 18, 2, 2), len(plan.starts)
    plain = solved(windowed(Reach(1), condition, plan), 18, told(sampler, 5, "dynamic"))
    order = [*range(count), *random.choices(range(count), k=2)]
    random.shuffle(order)
    again = through_windows(Reach(1), condition, plan, windows.weights(plan), order=order)
    assert torch.equal(solved(again, 18, told(sampler, 5, "dynamic")), plain)
    lost = through_windows(Reach(1), condition, plan, windows.weights(plan), order=range(1, count))
    if count > 1:
        with pytest.raises(ValueError, match=r"windows \[0\] are missing"):
            solved(lost, 18, told())


class Silent(torch.nn.Module):
    """No detail: ssr.denoiser is then the exact denoiser of data Gaussian around the condition."""

    def forward(self, x_BCTHW, *_given, **_named):
        return torch.zeros_like(x_BCTHW[:, :3])


def spreads(video: torch.Tensor, plan: windows.Plan) -> float:
    """Return the std on frames of several windows over that on frames of one."""
    covered = torch.zeros(plan.frames)
    for k in range(len(plan.starts)):
        covered[plan.slice(k)] += 1
    return float(video[:, :, covered > 1].std() / video[:, :, covered == 1].std())


@pytest.mark.parametrize("kind", KINDS)
def test_10_step_noise_keeps_its_variance_where_windows_overlap(kind):
    """About 60 000 values on either side: one standard error of the ratio is 0.004."""
    plan = windows.exact(20, 8, 2)
    condition = torch.zeros(1, 3, 20, 72, 72)
    found = solved(windowed(Silent(), condition, plan, kind=kind), 20, told("ddpm", 10), px=72)
    assert spreads(found, plan) == pytest.approx(1.0, abs=0.02)


def test_10_control_noise_drawn_for_each_window_is_thinned():
    """The defect: every window takes its own ancestral step, and the states are averaged."""
    plan = windows.exact(20, 8, 2)
    weights_KT = windows.weights(plan, "uniform")
    x = samplers.initial([7], frames=20, shape=(3, 48, 48))
    scheduler = diffusion.make_scheduler("ddpm", SCHEDULE, 10)
    for step, timestep in enumerate(diffusion.timesteps(SCHEDULE, 10)):
        parts = []
        for k in range(len(plan.starts)):
            view = x[:, :, plan.slice(k)]
            said = whole(Silent(), torch.zeros_like(view))(view, torch.tensor([timestep]))
            own = noise.normal(
                100 + k, stream="step", step=step, frames=range(8), shape=(3, 48, 48)
            )
            fresh = own.transpose(0, 1)[None]
            parts.append((k, diffusion.advance(scheduler, said, step, view, step_noise=fresh)))
        x = reduce(parts, plan, weights_KT)
    assert spreads(x, plan) < 0.85


def by_steps(say, plan, weights_KT, threshold: str) -> torch.Tensor:
    """Step each window, then average, as the reference implementation does; say(k, view, timestep_B)."""
    x = samplers.initial([7], frames=plan.frames, shape=(3, 2, 2))
    scheduler = diffusion.make_scheduler("ddim", SCHEDULE, 5)
    for step, timestep in enumerate(diffusion.timesteps(SCHEDULE, 5)):
        parts, at = [], torch.tensor([timestep])
        for k in range(len(plan.starts)):
            view = x[:, :, plan.slice(k)]
            said = diffusion.thresholded(say(k, view, at), view, at, SCHEDULE, mode=threshold)
            parts.append((k, diffusion.advance(scheduler, said, step, view)))
        x = reduce(parts, plan, weights_KT)
    return x


@settings(max_examples=20)
@given(plans(), st.sampled_from(KINDS))
def test_11_averaging_before_or_after_an_unclipped_ddim_step_is_the_same(plan, kind):
    condition = randn(1, 3, 18, 2, 2)

    def say(k, view, at):
        return whole(Reach(1), condition[:, :, plan.slice(k)])(view, at)

    before = solved(windowed(Reach(1), condition, plan, kind=kind), 18, told())
    after = by_steps(say, plan, windows.weights(plan, kind), "none")
    assert torch.allclose(after, before, atol=1e-5)


def bright(levels):
    """Windows that are sure of one brightness each."""
    return lambda k, view, at: diffusion.from_x0(
        torch.full_like(view, levels[k]), view, at, SCHEDULE
    )


def reduced(say, plan, weights_KT):
    """The same windows, averaged before the step."""

    def denoise(x, at):
        parts = [(k, say(k, x[:, :, plan.slice(k)], at)) for k in range(len(plan.starts))]
        return reduce(parts, plan, weights_KT)

    return denoise


def test_11_with_clipping_it_is_not_by_the_closed_form():
    """Windows that say 0.5 and 1.5: clip(mean) = 1, mean(clip) = 0.75."""
    plan = windows.exact(12, 8, 4)
    weights_KT, say = windows.weights(plan, "uniform"), bright((0.5, 1.5))
    before = solved(reduced(say, plan, weights_KT), 12, told(threshold="static"))
    after = by_steps(say, plan, weights_KT, "static")
    assert before[:, :, 4:8].flatten().tolist() == pytest.approx([1.0] * 48, abs=1e-5)
    assert after[:, :, 4:8].flatten().tolist() == pytest.approx([0.75] * 48, abs=1e-5)


@given(st.integers(2, 7), st.floats(0.05, 2.0))
def test_12_seams_by_the_closed_form_none_uniform_linear(overlap, delta):
    """Largest step between frames: delta, delta / 2, delta / (overlap + 1)."""

    def largest(overlap, kind):
        plan = windows.exact(2 * 16 - overlap, 16, overlap)
        parts = [(k, torch.full((1, 3, 16, 2, 2), k * delta)) for k in range(2)]
        video = reduce(parts, plan, windows.weights(plan, kind))[0]
        return 2 * float(motion.differences(video).max())  # differences are on a [0, 1] scale

    none, uniform, linear = (
        largest(0, "linear"),
        largest(overlap, "uniform"),
        largest(overlap, "linear"),
    )
    assert none > uniform > linear
    expected = [delta, delta / 2, delta / (overlap + 1)]
    assert [none, uniform, linear] == pytest.approx(expected, rel=1e-3)


def test_12_seams_of_a_sampled_video_have_the_same_closed_forms():
    """Windows that differ in brightness by 0.4, through the whole reverse process."""
    found = []
    for overlap, kind in ((0, "linear"), (3, "uniform"), (3, "linear")):
        plan = windows.exact(16 - overlap, 8, overlap)
        denoise = reduced(bright((0.0, 0.4)), plan, windows.weights(plan, kind))
        video = solved(denoise, plan.frames, told())[0]
        found.append(2 * float(motion.differences(video).max()))
    assert found == pytest.approx([0.4, 0.2, 0.1], abs=1e-4)


@given(plans(), st.sampled_from(KINDS), st.sampled_from([torch.bfloat16, torch.float16]))
def test_13_low_precision_windows_are_reduced_in_fp32(plan, kind, dtype):
    weights_KT = windows.weights(plan, kind)
    parts = [randn(1, 2, plan.window, 2, 1, seed=k).to(dtype) for k in range(len(plan.starts))]
    found = reduce(enumerate(parts), plan, weights_KT)
    assert found.dtype == torch.float32
    assert torch.equal(found, reduce(enumerate(p.float() for p in parts), plan, weights_KT))


@given(plans(), st.data(), st.sampled_from([float("nan"), float("inf")]))
def test_13_a_window_that_is_not_finite_is_named(plan, data, bad):
    k = data.draw(st.integers(0, len(plan.starts) - 1))
    parts = [randn(1, 1, plan.window, 2, 1, seed=i) for i in range(len(plan.starts))]
    parts[k][0, 0, data.draw(st.integers(0, plan.window - 1)), 0, 0] = bad
    with pytest.raises(ValueError, match=f"window {k} holds NaN or infinite"):
        reduce(enumerate(parts), plan, windows.weights(plan))
