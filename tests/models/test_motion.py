"""Motion numbers by closed form."""

import pytest
import torch

from models.metrics import motion


def test_differences_are_on_a_unit_scale():
    video = torch.zeros(3, 3, 2, 2)
    video[:, 1] = 2.0
    video[:, 2] = 1.0
    assert motion.differences(video).tolist() == [1.0, 0.5]
    assert motion.motion_magnitude(video) == 0.75


def test_static_share_counts_steps_below_half_a_level():
    video = torch.zeros(3, 5, 2, 2)
    video[:, 3:] += 0.5
    assert motion.static_share(video) == pytest.approx(0.75)
    video[:, 4] += 2.0 / 255.0
    assert motion.static_share(video) == pytest.approx(0.5)
