"""Samplers against analytic denoisers: targets, moments, batches, windows."""

import pytest
import torch

from models import diffusion, guidance, noise, samplers, ssr, windows
from models.diffusion import Schedule
from models.samplers import Sampling

ZERO, ENDING = Schedule(), Schedule(name="linear", prediction="epsilon", zero_terminal_snr=False)
MEAN, STD = 0.3, 0.5


def gaussian(schedule: Schedule, mean: torch.Tensor | float, std: float) -> diffusion.Denoise:
    """The exact denoiser of Gaussian data: the posterior mean of x0 given x_t."""

    def denoise(x: torch.Tensor, timestep_B: torch.Tensor) -> torch.Tensor:
        alpha, sigma = diffusion.alpha_sigma(schedule, timestep_B, x)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return diffusion.from_x0(mean + gain * (x - alpha * mean), x, timestep_B, schedule)

    return denoise


def start(seeds: list[int], frames: int = 4, px: int = 32) -> torch.Tensor:
    return samplers.initial(seeds, frames=frames, shape=(3, px, px))


def settings(sampler: str, steps: int, schedule: Schedule = ZERO, **more) -> Sampling:
    return Sampling(schedule=schedule, sampler=sampler, steps=steps, threshold="none", **more)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "ddpm"])
@pytest.mark.parametrize("schedule", [ZERO, ENDING])
def test_certain_data_is_reached_exactly(sampler, schedule):
    target = torch.rand(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    denoise = gaussian(schedule, target, 0.0)
    x = samplers.solve(
        denoise, start([1], px=8), seeds=[1], settings=settings(sampler, 10, schedule)
    )
    assert (x - target).abs().max() < 1e-4


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "ddpm"])
@pytest.mark.parametrize("schedule", [ZERO, ENDING])
def test_gaussian_data_keeps_its_mean_and_spread(sampler, schedule):
    x = samplers.solve(
        gaussian(schedule, MEAN, STD),
        start([1, 2]),
        seeds=[1, 2],
        settings=settings(sampler, 250, schedule),
    )
    assert x.mean() == pytest.approx(MEAN, abs=0.02)
    assert x.std() == pytest.approx(STD, rel=0.05)


def test_deterministic_samplers_map_noise_monotonically():
    x = start([1])
    for sampler in ("ddim", "dpm++"):
        out = samplers.solve(
            gaussian(ZERO, MEAN, STD), x, seeds=[1], settings=settings(sampler, 100)
        )
        assert torch.allclose(out, MEAN + STD * x, atol=0.15)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "ddpm"])
def test_a_sample_does_not_depend_on_its_batch(sampler):
    told = settings(sampler, 10)
    denoise = gaussian(ZERO, MEAN, STD)
    both = samplers.solve(denoise, start([7, 8]), seeds=[7, 8], settings=told)
    alone = samplers.solve(denoise, start([8]), seeds=[8], settings=told)
    assert torch.equal(both[1:], alone)
    assert not torch.allclose(both[:1], alone)


def test_thresholding_holds_the_result_in_range():
    loud = gaussian(ZERO, 2.0, 0.1)
    free = samplers.solve(loud, start([1]), seeds=[1], settings=settings("ddim", 10))
    held = samplers.solve(loud, start([1]), seeds=[1], settings=Sampling(steps=10))
    assert free.max() > 1.5
    assert held.max() <= 1.0 + 1e-4


def test_guidance_one_is_the_conditional_model_and_two_extrapolates():
    def conditional(x, _t):
        return x + 1.0

    def forbidden(_x, _t):
        raise AssertionError("the unconditional branch must not run")

    x, t = torch.zeros(1), torch.zeros(1)
    assert guidance.guided(conditional, forbidden, 1.0)(x, t) == 1.0
    assert guidance.guided(conditional, lambda x, _t: x, 3.0)(x, t) == 3.0


def test_step_counts_outside_the_schedule_are_refused():
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=rf"steps {steps} must lie in 1..1000"):
            Sampling(steps=steps)


def reference_ddim(denoise: diffusion.Denoise, x: torch.Tensor, steps: int) -> torch.Tensor:
    """Song et al. 2021, eq. 12 with eta 0, in float64 and from timestep to timestep of a list."""
    times = [round(1000 * (steps - i) / steps) - 1 for i in range(steps)]
    abar = diffusion.alphas_cumprod(ZERO)
    for t, after in zip(times, [*times[1:], -1], strict=True):
        at = torch.full((len(x),), t)
        prediction = denoise(x, at)
        x0, eps = (f(prediction, x, at, ZERO) for f in (diffusion.to_x0, diffusion.to_eps))
        kept = abar[after] if after >= 0 else torch.tensor(1.0, dtype=torch.float64)
        x = kept.sqrt() * x0 + (1 - kept).sqrt() * eps
    return x


@pytest.mark.parametrize("steps", [1, 7, 12, 50, 61, 300])
def test_ddim_steps_need_not_divide_the_schedule(steps):
    x, denoise = start([1], px=8), gaussian(ZERO, MEAN, STD)
    out = samplers.solve(denoise, x, seeds=[1], settings=settings("ddim", steps))
    assert torch.allclose(out.double(), reference_ddim(denoise, x.double(), steps), atol=1e-4)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "ddpm"])
@pytest.mark.parametrize("steps", [1, 2, 61, 103, 333])
def test_any_number_of_steps_ends_at_clean_video(sampler, steps):
    target = torch.rand(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    told = settings(sampler, steps)
    seen = []

    def denoise(x, timestep_B):
        seen.append(int(timestep_B[0]))
        return gaussian(ZERO, target, 0.0)(x, timestep_B)

    x = samplers.solve(denoise, start([1], px=8), seeds=[1], settings=told)
    # DPM-Solver++ holds the last abar at 2^-24, so a single step keeps 2^-12 of the noise
    assert (x - target).abs().max() < (2e-3 if (sampler, steps) == ("dpm++", 1) else 1e-4)
    assert seen == diffusion.timesteps(ZERO, steps)


class FrameLocal(torch.nn.Module):
    """A network that treats every frame alone: any plan must give the same video."""

    def forward(self, x_BCTHW, timestep_B, text_BND, *, level_B):
        t = timestep_B.reshape(-1, 1, 1, 1, 1) / 1000.0
        shift = text_BND.mean((1, 2)).reshape(-1, 1, 1, 1, 1) + level_B.reshape(-1, 1, 1, 1, 1)
        return torch.sin(3.0 * x_BCTHW[:, :3] + t + x_BCTHW[:, 3:]) * 0.3 + shift


class Neighbours(FrameLocal):
    """A network that looks at other frames of its window: plans must matter (negative control)."""

    def forward(self, x_BCTHW, timestep_B, text_BND, *, level_B):
        local = super().forward(x_BCTHW, timestep_B, text_BND, level_B=level_B)
        return local + 0.2 * x_BCTHW[:, :3].mean(2, keepdim=True)


LOW = torch.rand(2, 3, 12, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
TEXT = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
PLANS = [
    windows.even(12, 12, 0),
    windows.even(12, 5, 2),
    windows.clamped(12, 4, 3),
    windows.exact(12, 4, 0),
]


def enlarge(model: torch.nn.Module, plan: windows.Plan, *, rows=slice(None), told=None, **more):
    return samplers.sample_ssr(
        model,
        LOW[rows],
        TEXT[rows],
        TEXT[rows] * 0,
        seeds=[3, 4][rows],
        scale=2,
        plan=plan,
        settings=told or settings("ddim", 5),
        **more,
    )


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "ddpm"])
@pytest.mark.parametrize("weights", ["linear", "uniform", "hann"])
def test_a_frame_local_network_gives_the_same_for_every_plan(sampler, weights):
    told = settings(sampler, 5)
    first = enlarge(FrameLocal(), PLANS[0], told=told)
    for plan in PLANS[1:]:
        assert torch.equal(enlarge(FrameLocal(), plan, told=told, weights=weights), first)


def test_control_a_network_that_sees_its_window_does_not():
    first = enlarge(Neighbours(), PLANS[0])
    assert all(not torch.allclose(enlarge(Neighbours(), p), first, atol=1e-2) for p in PLANS[1:])


@pytest.mark.parametrize("micro_batch", [2, 3, 100])
def test_micro_batches_and_batches_change_nothing(micro_batch):
    plan = PLANS[1]
    both = enlarge(Neighbours(), plan)
    assert torch.allclose(enlarge(Neighbours(), plan, micro_batch=micro_batch), both, atol=1e-5)
    for row in (0, 1):
        alone = enlarge(Neighbours(), plan, rows=slice(row, row + 1))
        assert torch.allclose(alone, both[row : row + 1], atol=1e-5)


def test_step_noise_is_not_thinned_where_windows_overlap():
    """Averaging the noise of K windows would shrink it by sqrt(K) inside the overlaps."""
    plan = windows.exact(12, 8, 4)
    weights_KT = windows.weights(plan, "uniform")
    exact = gaussian(ZERO, MEAN, STD)

    def windowed(x, timestep_B):
        parts = [(k, exact(x[:, :, plan.slice(k)], timestep_B)) for k in range(len(plan.starts))]
        return samplers.multidiffusion.reduce(parts, plan, weights_KT)

    told = settings("ddpm", 20)
    x = samplers.solve(windowed, start([5], 12), seeds=[5], settings=told)
    inside, outside = x[:, :, 4:8].std(), x[:, :, [0, 1, 2, 3, 8, 9, 10, 11]].std()
    assert inside / outside == pytest.approx(1.0, abs=0.03)


def test_the_condition_is_augmented_once_for_each_frame():
    seen = []

    class Spy(FrameLocal):
        def forward(self, x_BCTHW, timestep_B, text_BND, *, level_B):
            seen.append(x_BCTHW[:, 3:])
            return super().forward(x_BCTHW, timestep_B, text_BND, level_B=level_B)

    plan = windows.exact(12, 8, 4)
    enlarge(Spy(), plan, rows=slice(0, 1), told=settings("ddim", 1), augment_level=0.3)
    first, second = seen
    assert torch.equal(first[:, :, 4:], second[:, :, :4])
    clean = ssr.upsample(LOW[:1], 2)[:, :, :8]
    own = noise.seed_for("ssr", 2, 3)
    drawn = noise.normal(own, stream="augment", step=0, frames=range(8), shape=(3, 8, 8))
    expected = (1 - 0.09) ** 0.5 * clean + 0.3 * drawn.transpose(0, 1)
    assert torch.allclose(first, expected, atol=1e-5)
