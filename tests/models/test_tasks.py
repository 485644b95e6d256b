"""Every task is one sampling function: known pixels, compositing and SDEdit, against exact denoisers."""

import itertools

import pytest
import torch

from models import diffusion, known, samplers, solver, windows
from models.diffusion import Schedule
from models.known import Known
from models.samplers import Sampling, Start

ZERO, ENDING = Schedule(), Schedule(name="linear", prediction="epsilon", zero_terminal_snr=False)
MEAN, STD = 0.3, 0.5
SAMPLERS = ["ddim", "dpm++", "ddpm"]


def normal(seed: int, *, frames: int = 4, px: int = 32) -> torch.Tensor:
    return torch.randn(1, 3, frames, px, px, generator=torch.Generator().manual_seed(seed))


def gaussian(schedule: Schedule, mean: torch.Tensor | float = MEAN, std: float = STD):
    """The exact denoiser of Gaussian data: the posterior mean of x0 given x_t."""

    def denoise(x, timestep_B):
        alpha, sigma = diffusion.alpha_sigma(schedule, timestep_B, x)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return diffusion.from_x0(mean + gain * (x - alpha * mean), x, timestep_B, schedule)

    return denoise


def still(schedule: Schedule, spread: float = 0.05):
    """The exact denoiser of videos whose frames all show one random picture, plus a little noise."""

    def denoise(x, timestep_B):
        frames = x.shape[2]
        alpha, sigma = diffusion.alpha_sigma(schedule, timestep_B, x)
        a, s = float(alpha.flatten()[0]), float(sigma.flatten()[0])
        covariance = torch.ones(frames, frames) + spread**2 * torch.eye(frames)
        gain = a * covariance @ torch.linalg.inv(a * a * covariance + s * s * torch.eye(frames))
        return diffusion.from_x0(torch.einsum("st,bcthw->bcshw", gain, x), x, timestep_B, schedule)

    return denoise


def solve(denoise, sampler: str, steps: int = 20, schedule: Schedule = ZERO, **more):
    px, frames = 32, 4
    return samplers.solve(
        denoise,
        samplers.initial([1], frames=frames, shape=(3, px, px)),
        seeds=[1],
        settings=Sampling(schedule=schedule, sampler=sampler, steps=steps, threshold="none"),
        **more,
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", [ZERO, ENDING])
@pytest.mark.parametrize("strength", [0.1, 0.5, 0.9])
def test_from_any_start_gaussian_data_keeps_its_mean_and_spread(sampler, schedule, strength):
    source = MEAN + STD * normal(3)
    start = Start(video_BCTHW=source, strength=strength)
    x = solve(gaussian(schedule), sampler, 200, schedule, start=start)
    assert x.mean() == pytest.approx(MEAN, abs=0.02)
    assert x.std() == pytest.approx(STD, rel=0.05)
    assert not torch.allclose(x, source, atol=0.01)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [0.05, 0.1, 0.5, 0.95, 1.0])
def test_from_any_start_certain_data_is_reached_exactly(sampler, strength):
    """A history that did not start empty would be felt here."""
    target = normal(2).clamp(-1, 1)
    start = Start(video_BCTHW=normal(3), strength=strength)
    x = solve(gaussian(ZERO, target, 0.0), sampler, 20, start=start)
    assert (x - target).abs().max() < 1e-4


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_strength_0_returns_the_video_bit_for_bit(sampler):
    def forbidden(_x, _t):
        raise AssertionError("no step is to be run")

    source = normal(3)
    assert torch.equal(
        solve(forbidden, sampler, start=Start(video_BCTHW=source, strength=0.0)), source
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_strength_1_is_text_to_video_bit_for_bit_at_zero_terminal_snr_only(sampler):
    start = Start(video_BCTHW=5.0 * normal(3), strength=1.0)
    assert torch.equal(solve(gaussian(ZERO), sampler, start=start), solve(gaussian(ZERO), sampler))
    with_trace = solve(gaussian(ENDING), sampler, 20, ENDING, start=start)
    assert not torch.equal(with_trace, solve(gaussian(ENDING), sampler, 20, ENDING))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_result_leaves_its_source_as_strength_grows(sampler):
    source = MEAN + STD * normal(3)
    errors = []
    for strength in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        start = Start(video_BCTHW=source, strength=strength)
        errors.append(float((solve(gaussian(ZERO), sampler, start=start) - source).square().mean()))
    assert errors[0] == 0
    assert all(b > a for a, b in itertools.pairwise(errors))


def test_dpm_starts_without_history():
    """Its first step is then of first order, and its last always is: two steps are two of DDIM."""

    def end(sampler: str, left: int) -> torch.Tensor:
        start = Start(video_BCTHW=normal(3), strength=left / 10)
        return solve(gaussian(ZERO), sampler, 10, start=start)

    for left in (1, 2):
        assert torch.allclose(end("dpm++", left), end("ddim", left), atol=1e-5)
    assert not torch.allclose(end("dpm++", 3), end("ddim", 3), atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("strength", "first"), [(0.0, 12), (0.25, 9), (0.5, 6), (1.0, 0)])
def test_steps_keep_their_numbers_wherever_a_run_starts(sampler, strength, first, monkeypatch):
    """Noise, guidance and timesteps of a step are those of the whole run."""
    noises, weights, times = [], [], []

    def recorded(_seeds, stream, step, like):
        noises.append((stream, step))
        return torch.zeros_like(like)

    def weight(step, steps):
        weights.append((step, steps))
        return 1.0

    def denoise(x, timestep_B):
        times.append(int(timestep_B[0]))
        return torch.zeros_like(x)

    monkeypatch.setattr(solver, "drawn", recorded)
    told = Sampling(sampler=sampler, steps=12, guidance=weight)
    weights.clear()  # all are asked for once, when the settings are made
    samplers.solve(
        denoise,
        normal(1, px=4),
        seeds=[1],
        settings=told,
        start=Start(video_BCTHW=normal(2, px=4), strength=strength),
    )
    assert times == diffusion.timesteps(ZERO, 12)[first:]
    assert weights == [(k, 12) for k in range(first, 12)]
    assert noises == ([("step", k) for k in range(first, 12)] if sampler == "ddpm" else [])


FIRST = normal(4)[:, :, 0].clamp(-1, 1)
GIVEN = known.image_to_video(FIRST, 4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_compositing_puts_known_pixels_in_bit_for_bit(sampler):
    free = solve(still(ZERO), sampler)
    final = solve(still(ZERO), sampler, known=GIVEN, composite="final")
    every = solve(still(ZERO), sampler, known=GIVEN, composite="every_step")
    assert torch.equal(solve(still(ZERO), sampler, known=GIVEN), free)
    assert torch.equal(final[:, :, 0], FIRST)
    assert torch.equal(every[:, :, 0], FIRST)
    assert torch.equal(final[:, :, 1:], free[:, :, 1:])
    assert not torch.equal(free[:, :, 0], FIRST)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_compositing_every_step_makes_the_rest_around_what_is_known(sampler, prediction):
    """Frames of the data are alike: the made ones must follow the known one, and do so only then.

    Measured: 0.64 to 0.66 for the deterministic samplers, above 0.8 for the ancestral one.
    """
    schedule = Schedule(prediction=prediction)

    def likeness(composite: str) -> float:
        x = solve(still(schedule), sampler, 50, schedule, known=GIVEN, composite=composite)
        made = x[:, :, 1:].mean(2)
        return float(torch.corrcoef(torch.stack((made.flatten(), FIRST.flatten())))[0, 1])

    assert likeness("every_step") > (0.8 if sampler == "ddpm" else 0.5)
    assert abs(likeness("final")) < 0.1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_compositing_leaves_the_law_of_what_is_independent_of_it(sampler):
    x = solve(gaussian(ZERO), sampler, 100, known=GIVEN, composite="every_step")
    assert x[:, :, 1:].mean() == pytest.approx(MEAN, abs=0.02)
    assert x[:, :, 1:].std() == pytest.approx(STD, rel=0.05)


def test_tasks_that_cannot_be_are_named():
    small = normal(1, px=8)
    for more, said in (
        ({"composite": "final"}, "needs known pixels"),
        ({"composite": "sometimes", "known": GIVEN}, "unknown composite 'sometimes'"),
        ({"known": known.nothing(small)}, "`known` has shape"),
        ({"start": Start(video_BCTHW=small, strength=0.5)}, "`start` has shape"),
    ):
        with pytest.raises(ValueError, match=said):
            solve(gaussian(ZERO), "ddim", **more)
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="strength"):
            Start(video_BCTHW=small, strength=strength)


class Plain(torch.nn.Module):
    """A network without known channels: giving it some would be an error of type."""

    def forward(self, x_BCTHW, timestep_B, text_BND, *, temporal=True, **more):
        if not temporal or set(more) - {"level_B"}:
            raise TypeError(f"this network takes no {sorted(more)}")
        shift = text_BND.mean((1, 2)).reshape(-1, 1, 1, 1, 1) + timestep_B[0] / 1e4
        return torch.sin(3.0 * x_BCTHW[:, :3]) * 0.3 + shift


class Conditioned(torch.nn.Module):
    """A network with known channels that looks at each pixel alone."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def forward(self, x_BCTHW, timestep_B, text_BND, *, level_B=None, temporal=True, known_BCTHW=None):  # fmt: skip
        self.seen.append(known_BCTHW)
        plain = Plain()(x_BCTHW, timestep_B, text_BND, level_B=level_B, temporal=temporal)
        if known_BCTHW is None:
            return plain
        return plain + known_BCTHW[:, :3] - 0.5 * known_BCTHW[:, 3:]


TEXT = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(1))


def base(model: torch.nn.Module, scale: float = 3.0, **more) -> torch.Tensor:
    return samplers.sample_base(
        model,
        TEXT,
        TEXT * 0,
        seeds=[3],
        frames=4,
        size_px=(32, 32),
        settings=Sampling(steps=4, guidance_scale=scale, threshold="none"),
        **more,
    )


def test_the_network_is_given_known_pixels_with_text_and_without():
    model = Conditioned()
    base(model, known=GIVEN)
    assert len(model.seen) == 4, "both in one pass"
    both = torch.cat((GIVEN.channels, GIVEN.channels))
    assert all(torch.equal(seen, both) for seen in model.seen)


def test_a_network_without_known_channels_is_never_given_any():
    made = base(Plain())
    assert torch.equal(made, base(Conditioned()))
    assert torch.equal(made, base(Conditioned(), known=known.nothing(made)))
    assert not torch.equal(made, base(Conditioned(), known=GIVEN))
    with pytest.raises(TypeError, match="known_BCTHW"):
        base(Plain(), known=GIVEN)


def test_sample_base_takes_every_argument_of_the_solver():
    source = normal(5)
    kept = Start(video_BCTHW=source, strength=0.0)
    assert torch.equal(base(Plain(), start=kept), source)
    made = base(Plain(), start=kept, known=None)
    assert torch.equal(made, source)
    both = base(Conditioned(), start=kept, known=GIVEN, composite="final")
    assert torch.equal(both, GIVEN.composite(source))
    told = {"seeds": [3], "frames": 4, "size_px": (8, 8), "channels": 4}
    free = Sampling(steps=2, threshold="none")
    assert samplers.sample_base(Latent(), TEXT, TEXT, settings=free, **told).shape == (
        1,
        4,
        4,
        8,
        8,
    )
    with pytest.raises(ValueError, match="for pixels: latents take 'none'"):
        samplers.sample_base(Latent(), TEXT, TEXT, settings=Sampling(steps=2), **told)


class Latent(torch.nn.Module):
    def forward(self, x_BCTHW, *_told, **_more):
        return x_BCTHW


LOW = torch.rand(2, 3, 12, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
HIGH = torch.rand(2, 3, 12, 8, 8, generator=torch.Generator().manual_seed(7)) * 2 - 1
REGION = (torch.arange(12).reshape(1, 1, 12, 1, 1) % 5 == 0).float().expand(2, 1, 12, 8, 8)


@pytest.fixture
def plain_denoiser(monkeypatch):
    """The SSR's form of a denoiser, by its interface: known pixels are handed through."""

    def denoiser(model, condition, text, level_B, *, schedule, precondition=True, known_BCTHW=None):
        assert schedule == ZERO
        more = {} if known_BCTHW is None else {"known_BCTHW": known_BCTHW}
        scale = 1.0 if precondition else 0.5
        return lambda x, t: scale * model(x + condition, t, text, level_B=level_B, **more)

    monkeypatch.setattr(samplers.ssr, "denoiser", denoiser)


def enlarged(model: torch.nn.Module, plan: windows.Plan, **more) -> torch.Tensor:
    return samplers.sample_ssr(
        model,
        LOW,
        TEXT.expand(2, -1, -1),
        TEXT.expand(2, -1, -1) * 0,
        seeds=[3, 4],
        scale=2,
        plan=plan,
        settings=Sampling(steps=3, guidance_scale=2.0),
        **more,
    )


@pytest.mark.usefixtures("plain_denoiser")
def test_windows_of_the_ssr_see_their_own_known_pixels():
    given = known.inpainting(HIGH, REGION)
    whole = windows.even(12, 12, 0)
    first = enlarged(Conditioned(), whole, known=given)
    for plan in (windows.even(12, 5, 2), windows.clamped(12, 4, 3)):
        for micro_batch in (1, 3):
            again = enlarged(Conditioned(), plan, known=given, micro_batch=micro_batch)
            assert torch.equal(again, first)
    assert torch.equal(enlarged(Plain(), whole), enlarged(Conditioned(), whole))
    assert not torch.equal(first, enlarged(Plain(), whole))
    moved = Known(given.video_BCTHW.roll(1, 2), given.mask_B1THW.roll(1, 2))
    assert not torch.equal(first, enlarged(Conditioned(), whole, known=moved))


@pytest.mark.usefixtures("plain_denoiser")
def test_the_ssr_composites_and_takes_its_form():
    given = known.inpainting(HIGH, REGION)
    plan = windows.even(12, 5, 2)
    for composite in ("final", "every_step"):
        made = enlarged(Conditioned(), plan, known=given, composite=composite)
        assert torch.equal(given.composite(made), made)
    assert not torch.equal(enlarged(Plain(), plan), enlarged(Plain(), plan, precondition=False))
