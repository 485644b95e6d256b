"""Seam numbers by closed form: steps between windows stand out exactly as much as was put in."""

import pytest
import torch

from models import windows
from models.metrics import motion, seam
from models.multidiffusion import reduce

PLAN = windows.exact(26, 8, 2)


def moving(frames: int, step: float, seed: int = 0) -> torch.Tensor:
    """A video whose every frame differs from the last by `step` in [-1, 1] units, sign at random."""
    signs = (
        torch.randint(0, 2, (frames, 4, 4), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
    )
    return (signs * step).cumsum(0).expand(3, -1, -1, -1).clone()


@pytest.mark.parametrize(("kind", "step"), [("uniform", 1 / 2), ("linear", 1 / 3), ("hann", 1 / 2)])
def test_windows_that_disagree_by_a_constant_step_by_the_closed_form(kind, step):
    delta = 0.3
    plan = windows.exact(14, 8, 2)
    parts = [(k, torch.full((1, 3, 8, 2, 2), k * delta)) for k in range(2)]
    video = reduce(parts, plan, windows.weights(plan, kind))[0]
    assert float(motion.differences(video).max()) == pytest.approx(delta / 2 * step, rel=1e-4)


def test_without_overlap_the_step_is_delta():
    plan = windows.exact(16, 8, 0)
    parts = [(k, torch.full((1, 3, 8, 2, 2), k * 0.3)) for k in range(2)]
    video = reduce(parts, plan, windows.weights(plan))[0]
    assert float(motion.differences(video).max()) == pytest.approx(0.15)


def test_ratio_is_one_without_seams_and_the_factor_with_them():
    video = moving(26, 0.02)
    at = windows.boundaries(PLAN)
    assert seam.seam_ratio(video, at) == pytest.approx(1.0, rel=1e-4)
    for t in at:
        video[:, t + 1 :] += 2.0 * (video[:, t + 1 : t + 2] - video[:, t : t + 1])
    assert seam.seam_ratio(video, at) == pytest.approx(3.0, rel=1e-4)


def test_none_uniform_and_linear_are_ordered():
    ratios = []
    for overlap, kind in ((0, "uniform"), (4, "uniform"), (4, "linear")):
        plan = windows.exact(12 if overlap else 16, 8, overlap)
        base = moving(plan.frames, 0.01)
        parts = [(k, base[None, :, plan.slice(k)] + 0.2 * k) for k in range(2)]
        video = reduce(parts, plan, windows.weights(plan, kind))[0]
        ratios.append(float(motion.differences(video).max()))
    assert ratios[0] > ratios[1] > ratios[2]


def test_a_frozen_video_has_ratio_one_and_no_motion():
    frozen = torch.zeros(3, 26, 4, 4)
    assert seam.seam_ratio(frozen, windows.boundaries(PLAN)) == 1.0
    assert motion.motion_magnitude(frozen) == 0.0
    frozen[:, 13:] = 1.0
    assert seam.seam_ratio(frozen, [12]) == float("inf")


def test_excess_is_the_second_difference_of_a_jump():
    ramp = torch.linspace(-0.5, 0.5, 21).reshape(1, -1, 1, 1).expand(3, -1, 2, 2).clone()
    assert seam.seam_excess(ramp, [10]) == pytest.approx(0.0, abs=1e-6)
    ramp[:, 11:] += 0.4
    # both steps beside the jump touch its second difference too: 2 of the other 19
    assert seam.seam_excess(ramp, [10]) == pytest.approx(0.2 * (1 - 2 / 19), rel=1e-3)


def test_the_permutation_test_finds_seams_and_does_not_invent_them():
    at = list(range(7, 40, 8))
    rough = 0.001 * torch.randn(3, 42, 4, 4, generator=torch.Generator().manual_seed(9))
    clean = [moving(42, 0.02 + 0.01 * i, seed=i) + rough for i in range(4)]
    seamed = [video.clone() for video in clean]
    for video in seamed:
        for t in at:
            video[:, t + 1 :] += 0.3
    assert seam.seam_p_value(seamed, at, stride=8) == 1 / 8
    assert seam.seam_p_value(seamed, [t + 3 for t in at if t + 3 < 41], stride=8) > 1 / 8
    assert seam.seam_p_value([torch.zeros(3, 42, 2, 2)], at, stride=8) == 1.0


def test_requests_without_an_answer_are_refused():
    video = moving(6, 0.1)
    with pytest.raises(ValueError, match="must be frame steps"):
        seam.seam_ratio(video, [5])
    with pytest.raises(ValueError, match="must be frame steps"):
        seam.seam_ratio(video, [])
    with pytest.raises(ValueError, match="free of boundaries"):
        seam.seam_ratio(video, [0, 1, 2, 3, 4])
    with pytest.raises(ValueError, match="stride"):
        seam.seam_p_value([video], [1], stride=1)
