"""Known frames enter as 2C+1 input channels would (Lumiere, section 4.2), and at first change nothing."""

import pytest
import torch
from torch import nn

from models import stunet
from models.conditioning import HashedText
from tests.models import tiny_unet

T, PX = 4, 8
TIMES = torch.tensor([3, 700])
TEXT = HashedText(dim=12, length=4)(["a rabbit", "pink clouds drift"])
FAMILIES = pytest.mark.parametrize("layout", tiny_unet.FAMILIES)


def build(layout: str, **choices) -> stunet.STUNet:
    config = stunet.Config.of_image(tiny_unet.LAYOUTS[layout], **choices)
    return stunet.build(config, seed=0)


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(model: stunet.STUNet) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy video, and known video with its mask: the first frame, and a random half of the rest."""
    c = model.config.video_channels
    mask = (normals(2, 1, T, PX, PX, seed=1) > 0).float()
    mask[:, :, 0] = 1.0
    known = torch.cat((mask * normals(2, c, T, PX, PX, seed=2), mask), dim=1)
    return normals(2, model.config.in_channels, T, PX, PX), known


def run(model: stunet.STUNet, x: torch.Tensor, **how) -> torch.Tensor:
    with torch.no_grad():
        return model(x, TIMES, TEXT, **how)


def randomise(model: stunet.STUNet) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in model.motion.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


@FAMILIES
def test_at_first_any_known_changes_not_a_bit(layout):
    model, plain = build(layout, known=True), build(layout)
    x, known = inputs(model)
    assert torch.equal(run(model, x, known_BCTHW=known), run(plain, x))
    randomise(model)
    assert not torch.allclose(run(model, x, known_BCTHW=known), run(model, x), atol=1e-3)


@FAMILIES
def test_nothing_known_is_zeros_bit_for_bit(layout):
    model = build(layout, known=True)
    randomise(model)
    x, known = inputs(model)
    none, zeros = run(model, x), run(model, x, known_BCTHW=torch.zeros_like(known))
    assert torch.equal(none.view(torch.int32), zeros.view(torch.int32))


@FAMILIES
def test_it_is_a_first_convolution_widened_by_known_video_and_mask(layout):
    """In fp64, where both sums of products are one number; a column less is another convolution."""
    model = build(layout, known=True).double()
    randomise(model)
    x, known = (tensor.double() for tensor in inputs(model))
    thin, c = model.unet.conv_in, model.config.video_channels
    wide = nn.Conv2d(thin.in_channels + c + 1, thin.out_channels, 3, padding=1).double()
    assert wide.in_channels == {"stable-diffusion": 9, "deepfloyd-1": 7}[layout]
    wide.weight.data = torch.cat((thin.weight.data, model.motion.known_in.weight.data), dim=1)
    wide.bias.data = thin.bias.data
    both = torch.cat((x, known), dim=1).transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        entered = model._enter(x, known, temporal=True)
        assert (entered - wide(both)).abs().max() <= 1e-12
        wide.weight[:, -1] = 0.0
        assert (entered - wide(both)).abs().max() > 1e-2


def test_it_belongs_to_the_motion_and_the_image_model_keeps_its_names():
    model, plain = build("deepfloyd-1", known=True), build("deepfloyd-1")
    assert set(stunet.base_state(model)) == set(plain.unet.state_dict())
    assert set(stunet.motion_state(model)) - set(stunet.motion_state(plain)) == {"known_in.weight"}
    for name, tensor in stunet.motion_state(plain).items():
        assert torch.equal(tensor, stunet.motion_state(model)[name])
    assert "motion.known_in.weight" in stunet.trainable(model, "motion")
    assert "motion.known_in.weight" not in stunet.trainable(model, "base")


def test_every_motion_gradient_is_there_when_nothing_is_known():
    model = build("stable-diffusion", known=True)
    x, _ = inputs(model)
    stunet.trainable(model, "motion")
    model(x, TIMES, TEXT).square().mean().backward()
    assert all(p.grad is not None for p in model.motion.parameters())


def test_what_does_not_fit_is_refused():
    model, plain = build("deepfloyd-1", known=True), build("deepfloyd-1")
    x, known = inputs(model)
    with pytest.raises(ValueError, match=r"takes known frames with Config.known=True"):
        run(plain, x, known_BCTHW=known)
    with pytest.raises(ValueError, match="temporal=True"):
        run(model, x, known_BCTHW=known, temporal=False)
    with pytest.raises(ValueError, match=r"known_BCTHW must be \(2, 4, 4, 8, 8\)"):
        run(model, x, known_BCTHW=known[:, :3])
    assert torch.equal(run(model, x, temporal=False), run(plain, x, temporal=False))


def test_the_network_of_recipes_takes_known_frames_too():
    config = stunet.Config(sample_px=8, widths=(8, 16), text_dim=12, head_dim=4,
                           temporal_factor=(2,), known=True)  # fmt: skip
    model = stunet.build(config, seed=0)
    x, known = inputs(model)
    assert model.motion.known_in.in_channels == 4
    assert torch.equal(run(model, x, known_BCTHW=known), run(model, x))
