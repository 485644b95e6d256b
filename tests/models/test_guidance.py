"""Guidance as a function of the step: its values, its work, its place in the solver."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import guidance, samplers
from models.samplers import Sampling

X = samplers.initial([1], frames=2, shape=(3, 4, 4))


class Counted:
    """A denoiser that predicts `shift` away from x and remembers the timesteps it was called at."""

    def __init__(self, shift: float) -> None:
        self.shift, self.seen = shift, []

    def __call__(self, x, timestep_B):
        self.seen.append(int(timestep_B[0]))
        return torch.sin(x) + self.shift


def solved(told: Sampling, with_null: bool = True):
    conditional, null = Counted(0.2), Counted(-0.1)
    x = samplers.solve(
        conditional, X, seeds=[1], settings=told, unconditional=null if with_null else None
    )
    return x, conditional.seen, null.seen


def test_oscillating_weights_are_those_of_imagen_video():
    weights = guidance.Oscillating(high=15, low=1, after_step=3)
    assert [weights(k, 8) for k in range(8)] == [15, 15, 15, 1, 15, 1, 15, 1]
    assert [guidance.Oscillating()(k, 4) for k in range(4)] == [1, 15, 1, 15]
    assert guidance.Constant(scale=6)(3, 8) == 6


@given(st.floats(1, 20), st.floats(1, 20), st.integers(0, 12), st.integers(1, 30))
def test_oscillating_gives_high_then_both_in_turn(high, low, after_step, steps):
    weights = guidance.Oscillating(high=high, low=low, after_step=after_step)
    given_ = [weights(k, steps) for k in range(steps)]
    assert all(w == high for w in given_[:after_step])
    assert all(w == (low, high)[k % 2] for k, w in enumerate(given_[after_step:]))


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "ddpm"])
@pytest.mark.parametrize("weights", [None, guidance.Constant()])
def test_weight_one_is_the_conditional_model_bit_for_bit_and_half_the_work(sampler, weights):
    told = Sampling(sampler=sampler, steps=5, guidance=weights)
    x, conditional, null = solved(told)
    assert torch.equal(x, solved(told, with_null=False)[0])
    assert (len(conditional), null) == (5, [])
    assert not torch.equal(x, solved(Sampling(sampler=sampler, steps=5, guidance_scale=2.0))[0])


def test_the_unconditional_pass_is_left_out_at_the_steps_of_weight_one_only():
    told = Sampling(steps=10, guidance=guidance.Oscillating(high=4, low=1, after_step=3))
    _, conditional, null = solved(told)
    assert len(conditional) == 10
    assert null == [t for k, t in enumerate(conditional) if k < 3 or k % 2 == 0]


def test_a_constant_function_equals_the_constant_scale():
    by_function = solved(Sampling(steps=5, guidance=guidance.Constant(scale=3.0)))[0]
    assert torch.equal(by_function, solved(Sampling(steps=5, guidance_scale=3.0))[0])
    assert torch.equal(by_function, solved(Sampling(steps=5, guidance=lambda _k, _n: 3.0))[0])


def test_guidance_extrapolates_from_the_unconditional_prediction():
    conditional, null = Counted(0.2), Counted(-0.1)
    x, t = torch.zeros(1), torch.zeros(1)
    for scale in (1.0, 2.0, 6.0):
        expected = -0.1 + scale * 0.3
        assert guidance.guided(conditional, null, scale)(x, t).item() == pytest.approx(expected)


def test_wrong_guidance_is_named():
    for build in (
        lambda: guidance.Constant(scale=0.5),
        lambda: guidance.Oscillating(low=0.0),
        lambda: guidance.Oscillating(high=float("inf")),
        lambda: guidance.Constant(scale=float("nan")),
    ):
        with pytest.raises(ValueError, match="at least 1"):
            build()
    with pytest.raises(ValueError, match="after_step -1"):
        guidance.Oscillating(after_step=-1)
    with pytest.raises(ValueError, match=r"guidance 0\.9 must be"):
        solved(Sampling(steps=5, guidance=lambda k, _n: 1.0 - 0.1 * k))
    with pytest.raises(ValueError, match="both set"):
        Sampling(guidance=guidance.Constant(), guidance_scale=2.0)
    with pytest.raises(ValueError, match="needs the unconditional"):
        solved(Sampling(guidance_scale=2.0), with_null=False)
