"""Closed forms of the temporal modules' size and work (models.md 1.5) against the networks themselves."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import cost, stunet
from models.temporal import AttnInflate, ConvInflate, Film, TDown, TextIn, TUp
from tests.models import tiny_unet

# Shape of DeepFloyd IF stage I XL (4.3 billion parameters with its text projection): widths 704 x (1, 2, 3, 4),
# three resnets a level, heads of 64, T5-XXL tokens of 4096 projected to 2816, learned variance.
DEEPFLOYD_XL = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 6,
    "act_fn": "gelu",
    "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
    "block_out_channels": [704, 1408, 2112, 2816],
    "layers_per_block": 3,
    "attention_head_dim": 64,
    "cross_attention_dim": 2816,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64,
    "resnet_time_scale_shift": "scale_shift",
}
# Shape of Stable Diffusion 1.5: widths 320 x (1, 2, 4, 4), two resnets a level, eight heads, CLIP-L tokens.
STABLE_DIFFUSION_15 = {
    "sample_size": 64,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}


def counted(motion: nn.Module) -> cost.Parameters:
    """The parameters that are there, by the module that holds them."""
    found = dict.fromkeys(cost.Parameters.__slots__, 0)
    kinds = {ConvInflate: "conv_inflate", AttnInflate: "attn_inflate", TDown: "resample", TUp: "resample"}  # fmt: skip
    for module in motion.modules():
        for name, parameter in module.named_parameters() if type(module) in kinds else ():
            film = name.startswith("film.")
            kind = "film" if film else kinds[type(module)] if parameter.ndim > 1 else "rest"
            found[kind] += parameter.numel()
        if isinstance(module, Film):
            assert module.linear.bias is not None
    found["text"] = sum(p.numel() for p in motion.text_in.parameters())
    if motion.known_in is not None:
        found["known"] = sum(p.numel() for p in motion.known_in.parameters())
    return cost.Parameters(**found)


def meta(config: stunet.Config) -> stunet.STUNet:
    with torch.device("meta"):
        return stunet.build(config, seed=0)


def millions(*numbers: int) -> list[float]:
    return [round(number / 1e6, 1) for number in numbers]


@pytest.mark.parametrize(
    ("image", "image_millions", "closed", "film", "total"),
    [
        (DEEPFLOYD_XL, 4304.7, 1456.6, 293.5, 1770.1),
        (STABLE_DIFFUSION_15, 859.5, 275.3, 48.4, 326.4),
    ],
    ids=["deepfloyd-1-xl", "stable-diffusion-1.5"],
)
def test_temporal_parameters_of_public_sizes(image, image_millions, closed, film, total):
    """In millions: the image model, and of the motion the closed forms, FiLM, and all with biases and norms."""
    config = stunet.Config.of_image(image, known=True)
    model = meta(config)
    expected = cost.temporal_parameters(config)
    assert counted(model.motion) == expected
    assert expected.total == sum(p.numel() for p in model.motion.parameters())
    assert millions(sum(p.numel() for p in model.unet.parameters())) == [image_millions]
    assert millions(expected.weights, expected.film, expected.total) == [closed, film, total]


@settings(max_examples=15)
@given(data=st.data())
def test_temporal_parameters_of_any_config(data):
    layout = data.draw(st.sampled_from([*tiny_unet.LAYOUTS, ""]))
    factors = tuple(data.draw(st.integers(1, 3)) for _ in range(2))
    choices = {
        "temporal_factor": factors,
        "attention_blocks": data.draw(st.integers(0, 2)),
        "temporal_attention": data.draw(st.booleans()),
        "known": data.draw(st.booleans()),
    }
    if layout:
        config = stunet.Config.of_image(tiny_unet.LAYOUTS[layout], **choices)
    else:
        config = stunet.Config(blocks_per_level=data.draw(st.integers(1, 2)), **choices)
    assert counted(meta(config).motion) == cost.temporal_parameters(config)


def test_imagen_width_is_the_673_million_of_the_design():
    """models.md 1.5: widths 512 x (1, 2, 3, 4), three blocks a level in encoder and decoder alike, one AttnInflate each."""
    widths = [512, 1024, 1536, 2048]
    convs = [c for c in widths[:-1] for _ in range(6)]
    resamplers = [*widths[:-1], *widths[1:]]
    weights = 13 * sum(c * c for c in convs) + 12 * 7 * 2048**2 + 3 * sum(c * c for c in resamplers)
    assert round(weights / 1e6) in (672, 673)
    ours = cost.temporal_parameters(
        stunet.Config(widths=tuple(widths), blocks_per_level=3, temporal_factor=(2, 2, 2))
    )
    # A decoder of diffusers has one resnet a level more than its encoder.
    assert ours.weights == weights + 13 * sum(c * c for c in widths[:-1]) + 12 * 2048**2


@pytest.mark.parametrize("layout", [*tiny_unet.FAMILIES, "deepfloyd-2"])
def test_work_of_the_temporal_modules_is_their_closed_form(layout):
    """Each weight is used once a position, FiLM's once a clip; attention's two products add 4 T^2 c a position."""
    frames, px = 8, 16
    config = stunet.Config.of_image(tiny_unet.LAYOUTS[layout], temporal_factor=(1, 1))
    how = {"frames": frames, "height": px, "width": px, "batch": 2}
    added = cost.flops(config, **how) - cost.flops(config, **how, temporal=False)
    image = config.image_config
    depth = 2 * image["layers_per_block"] + 1
    embed, tokens = 4 * config.widths[0], 77
    expected = (
        2 * 2 * (tokens * embed * (config.text_dim + TextIn.HEADS) + embed * embed)
    )  # the text, for each of two
    for level, c in enumerate(config.widths):
        positions = 2 * (px >> level) ** 2
        coarsest = level == len(config.widths) - 1
        weights = 12 * c * c if coarsest else 13 * c * c
        attention = 4 * frames**2 * c * positions if coarsest else 0
        film = 2 * 2 * (4 * config.widths[0]) * 2 * c
        places = depth + (1 if coarsest else 0)
        expected += places * (2 * weights * frames * positions + attention + film)
    assert added == expected


@pytest.mark.parametrize(
    ("image", "tera"),
    [(DEEPFLOYD_XL, [177.0, 313.3, 229.8]), (STABLE_DIFFUSION_15, [47.8, 78.6, 64.3])],
    ids=["deepfloyd-1-xl", "stable-diffusion-1.5"],
)
def test_temporal_resampling_makes_video_cheaper_than_the_image_model_per_frame(image, tera):
    """TFLOP of 80 frames: resampled in time, not resampled, and the bare image model on each frame."""
    config = stunet.Config.of_image(image)
    how = {"frames": 80, "height": 64, "width": 64}
    found = [
        cost.flops(config, **how),
        cost.flops(config, **how, temporal_resampling=False),
        cost.flops(config, **how, temporal=False),
    ]
    assert [round(f / 1e12, 1) for f in found] == tera
    assert found[0] < found[2] < found[1]


@pytest.mark.parametrize("role", ["base", "motion", "ssr"])
def test_learning_costs_the_gradients_of_what_is_trained(role):
    config = stunet.Config(
        sample_px=16,
        widths=(16, 32),
        text_dim=16,
        head_dim=8,
        temporal_factor=(2,),
        known=role == "motion",
    )
    size = {"frames": 8, "height": 16, "width": 16, "tokens": 4}
    forward = cost.flops(config, **size, temporal=role != "base")
    found = cost.training_flops(config, role, **size)
    again = cost.training_flops(replace(config, checkpointing=True), role, **size)
    assert again == found
    if role == "motion":  # the frozen image model passes gradients on and has none of its own
        assert 2.0 * forward < found < 2.6 * forward
    else:
        assert 2.8 * forward < found <= 3.0 * forward
