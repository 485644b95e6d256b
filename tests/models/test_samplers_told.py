"""What the two samplers do with what they are told: text, modes, types, wrong shapes. Models that say what they saw."""

from typing import Any

import pytest
import torch
from torch import nn

from models import diffusion, known, modes, samplers, solver, ssr, stunet, windows
from models.conditioning import HashedText
from models.samplers import Sampling

TEXT = HashedText(dim=16, length=4)
CONFIG = stunet.Config(sample_px=8, widths=(8, 16), temporal_factor=(2,), text_dim=16, head_dim=8, known=True)  # fmt: skip
SSR = ssr.Config(sample_px=8, scale=2, widths=(8, 16), text_dim=16, head_dim=8)
LOW = torch.rand(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
FREE = Sampling(steps=2, threshold="none")


class Says(nn.Module):
    """Predicts the mean of its text everywhere, and one more where the temporal modules take part."""

    def forward(self, x_BCTHW, _timestep_B, text_BND, *, temporal=True, **_more):
        said = text_BND.mean((1, 2)).reshape(-1, 1, 1, 1, 1) + float(temporal)
        return said.expand_as(x_BCTHW)


def base(
    model: nn.Module, text=None, null=None, *, seeds=(3,), settings=FREE, frames=4, **more: Any
) -> torch.Tensor:
    return samplers.sample_base(
        model,
        TEXT(["word"]) if text is None else text,
        TEXT([""]) if null is None else null,
        seeds=list(seeds),
        frames=frames,
        size_px=(8, 8),
        settings=settings,
        **more,
    )


def large(
    model: nn.Module, low=LOW, text=None, null=None, *, seeds=(3,), plan=None, **more: Any
) -> torch.Tensor:
    return samplers.sample_ssr(
        model,
        low,
        TEXT(["word"]) if text is None else text,
        TEXT([""]) if null is None else null,
        seeds=list(seeds),
        scale=2,
        plan=plan or windows.even(4, 4, 0),
        settings=FREE,
        **more,
    )


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("temporal", [True, False])
def test_the_base_is_guided_from_the_null_text_with_or_without_time(scale, temporal):
    settings = Sampling(steps=1, threshold="none", guidance_scale=scale)
    word, null = (float(TEXT([text]).mean()) for text in ("word", ""))
    assert abs(word - null) > 0.01
    made = base(Says(), settings=settings, temporal=temporal)
    said = null + scale * (word - null) + float(temporal)
    x = samplers.initial([3], frames=4, shape=(3, 8, 8))
    last = torch.tensor([settings.schedule.num_timesteps - 1])
    wanted = diffusion.to_x0(torch.full_like(x, said), x, last, settings.schedule)
    assert torch.allclose(made, wanted, atol=1e-6)


def dropping(*, ratio: float = 0.5) -> stunet.STUNet:
    """A network in training whose frozen image model drops out."""
    model = stunet.build(CONFIG, seed=0)
    model.unet.conv_act = nn.Sequential(model.unet.conv_act, nn.Dropout(ratio))
    return model.train()


def test_dropout_does_not_make_a_sample_random_and_training_goes_on_as_it_was():
    model = dropping()
    model.unet.eval()
    model.unet.conv_act.train()
    before = [module.training for module in model.modules()]
    assert torch.equal(base(model), base(model))
    assert [module.training for module in model.modules()] == before
    # control: in training it is random
    x, t = torch.zeros(1, 3, 4, 8, 8), torch.tensor([5])
    with torch.no_grad():
        assert not torch.equal(model(x, t, TEXT(["word"])), model(x, t, TEXT(["word"])))
    with modes.evaluating(model), torch.no_grad():
        assert torch.equal(model(x, t, TEXT(["word"])), model(x, t, TEXT(["word"])))


def test_a_frozen_image_model_is_evaluated_while_motion_learns():
    model = dropping()
    stunet.trainable(model, "motion")
    assert not any(module.training for module in model.unet.modules())
    assert all(module.training for module in model.motion.modules())
    stunet.trainable(model, "base")
    assert all(module.training for module in model.modules())
    with pytest.raises(ValueError, match="unknown role 'style'"):
        stunet.trainable(model, "style")


@pytest.mark.parametrize("sample", [base, large])
def test_one_null_stands_for_all_and_other_numbers_of_texts_are_refused(sample):
    model = Says()
    more = {} if sample is base else {"low": LOW.expand(2, -1, -1, -1, -1)}
    texts = TEXT(["one", "two"])
    made = sample(model, text=texts, seeds=(3, 4), **more)
    assert torch.equal(made, sample(model, text=texts, null=TEXT(["", ""]), seeds=(3, 4), **more))
    for wrong in (TEXT(["one", "two", "three"]), TEXT(["one"])[0]):
        with pytest.raises(ValueError, match=r"must be \(1 or 2, N, D\)"):
            sample(model, text=wrong, seeds=(3, 4), **more)


def test_the_ssr_refuses_what_does_not_fit_before_it_works():
    model = ssr.build(SSR, seed=0)
    for frames in (1, 6, 80):
        with pytest.raises(ValueError, match=f"a plan for {frames} frames"):
            large(model, plan=windows.even(frames, frames, 0))
    with pytest.raises(ValueError, match="micro_batch"):
        large(model, micro_batch=0)
    with pytest.raises(ValueError, match="must be floating"):
        large(model, low=(LOW * 100).byte())


def test_the_small_videos_type_does_not_show():
    model = ssr.build(SSR, seed=0)
    exact = LOW.to(torch.bfloat16).float()
    assert torch.equal(large(model, low=exact.to(torch.bfloat16)), large(model, low=exact))


def test_noise_of_base_and_ssr_differs_under_one_seed(monkeypatch):
    seen: list[tuple[str, int]] = []
    real = solver.noise.normals

    def normals(seeds, *, stream, **more):
        seen.extend((stream, seed) for seed in seeds)
        return real(seeds, stream=stream, **more)

    monkeypatch.setattr(solver.noise, "normals", normals)
    base(Says())
    large(Says())
    assert len(seen) == len(set(seen)) == 3


@pytest.mark.parametrize("sample", [base, large])
def test_a_bf16_model_samples_in_fp32_near_its_own_weights_in_fp32(sample):
    config = CONFIG if sample is base else SSR.network
    model = stunet.build(config, seed=0)
    exact = sample(model)
    made = sample(model.to(torch.bfloat16))
    assert made.dtype == torch.float32
    assert (made - exact).norm() < 0.05 * exact.norm()


def test_guidance_between_bf16_predictions_is_taken_in_fp32():
    def says(value: float):
        return lambda x, _t: torch.full_like(x, value, dtype=torch.bfloat16)

    weigh = samplers.solve(
        says(1.0078125), torch.zeros(1, 3, 2, 2, 2), seeds=[1], unconditional=says(1.0),
        settings=Sampling(steps=1, threshold="none", guidance_scale=1.5),
    )  # fmt: skip
    # v at pure noise is -x0: 1 + 1.5 / 128, which bf16 does not hold
    assert torch.equal(weigh, torch.full_like(weigh, -1.01171875))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("sample", [base, large])
def test_the_video_is_made_where_the_model_is(sample):
    config = CONFIG if sample is base else SSR.network
    model = stunet.build(config, seed=0)
    there = sample(model.to("cuda"))
    assert there.is_cuda
    assert (there.cpu() - sample(model.to("cpu"))).abs().max() < 1e-2


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"sampler": "euler"}, "unknown sampler 'euler'"),
        ({"threshold": "foo"}, "unknown threshold 'foo'"),
        ({"guidance_scale": 0.0}, "must be finite and at least 1"),
        ({"steps": 5, "guidance": lambda step, _steps: 2.0 - step}, "at least 1"),
    ],
)
def test_settings_are_refused_when_they_are_made(told, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**told)


def test_pictures_of_bytes_and_of_other_shapes_are_refused_by_name():
    image = torch.zeros(1, 3, 8, 8)
    for wrong in (image.byte(), image[0]):
        with pytest.raises(ValueError, match="image must be BCHW and floating"):
            known.image_to_video(wrong, 4)
        with pytest.raises(ValueError, match="image must be BCHW and floating"):
            known.cinemagraph(wrong, image[:, :1], 4)
    with pytest.raises(ValueError, match=r"region must be \[1, 1, 8, 8\]"):
        known.cinemagraph(image, image[:, 0], 4)
    with pytest.raises(ValueError, match="known video must be BCTHW and floating"):
        known.Known(image.byte(), image)
    with pytest.raises(ValueError, match="start video must be BCTHW and floating"):
        samplers.Start(video_BCTHW=image.byte().unsqueeze(2), strength=0.5)
    with pytest.raises(ValueError, match="at least 1 of each"):
        base(Says(), frames=0)
