"""Style: base weights blended exactly at the ends, motion weights left alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from models import checkpoint, stunet, style


def state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 4, generator=generator)
    weight[0, 0] = -0.0
    return {
        "layer.weight": weight.to(dtype),
        "layer.bias": torch.randn(3, generator=generator).to(dtype),
        "positions": torch.arange(5) + seed,
    }


def bits(tensors: dict[str, torch.Tensor]) -> str:
    return checkpoint.state_digest(tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_ends_are_the_sources_bit_for_bit(dtype):
    original, other = state(1, dtype), state(2, dtype)
    assert bits(style.interpolate(original, other, 0.0)) == bits(original)
    assert bits(style.interpolate(original, other, 1.0)) == bits(other)
    between = style.interpolate(original, other, 0.5)
    assert bits(between) not in {bits(original), bits(other)}
    assert between["layer.weight"].dtype == dtype


@given(st.floats(0, 1))
def test_a_linear_layer_is_affine_in_alpha(alpha):
    original, other = state(1), state(2)
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(3))

    def output(weights):
        return functional.linear(x, weights["layer.weight"], weights["layer.bias"])

    expected = (1 - alpha) * output(original) + alpha * output(other)
    assert torch.allclose(output(style.interpolate(original, other, alpha)), expected, atol=1e-5)


@given(st.floats(0, 1))
def test_equal_weights_stay_bit_equal_and_integers_are_copied(alpha):
    assert bits(style.interpolate(state(1), state(1), alpha)) == bits(state(1))
    mixed = style.interpolate(state(1), {**state(2), "positions": torch.arange(5) + 9}, alpha)
    chosen = 9 if alpha == 1.0 else 1
    assert torch.equal(mixed["positions"], torch.arange(5) + chosen)


def test_sources_are_not_changed_and_not_shared():
    original, other = state(1), state(2)
    before = bits(original), bits(other)
    for alpha in (0.0, 0.3, 1.0):
        for tensor in style.interpolate(original, other, alpha).values():
            tensor.add_(1)
    assert (bits(original), bits(other)) == before


def test_what_does_not_fit_is_refused_by_name():
    good = state(1)
    for wrong, said in (
        ({k: v for k, v in good.items() if k != "layer.bias"}, r"lacks \['layer.bias'\]"),
        ({**good, "more": torch.zeros(1)}, r"besides \['more'\]"),
        ({**good, "layer.bias": torch.zeros(4)}, r"layer.bias is \[4\]"),
        ({**good, "layer.bias": torch.zeros(3).half()}, r"layer.bias is \[3\] torch.float16"),
    ):
        with pytest.raises(ValueError, match=said):
            style.interpolate(good, wrong, 0.5)
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="must lie in"):
            style.interpolate(good, good, alpha)


def test_the_digest_names_both_sources_and_alpha():
    ids = {style.digest(a, b, alpha) for a in "xy" for b in "xy" for alpha in (0.0, 0.5, 1.0)}
    assert len(ids) == 12
    assert style.digest("x", "y", 1) == style.digest("x", "y", 1.0)
    assert style.digest("x", "y", -0.0) == style.digest("x", "y", 0.0)


CONFIG = stunet.Config(sample_px=8, widths=(8, 16), temporal_factor=(2,), text_dim=16, head_dim=8)


def test_motion_is_untouched_and_the_picture_changes_with_alpha():
    model, other = (stunet.build(CONFIG, seed=seed) for seed in (1, 2))
    original, styled = stunet.base_state(model), stunet.base_state(other)
    motion = bits(stunet.motion_state(model))
    x = torch.randn(1, 3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    text, at = torch.zeros(1, 2, 16), torch.tensor([500])

    def output(alpha: float) -> torch.Tensor:
        stunet.load_base(model, style.interpolate(original, styled, alpha))
        assert bits(stunet.motion_state(model)) == motion
        with torch.no_grad():
            return model(x, at, text)

    first = output(0.0)
    distances = [float((output(alpha) - first).norm()) for alpha in (0.0, 0.1, 0.2, 0.4)]
    assert distances[0] == 0
    assert distances == sorted(distances)
    assert len(set(distances)) == 4
    with pytest.raises(ValueError, match="same image model"):
        style.interpolate(original, stunet.motion_state(other), 0.5)
