"""Parameterisations invert each other; every sampler reaches the target of an exact denoiser."""

import json
import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from models import diffusion, noise
from models.diffusion import Schedule

SCHEDULES = [
    Schedule(name=name, prediction=prediction, zero_terminal_snr=zero)
    for name in ("cosine", "linear")
    for prediction in ("v", "epsilon", "x0")
    for zero in (True, False)
    if not (zero and prediction == "epsilon")
]
TIMES = torch.tensor([1, 500, 990])
SHAPE = (3, 3, 4, 5, 5)


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_alphas_fall_from_one_to_nothing(schedule):
    abar = diffusion.alphas_cumprod(schedule)
    assert abar.shape == (1000,)
    assert (abar[1:] < abar[:-1]).all()
    assert 0.99 < abar[0] < 1
    assert (float(abar[-1]) == 0.0) == schedule.zero_terminal_snr


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_target_gives_back_clean_video_and_noise(schedule):
    x0, eps = pair()
    x_t = diffusion.add_noise(x0, eps, TIMES, schedule)
    wanted = diffusion.target(x0, eps, TIMES, schedule)
    assert torch.allclose(diffusion.to_eps(wanted, x_t, TIMES, schedule), eps, atol=1e-3)
    keep = slice(0, 2) if schedule.prediction == "epsilon" else slice(None)
    back = diffusion.to_x0(wanted, x_t, TIMES, schedule)
    assert torch.allclose(back[keep], x0[keep], atol=1e-3)
    again = diffusion.from_x0(x0, x_t, TIMES, schedule)
    assert torch.allclose(again, wanted, atol=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_loss_is_zero_for_a_perfect_denoiser_and_apart_for_each_item(schedule):
    x0, eps = pair()
    perfect = diffusion.target(x0, eps, TIMES, schedule)
    told = {"schedule": schedule, "timestep_B": TIMES, "noise_BCTHW": eps}
    assert diffusion.loss(lambda _x, _t: perfect, x0, **told).abs().max() == 0
    wrong = perfect.clone()
    wrong[1] += 0.5
    loss_B = diffusion.loss(lambda _x, _t: wrong, x0, **told)
    assert torch.allclose(loss_B, torch.tensor([0, 0.25, 0]), atol=1e-5)


def test_min_snr_weights_by_their_formulas():
    for prediction, formula in (
        ("v", lambda snr: min(snr, 5) / (snr + 1)),
        ("x0", lambda snr: min(snr, 5)),
        ("epsilon", lambda snr: min(snr, 5) / snr),
    ):
        schedule = Schedule(prediction=prediction, zero_terminal_snr=False)
        abar = diffusion.alphas_cumprod(schedule)[TIMES]
        snrs = (abar / (1 - abar)).tolist()
        weights = diffusion.min_snr_weight(schedule, TIMES, 5.0)
        assert weights.tolist() == pytest.approx([formula(snr) for snr in snrs])
        assert diffusion.min_snr_weight(schedule, TIMES, math.inf).tolist() == [1, 1, 1]


def test_draws_do_not_depend_on_the_batch():
    frames_BT = torch.tensor([[3, 4], [8, 9], [0, 1]])
    whole = diffusion.draw(Schedule(), [5, 6, 7], step=4, frames_BT=frames_BT, shape=(3, 2, 2))
    alone = diffusion.draw(Schedule(), [6], step=4, frames_BT=frames_BT[1:2], shape=(3, 2, 2))
    assert torch.equal(whole.timestep_B[1:2], alone.timestep_B)
    assert torch.equal(whole.noise_BCTHW[1:2], alone.noise_BCTHW)
    assert whole.noise_BCTHW.shape == (3, 3, 2, 2, 2)
    first = noise.normal(6, stream="train", step=4, frames=[9], shape=(3, 2, 2))
    assert torch.equal(whole.noise_BCTHW[1, :, 1], first[0])


def test_drawn_timesteps_are_uniform():
    frames_BT = torch.zeros(600, 1, dtype=torch.int64)
    drawn = diffusion.draw(Schedule(), range(600), step=0, frames_BT=frames_BT, shape=(1, 1, 1))
    assert 0 <= drawn.timestep_B.min() < 20
    assert 980 <= drawn.timestep_B.max() < 1000
    assert abs(drawn.timestep_B.double().mean() - 499.5) < 40


def test_thresholds_look_at_the_whole_video():
    x = torch.zeros(2, 1, 10, 4, 4)
    x[0, :, :5] = 3.0
    x[1] = 0.5
    assert diffusion.threshold(x, "static").max() == 1
    dynamic = diffusion.threshold(x, "dynamic")
    assert torch.equal(dynamic[1], x[1])
    assert torch.equal(dynamic[0], x[0] / 3.0)
    assert torch.equal(diffusion.threshold(x, "none"), x)
    with pytest.raises(ValueError, match="unknown threshold mode 'soft'"):
        diffusion.threshold(x, "soft")


def test_the_dynamic_limit_is_a_quantile_of_all_magnitudes():
    ramp = torch.arange(1, 2001, dtype=torch.float32) / 500.0  # up to 4
    x = (ramp * torch.tensor([1.0, -1.0]).repeat(1000)).reshape(1, 1, 20, 10, 10)
    for quantile, limit in ((0.995, 3.98), (0.5, 2.0)):
        wanted = x.clamp(-limit, limit) / limit
        assert torch.equal(diffusion.threshold(x, "dynamic", quantile=quantile), wanted)
    assert torch.equal(diffusion.threshold(x, "dynamic"), x.clamp(-3.98, 3.98) / 3.98)
    small = x / 5.0  # below 1 nothing is stretched
    assert torch.equal(diffusion.threshold(small, "dynamic"), small)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_thresholded_prediction_stands_for_the_thresholded_video(schedule):
    x0, eps = pair()
    times = torch.tensor([300, 500, 700])
    x_t = diffusion.add_noise(x0, eps, times, schedule)
    prediction = diffusion.target(x0, eps, times, schedule)
    cut = diffusion.thresholded(prediction, x_t, times, schedule, mode="static")
    back = diffusion.to_x0(cut, x_t, times, schedule)
    assert torch.allclose(back, x0.clamp(-1, 1), atol=2e-3)
    small = diffusion.target(x0 * 0.01, eps, times, schedule)
    x_t = diffusion.add_noise(x0 * 0.01, eps, times, schedule)
    assert torch.equal(diffusion.thresholded(small, x_t, times, schedule, mode="static"), small)


def test_impossible_settings_are_named():
    with pytest.raises(ValueError, match="carries nothing at zero terminal SNR"):
        Schedule(prediction="epsilon")
    with pytest.raises(ValueError, match="unknown sampler 'euler'"):
        diffusion.make_scheduler("euler", Schedule(), 10)
    scheduler = diffusion.make_scheduler("dpm++", Schedule(), 10)
    with pytest.raises(TypeError, match="needs the ddpm sampler"):
        diffusion.advance(scheduler, torch.zeros(1), 1, torch.zeros(1), step_noise=torch.zeros(1))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_diffusers_uses_our_table(schedule):
    abar = diffusion.alphas_cumprod(schedule)
    for name, steps in (("ddim", 1000), ("ddim", 30), ("dpm++", 30)):
        scheduler = diffusion.make_scheduler(name, schedule, steps)
        at = diffusion.timesteps(schedule, steps)
        table = scheduler.alphas_cumprod.double()[scheduler.timesteps]
        assert torch.allclose(table, abar[at], atol=1e-5)
    assert diffusion.timesteps(schedule, 10) == list(range(999, 0, -100))


@given(
    st.sampled_from(SCHEDULES), st.integers(0, 997), st.integers(0, 2**32 - 1), st.floats(0.01, 3.0)
)
def test_every_pair_of_conversions_is_inverse(schedule, t, seed, scale):
    """In float64, so that what is tested is the algebra; the ends are where alpha or sigma is small."""
    generator = torch.Generator().manual_seed(seed)
    x_t, x0 = torch.randn(2, 2, 1, 2, 2, 2, generator=generator, dtype=torch.float64) * scale
    times = torch.tensor([t, t + 1])
    prediction = diffusion.from_x0(x0, x_t, times, schedule)
    assert torch.allclose(diffusion.to_x0(prediction, x_t, times, schedule), x0, atol=1e-8)
    eps = diffusion.to_eps(prediction, x_t, times, schedule)
    assert torch.allclose(diffusion.add_noise(x0, eps, times, schedule), x_t, atol=1e-8)
    assert torch.allclose(diffusion.target(x0, eps, times, schedule), prediction, atol=1e-6)


@given(st.integers(1, 1000), st.sampled_from([1000, 50, 7]))
def test_timesteps_start_at_pure_noise_and_fall_evenly(steps, total):
    schedule = Schedule(num_timesteps=total)
    if steps > total:
        with pytest.raises(ValueError, match="must lie in"):
            diffusion.timesteps(schedule, steps)
        return
    times = diffusion.timesteps(schedule, steps)
    gaps = {a - b for a, b in zip(times, [*times[1:], -1], strict=True)}
    assert len(times) == steps
    assert times[0] == total - 1
    assert gaps <= {total // steps, -(-total // steps)}


def test_dynamic_thresholds_do_not_depend_on_the_order_of_frames():
    """One quantile for the whole video: a quantile for each window would be a gain for each window."""
    x0, _ = pair()
    x0 = x0 * torch.linspace(0.2, 4.0, 4)[None, None, :, None, None]
    whole = diffusion.threshold(x0, "dynamic")
    assert torch.equal(diffusion.threshold(x0.flip(2), "dynamic"), whole.flip(2))
    parts = [
        diffusion.threshold(x0[:, :, :2], "dynamic"),
        diffusion.threshold(x0[:, :, 2:], "dynamic"),
    ]
    assert not torch.allclose(torch.cat(parts, dim=2), whole, atol=0.1)


@pytest.mark.parametrize(
    "wrong", [{"name": "scaled"}, {"prediction": "eps"}, {"num_timesteps": 1}], ids=str
)
def test_unknown_words_of_a_schedule_are_refused(wrong):
    with pytest.raises(ValueError, match=r"unknown schedule|at least 2"):
        Schedule(**wrong)


@pytest.mark.parametrize("num_timesteps", [2, 10, 19, 1000])
@pytest.mark.parametrize("name", ["cosine", "linear", "scaled_linear"])
def test_abar_falls_within_zero_and_one(name, num_timesteps):
    told = {"prediction": "epsilon", "zero_terminal_snr": False}
    abar = diffusion.alphas_cumprod(Schedule(name=name, num_timesteps=num_timesteps, **told))
    assert bool((abar > 0).all())
    assert bool((abar < 1).all())
    assert bool((abar.diff() < 0).all())


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, "scaled_linear"),
        ({"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}, "cosine"),
        ({"beta_schedule": "linear", "rescale_betas_zero_snr": False}, "linear"),
    ],
)  # fmt: skip
def test_a_pipelines_own_schedule_is_diffusers_table(told, name, tmp_path):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(told))
    found = Schedule.of_diffusers(tmp_path)
    assert found.name == name
    assert found.prediction == ("v" if "prediction_type" in told else "epsilon")
    theirs = DDIMScheduler(**told).alphas_cumprod
    assert torch.allclose(diffusion.alphas_cumprod(found).float(), theirs, atol=1e-5)


@pytest.mark.parametrize(
    "told",
    [
        {"beta_schedule": "sigmoid"},
        {"beta_start": 0.1},
        {"prediction_type": "flow"},
        {"num_train_timesteps": 500},
        {"trained_betas": [0.1] * 1000},
        [],
    ],
    ids=str,
)
def test_a_pipelines_other_schedule_is_refused(told, tmp_path):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="scheduler_config"):
        Schedule.of_diffusers(tmp_path)


@pytest.mark.parametrize("prediction", ["v", "epsilon", "x0"])
@pytest.mark.parametrize("steps", [1, 7, 61])
def test_a_ddim_step_is_diffusers_own(prediction, steps):
    """In float64, table and all: what is left is rounding, and a wrong weight is not."""
    schedule = Schedule(prediction=prediction, zero_terminal_snr=prediction == "v")
    ours = diffusion.make_scheduler("ddim", schedule, steps)
    ours.alphas_cumprod = ours.alphas_cumprod.double()
    ours.final_alpha_cumprod = ours.final_alpha_cumprod.double()
    generator = torch.Generator().manual_seed(steps)
    x, said = (torch.randn(1, 3, 2, 4, 4, generator=generator).double() for _ in range(2))
    for step in range(steps):
        told = diffusion.advance(ours, said, step, x)
        own = ours.step(said, ours.timesteps[step], x, return_dict=False)[0]
        assert torch.allclose(told, own, rtol=1e-9, atol=1e-9), step
