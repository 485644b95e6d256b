"""Inflation is exact at first (models.md 1.3), base and motion are separable, training is repeatable."""

import pytest
import torch
from torch import nn

from models import image_unet, stunet
from models.checkpoint import state_digest
from models.conditioning import HashedText
from tests.models import few_steps

CONFIG = stunet.Config(sample_px=16, widths=(8, 16, 16, 24), text_dim=16, head_dim=8,
                       temporal_factor=(2, 2, 2), attention_blocks=2)  # fmt: skip
T, PX = 16, 16
TIMES = torch.tensor([3, 700])
TEXT = HashedText(dim=16, length=4)(["a rabbit", "pink clouds drift"])


@pytest.fixture(scope="module")
def model():
    return stunet.build(CONFIG, seed=0)


@pytest.fixture(scope="module")
def x():
    return torch.randn(2, 3, T, PX, PX, generator=torch.Generator().manual_seed(0))


def per_frame(model: stunet.STUNet, x: torch.Tensor) -> torch.Tensor:
    """The image model as diffusers runs it, frame by frame."""
    with torch.no_grad():
        frames = [model.unet(x[:, :, t], TIMES, TEXT).sample for t in range(x.shape[2])]
    return torch.stack(frames, dim=2)


def run(model: stunet.STUNet, x: torch.Tensor, **how) -> torch.Tensor:
    with torch.no_grad():
        return model(x, TIMES, TEXT, **how)


def test_key_frames_equal_the_image_model(model, x):
    difference = (run(model, x) - per_frame(model, x)).abs().amax((0, 1, 3, 4))
    assert CONFIG.frames_multiple == 8
    assert difference[::8].max() <= 1e-5
    assert difference[1:8].min() > 1e-3


def test_a_static_clip_equals_the_image_model_on_every_frame(model, x):
    static = x[:, :, :1].expand(-1, -1, T, -1, -1)
    assert (run(model, static) - per_frame(model, static)).abs().max() <= 1e-5


def test_temporal_off_is_the_image_model(model, x):
    assert (run(model, x, temporal=False) - per_frame(model, x)).abs().max() <= 1e-5
    one = x[:, :, :1]
    assert (run(model, one, temporal=False) - per_frame(model, one)).abs().max() <= 1e-5


def test_without_temporal_resampling_all_frames_are_equal(x):
    config = stunet.Config(
        sample_px=16, widths=(8, 16), text_dim=16, head_dim=8, temporal_factor=(1,)
    )
    model = stunet.build(config, seed=0)
    assert (run(model, x) - per_frame(model, x)).abs().max() <= 1e-5


def test_control_he_initialised_resampling_is_not_exact(x):
    model = stunet.build(CONFIG, seed=0)
    generator = torch.Generator().manual_seed(1)
    for module in [*model.motion.tdown, *model.motion.tup]:
        nn.init.kaiming_normal_(module.conv.weight, generator=generator)
    static = x[:, :, :1].expand(-1, -1, T, -1, -1)
    assert (run(model, static) - per_frame(model, static)).abs().max() > 1e-2
    assert (run(model, x) - per_frame(model, x)).abs()[:, :, ::8].max() > 1e-2


def test_channels_last_changes_nothing_but_rounding(model, x):
    other = stunet.build(CONFIG, seed=0).to(memory_format=torch.channels_last)
    assert torch.allclose(run(other, x), run(model, x), atol=1e-4)


def test_eighty_frames_are_ten_at_the_coarsest_level(model):
    seen = []
    hook = model.motion.mid[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    with torch.no_grad():
        out = model(torch.zeros(1, 3, 80, PX, PX), TIMES[:1], TEXT[:1])
    hook.remove()
    assert seen == [10]
    assert out.shape == (1, 3, 80, PX, PX)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 12, 16, 16), "12 frames do not divide by 8"),
        ((1, 3, 16, 20, 16), "20x16 pixels do not divide by 8"),
        ((1, 4, 16, 16, 16), "takes 3 channels, not 4"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(model, shape, message):
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape), TIMES[:1], TEXT[:1])


@pytest.mark.parametrize(
    ("timestep", "text", "message"),
    [
        (TIMES[:1], TEXT, "timestep_B must be"),
        (TIMES, TEXT[:1], "text_BND must be"),
        (TIMES, TEXT[..., :8], "text_BND must be"),
        (TIMES, TEXT[0], "text_BND must be"),
    ],
)
def test_conditions_of_another_batch_are_refused(model, x, timestep, text, message):
    with pytest.raises(ValueError, match=message):
        model(x, timestep, text)


def test_a_bf16_model_takes_and_says_bf16_of_fp32_noise(x):
    model = stunet.build(CONFIG, seed=0)
    exact = run(model, x)
    said = run(model.to(torch.bfloat16), x)
    assert said.dtype == torch.bfloat16
    assert (said.float() - exact).norm() < 0.05 * exact.norm()


def test_noise_level_must_be_given_exactly_when_it_is_known(model, x):
    with pytest.raises(ValueError, match="takes no level_B"):
        run(model, x, level_B=torch.zeros(2))


def test_text_and_time_matter(model, x):
    with torch.no_grad():
        first = model(x, TIMES, TEXT)
        assert not torch.allclose(model(x, TIMES, TEXT.flip(0)), first, atol=1e-3)
        assert not torch.allclose(model(x, TIMES.flip(0), TEXT), first, atol=1e-3)


def test_frame_zero_reaches_the_last_frame_only_through_attention(x):
    def reach(*, attention: bool) -> bool:
        config = stunet.Config(sample_px=16, widths=(8, 16), text_dim=16, head_dim=8,
                               temporal_factor=(1,), temporal_attention=attention)  # fmt: skip
        model = stunet.build(config, seed=0)
        generator = torch.Generator().manual_seed(3)
        for parameter in model.motion.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        changed = x.clone()
        changed[:, :, 0] += 1.0
        return not torch.equal(run(model, x)[:, :, -1], run(model, changed)[:, :, -1])

    assert reach(attention=True)
    assert not reach(attention=False)


def test_states_are_disjoint_complete_and_load_back(model):
    base, motion = stunet.base_state(model), stunet.motion_state(model)
    whole = {f"unet.{k}" for k in base} | {f"motion.{k}" for k in motion}
    assert whole == set(model.state_dict())
    assert len(whole) == len(base) + len(motion)
    assert set(base) == set(model.unet.state_dict())
    other = stunet.build(CONFIG, seed=9)
    assert state_digest(stunet.base_state(other)) != state_digest(base)
    stunet.load_base(other, base)
    stunet.load_motion(other, motion)
    assert state_digest(other.state_dict()) == state_digest(model.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        stunet.load_motion(other, dict(list(motion.items())[1:]))


def test_roles_name_their_parameters(model):
    base, motion = stunet.trainable(model, "base"), stunet.trainable(model, "motion")
    assert all(p.requires_grad == (name in motion) for name, p in model.named_parameters())
    assert not set(base) & set(motion)
    assert set(stunet.trainable(model, "ssr")) == set(base) | set(motion)


def train(role: stunet.Role, *, steps: int, learning_rate: float = 1e-2) -> stunet.STUNet:
    config = stunet.Config(
        sample_px=8, widths=(8, 16), text_dim=16, head_dim=8, temporal_factor=(2,)
    )
    model = stunet.build(config, seed=0)
    return few_steps.trained(model, role, TEXT, steps=steps, learning_rate=learning_rate)


@pytest.mark.parametrize(("role", "kept", "trained"), [
    ("motion", stunet.base_state, stunet.motion_state),
    ("base", stunet.motion_state, stunet.base_state),
])  # fmt: skip
def test_training_a_role_changes_all_of_it_and_nothing_else(role, kept, trained):
    before, after = train(role, steps=0), train(role, steps=3)
    assert state_digest(kept(before)) == state_digest(kept(after))
    old, new = trained(before), trained(after)
    assert [name for name in old if torch.equal(old[name], new[name])] == []


def test_every_trainable_parameter_has_a_gradient_so_ddp_needs_no_search():
    for role in ("base", "motion"):
        model = train(role, steps=1)
        assert all(p.grad is not None for p in stunet.trainable(model, role).values())


def test_training_is_repeatable_to_the_bit():
    first, second = train("motion", steps=3), train("motion", steps=3)
    assert state_digest(first.state_dict()) == state_digest(second.state_dict())
    control = train("motion", steps=3, learning_rate=1.1e-2)
    assert state_digest(first.state_dict()) != state_digest(control.state_dict())


def test_building_depends_on_the_seed_only_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    first = stunet.build(CONFIG, seed=4)
    assert torch.equal(torch.randn(3), expected)
    assert state_digest(first.state_dict()) == state_digest(
        stunet.build(CONFIG, seed=4).state_dict()
    )
    assert state_digest(first.state_dict()) != state_digest(
        stunet.build(CONFIG, seed=5).state_dict()
    )


def test_temporal_parameters_by_closed_form():
    """13 c^2 a ConvInflate, 12 c^2 an AttnInflate, 3 c^2 a resampler, without FiLM, text, biases, norms."""
    with torch.device("meta"):
        model = stunet.build(stunet.Config(widths=(16, 32), temporal_factor=(2,)), seed=0)
    weights = {
        name: p.numel()
        for name, p in model.motion.named_parameters()
        if p.ndim > 1 and "film" not in name and "text_in" not in name
    }
    levels = {16: 13 * 3 + 3 + 0, 32: 12 * 4 + 3}
    assert sum(weights.values()) == sum(share * c * c for c, share in levels.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temporal_factor": (2,)}, "needs 2 entries"),
        ({"norm_groups": 5}, "multiples of 5 groups"),
        ({"head_dim": 24, "text_dim": 48}, "have attention"),
        ({"text_levels": 4}, "text_levels"),
        ({"temporal_factor": (0, 2)}, "temporal_factor: at least 1"),
        ({"attention_blocks": -1}, "attention_blocks: at least 0"),
    ],
)
def test_configurations_that_cannot_be_built_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        stunet.Config(**change)


def test_unknown_block_families_are_named():
    config = stunet.Config(widths=(16, 32), temporal_factor=(2,))
    unet = image_unet.build(config.image_config, seed=0)
    unet.mid_block = nn.Identity()
    with pytest.raises(ValueError, match="cannot inflate Identity"):
        stunet.STUNet(unet, config)
