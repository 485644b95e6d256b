"""Pixel distance: peak signal-to-noise ratio and the nearest of several videos.

Letters: B batch, C channels, T frames, H height, W width.
"""

import torch


def psnr(x: torch.Tensor, y: torch.Tensor, *, peak: float = 2.0) -> float:
    """Return 10 log10(peak^2 / MSE) in dB, infinity when equal; `peak` 2 fits [-1, 1]."""
    _same_shape(x, y)
    error = ((x.double() - y.double()) ** 2).mean()
    return float(10.0 * torch.log10(peak**2 / error))


def nearest(x_CTHW: torch.Tensor, candidates_BCTHW: torch.Tensor) -> int:
    """Return the index of the candidate with the least mean squared error; the first on a tie."""
    _same_shape(x_CTHW, candidates_BCTHW[0])
    errors = ((candidates_BCTHW.double() - x_CTHW.double()) ** 2).flatten(1).mean(1)
    return int(errors.argmin())


def _same_shape(x: torch.Tensor, y: torch.Tensor) -> None:
    if x.shape != y.shape:
        raise ValueError(f"videos differ in shape: {tuple(x.shape)} and {tuple(y.shape)}")
