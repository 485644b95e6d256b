"""PSNR by closed form, and the nearest of several videos."""

import math

import pytest
import torch

from models.metrics.psnr import nearest, psnr


def test_psnr_by_closed_form():
    x = torch.zeros(3, 4, 2, 2)
    assert psnr(x, x) == math.inf
    assert psnr(x, x + 0.2) == pytest.approx(20.0, abs=1e-4)
    assert psnr(x, x + 0.1, peak=1.0) == pytest.approx(20.0, abs=1e-4)


def test_nearest_is_by_mean_squared_error_and_first_on_a_tie():
    candidates = torch.stack([torch.full((3, 2, 2, 2), v) for v in (-0.5, 0.0, 0.5, 0.5)])
    assert nearest(torch.full((3, 2, 2, 2), 0.4), candidates) == 2
    assert nearest(torch.full((3, 2, 2, 2), -0.1), candidates) == 1


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        psnr(torch.zeros(1, 2), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="differ in shape"):
        nearest(torch.zeros(3, 2, 2, 2), torch.zeros(2, 3, 3, 2, 2))
