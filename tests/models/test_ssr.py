"""The SSR is an image SSR at first, and starts from the enlarged video."""

import pytest
import torch

from models import diffusion, ssr
from models.diffusion import Schedule

CONFIG = ssr.Config(sample_px=16, widths=(8, 16), text_dim=16, head_dim=8, norm_groups=4)
SCHEDULE = Schedule()


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_at_first_it_is_the_image_model_on_every_frame():
    model = ssr.build(CONFIG, seed=0)
    x, text = randn(2, 6, 5, 16, 16), randn(2, 4, 16)
    t, level = torch.tensor([3, 700]), torch.tensor([0.1, 0.4])
    with torch.no_grad():
        video = model(x, t, text, level_B=level)
        for frame in range(5):
            image = model.unet(x[:, :, frame], t, text, class_labels=1000 * level).sample
            assert (video[:, :, frame] - image).abs().max() <= 1e-5
        assert not torch.allclose(model(x, t, text, level_B=level.flip(0)), video, atol=1e-3)
    with pytest.raises(ValueError, match="needs level_B"):
        model(x, t, text)


def test_any_number_of_frames_and_larger_frames_fit():
    model = ssr.build(CONFIG, seed=0)
    out = model(randn(1, 6, 7, 24, 32), torch.tensor([1]), randn(1, 4, 16), level_B=torch.zeros(1))
    assert out.shape == (1, 3, 7, 24, 32)


def test_shrink_undoes_upsample_for_constants_and_keeps_means():
    x = randn(1, 3, 2, 8, 8)
    assert torch.allclose(ssr.shrink(x, 2).mean(), x.mean(), atol=1e-6)
    flat = torch.full((1, 3, 2, 8, 8), 0.7)
    assert torch.allclose(ssr.upsample(ssr.shrink(flat, 4), 4), flat)
    assert ssr.upsample(x, 4).shape == (1, 3, 2, 32, 32)
    ramp = torch.arange(8.0).expand(1, 1, 1, 8, 8)
    assert ssr.upsample(ramp, 2)[0, 0, 0, 0, 3].item() == pytest.approx(1.25)


def test_augmentation_keeps_the_variance():
    clean, drawn = randn(2, 3, 8, 32, 32), randn(2, 3, 8, 32, 32, seed=1)
    mixed = ssr.augment(clean, torch.tensor([0.0, 0.6]), drawn)
    assert torch.equal(mixed[0], clean[0])
    assert mixed[1].std() == pytest.approx(1.0, abs=0.02)
    correlation = (mixed[1] * clean[1]).mean()
    assert correlation == pytest.approx(0.8, abs=0.02)


class Silent(torch.nn.Module):
    """An untrained network: no detail."""

    def forward(self, x_BCTHW, *_given, **_named):
        return torch.zeros_like(x_BCTHW[:, :3])


def test_without_detail_it_returns_the_enlarged_video_from_pure_noise():
    enlarged = randn(1, 3, 2, 8, 8) * 0.3
    level = torch.tensor([0.4])
    condition = ssr.augment(enlarged, level, torch.zeros_like(enlarged))
    denoise = ssr.denoiser(Silent(), condition, randn(1, 2, 4), level, schedule=SCHEDULE)
    x_t, t = randn(1, 3, 2, 8, 8, seed=2), torch.tensor([999])
    x0 = diffusion.to_x0(denoise(x_t, t), x_t, t, SCHEDULE)
    assert torch.allclose(x0, enlarged, atol=1e-5)


@pytest.mark.parametrize("level", [0.0, 0.4])
def test_without_detail_it_is_the_best_denoiser_of_data_gaussian_around_the_condition(level):
    """The error of the posterior mean is its variance, and any constant detail makes it worse."""
    clean = randn(1, 3, 4, 32, 32) * 0.3
    level_B = torch.tensor([level])
    spread = level / (1 - level**2) ** 0.5
    detail = ssr.DETAIL_STD * randn(1, 3, 4, 32, 32, seed=1)
    x0 = clean + detail
    condition = ssr.augment(clean - spread * randn(1, 3, 4, 32, 32, seed=2), level_B, 0 * clean)
    denoise = ssr.denoiser(Silent(), condition, randn(1, 2, 4), level_B, schedule=SCHEDULE)
    variance = ssr.DETAIL_STD**2 + spread**2
    for timestep in (100, 500, 900):
        t = torch.tensor([timestep])
        eps = randn(1, 3, 4, 32, 32, seed=3)
        x_t = diffusion.add_noise(x0, eps, t, SCHEDULE)
        alpha, sigma = (float(a) for a in diffusion.alpha_sigma(SCHEDULE, t, x_t))
        error = (diffusion.to_x0(denoise(x_t, t), x_t, t, SCHEDULE) - x0).square().mean()
        expected = variance * sigma**2 / (alpha**2 * variance + sigma**2)
        assert float(error) == pytest.approx(expected, rel=0.05)


def test_every_parameter_has_a_gradient_so_ddp_needs_no_search():
    model = ssr.build(CONFIG, seed=0)
    denoise = ssr.denoiser(
        model, randn(1, 3, 4, 16, 16), randn(1, 4, 16), torch.tensor([0.2]), schedule=SCHEDULE
    )
    told = {"timestep_B": torch.tensor([400]), "noise_BCTHW": randn(1, 3, 4, 16, 16)}
    diffusion.loss(denoise, randn(1, 3, 4, 16, 16), schedule=SCHEDULE, **told).mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_without_preconditioning_it_is_the_image_ssr_on_every_frame():
    """So weights of a public image SSR can be inflated: cat(x_t, condition) in, prediction out."""
    model = ssr.build(CONFIG, seed=0)
    x_t, condition, text = randn(2, 3, 5, 16, 16), randn(2, 3, 5, 16, 16, seed=1), randn(2, 4, 16)
    t, level = torch.tensor([3, 700]), torch.tensor([0.1, 0.4])
    told = {"schedule": SCHEDULE, "precondition": False}
    with torch.no_grad():
        video = ssr.denoiser(model, condition, text, level, **told)(x_t, t)
        for frame in range(5):
            both = torch.cat((x_t[:, :, frame], condition[:, :, frame]), 1)
            image = model.unet(both, t, text, class_labels=1000 * level).sample
            assert (video[:, :, frame] - image).abs().max() <= 2e-6
        # control: preconditioned, or the two inputs the other way round, it is another model
        other = ssr.denoiser(model, condition, text, level, schedule=SCHEDULE)(x_t, t)
        assert not torch.allclose(other, video, atol=0.1)
        swapped = ssr.denoiser(model, x_t, text, level, **told)(condition, t)
        assert not torch.allclose(swapped, video, atol=1e-2)


@pytest.mark.parametrize("precondition", [True, False])
def test_known_pixels_reach_the_network_as_they_are(precondition):
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x_BCTHW, _timestep_B, _text_BND, *, level_B, **known):
            seen.append((level_B, known))
            return torch.zeros_like(x_BCTHW[:, :3])

    x, known, level = randn(1, 3, 2, 8, 8), randn(1, 4, 2, 8, 8), torch.tensor([0.2])
    told = {"schedule": SCHEDULE, "precondition": precondition}
    for given in (known, None):
        denoise = ssr.denoiser(Spy(), x, randn(1, 2, 4), level, known_BCTHW=given, **told)
        denoise(x, torch.tensor([9]))
    assert seen[0][1]["known_BCTHW"] is known
    assert seen[1][1] == {}


@pytest.mark.parametrize("scale", ssr.SCALES)
def test_every_scale_makes_pairs_that_belong_together(scale):
    config = ssr.Config(sample_px=32, scale=scale, widths=(8, 16), head_dim=8)
    high = randn(1, 3, 2, config.sample_px, config.sample_px)
    low = ssr.shrink(high, scale)
    assert low.shape[-1] * scale == config.sample_px
    assert ssr.upsample(low, scale).shape == high.shape
    # an area mean, so each small pixel is that of its square
    assert torch.allclose(low[0, 0, 0, 0, 0], high[0, 0, 0, :scale, :scale].mean(), atol=1e-6)


@pytest.mark.parametrize("scale", [-2, 0, 1, 3, 16])
def test_scales_that_cannot_be_are_refused_by_name(scale):
    message = f"the scale of an SSR must be 2, 4 or 8, not {scale}"
    with pytest.raises(ValueError, match=message):
        ssr.Config(sample_px=48, scale=scale)
    with pytest.raises(ValueError, match=message):
        ssr.upsample(randn(1, 3, 1, 8, 8), scale)
    with pytest.raises(ValueError, match=message):
        ssr.shrink(randn(1, 3, 1, 8, 8), scale)


def test_configurations_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="sample_px 36 does not divide by scale 8"):
        ssr.Config(sample_px=36, scale=8)
    with pytest.raises(ValueError, match=r"max_level 1.0 of an SSR"):
        ssr.Config(max_level=1.0)
    with pytest.raises(ValueError, match="10x8 pixels do not divide by scale 4"):
        ssr.shrink(randn(1, 3, 1, 10, 8), 4)
    assert ssr.Config().network.frames_multiple == 1


def written_out(network, condition, level_B, schedule):
    """The preconditioning term by term: the mean and variance of x0, the innovation, the detail in standard deviations."""
    s = level_B.reshape(-1, 1, 1, 1, 1)
    mean, variance = condition / (1 - s**2).sqrt(), s**2 / (1 - s**2) + ssr.DETAIL_STD**2

    def denoise(x, timestep_B):
        alpha, sigma = diffusion.alpha_sigma(schedule, timestep_B, x)
        total = alpha**2 * variance + sigma**2
        innovation = (x - alpha * mean) / total.sqrt()
        detail = network(torch.cat((innovation, condition), dim=1))
        expected = mean + alpha * variance / total.sqrt() * innovation
        x0 = expected + sigma * (variance / total).sqrt() * detail
        return diffusion.from_x0(x0, x, timestep_B, schedule)

    return denoise


@pytest.mark.parametrize(
    ("prediction", "zero"),
    [("v", True), ("v", False), ("x0", True), ("x0", False), ("epsilon", False)],
)
def test_weighted_sums_are_the_preconditioning_written_out(prediction, zero):
    schedule = Schedule(prediction=prediction, zero_terminal_snr=zero)

    def network(both, *_, **__):
        return torch.sin(3 * both[:, :3] + both[:, 3:])

    x, condition = (randn(4, 3, 2, 4, 4, seed=seed).double() for seed in (1, 2))
    level_B = torch.tensor([0.0, 0.1, 0.3, 0.5]).double()
    timestep_B = torch.tensor([0, 10, 500, 999])
    wanted = written_out(network, condition, level_B, schedule)(x, timestep_B)
    text = torch.zeros(4, 1, 1)
    told = ssr.denoiser(network, condition, text, level_B, schedule=schedule)(x, timestep_B)
    assert torch.allclose(told, wanted, rtol=1e-9, atol=1e-9)
