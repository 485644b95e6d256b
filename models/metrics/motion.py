"""How much a video moves, from frame differences; to be read beside the seam numbers.

Without it a frozen video would win every seam score.
Letters: C channels, T frames, H height, W width.
"""

import torch


def differences(x_CTHW: torch.Tensor) -> torch.Tensor:
    """Return d_t = mean |x_{t+1} - x_t| on a [0, 1] scale, float64 (T-1,), for x in [-1, 1]."""
    x = x_CTHW.double()
    return (x[:, 1:] - x[:, :-1]).abs().mean(dim=(0, 2, 3)) / 2.0


def motion_magnitude(x_CTHW: torch.Tensor) -> float:
    """Return the mean frame difference, 0 (frozen) to 1."""
    return float(differences(x_CTHW).mean())


def static_share(x_CTHW: torch.Tensor, *, limit: float = 1.0 / 512.0) -> float:
    """Return the share of frame steps below `limit`, by default half a level of 8 bits."""
    return float((differences(x_CTHW) < limit).double().mean())
