"""Spatial super-resolution: a STUNet without temporal resampling, conditioned on the small video.

Input channels = noisy + bilinearly enlarged small video after noise augmentation (Imagen Video);
temporal convolutions everywhere, no temporal attention (Lumiere, section 3.2; Imagen Video).
Letters: B batch, C channels, T frames, H height, W width, N tokens, D width of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from models import stunet
from models.diffusion import Denoise, Schedule, alpha_sigma

# Spread of clean video around its enlarged small version, values in [-1, 1]: of the order of what
# bilinear enlargement loses on natural video (26 dB), and only the start of learning hangs on it.
DETAIL_STD = 0.1

SCALES = (2, 4, 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Shape of an SSR; `sample_px` is the side it makes, `max_level` the strongest augmentation.

    known: it also takes known pixels at its own resolution. precondition: see `denoiser`; with False
    the network predicts by itself from cat(x_t, condition), as image SSRs do. A level is always the
    noise's share s of `augment`; public image SSRs count it in timesteps of a schedule instead.
    """

    sample_px: int = 64
    scale: int = 2
    channels: int = 3
    widths: tuple[int, ...] = (16, 32)
    blocks_per_level: int = 1
    text_dim: int = 64
    text_levels: int = 0
    head_dim: int = 16
    norm_groups: int = 8
    max_level: float = 0.5
    known: bool = False
    precondition: bool = True

    def __post_init__(self) -> None:
        _check_scale(self.scale)
        if self.sample_px % self.scale:
            raise ValueError(f"sample_px {self.sample_px} does not divide by scale {self.scale}")
        if not 0.0 <= self.max_level < 1.0:
            raise ValueError(f"max_level {self.max_level} of an SSR must lie in [0, 1)")

    @property
    def network(self) -> stunet.Config:
        """The STUNet this stands for."""
        return stunet.Config(
            sample_px=self.sample_px,
            in_channels=2 * self.channels,
            out_channels=self.channels,
            widths=self.widths,
            blocks_per_level=self.blocks_per_level,
            text_dim=self.text_dim,
            text_levels=self.text_levels,
            temporal_factor=(1,) * (len(self.widths) - 1),
            temporal_attention=False,
            head_dim=self.head_dim,
            norm_groups=self.norm_groups,
            noise_level=True,
            known=self.known,
        )


def build(config: Config, *, seed: int) -> stunet.STUNet:
    """Return an SSR whose weights depend on `seed` only."""
    return stunet.build(config.network, seed=seed)


def upsample(low_BCTHW: torch.Tensor, scale: int) -> torch.Tensor:
    """Return the video enlarged bilinearly in height and width by `scale`: 2, 4 or 8."""
    _check_scale(scale)
    return functional.interpolate(low_BCTHW, scale_factor=(1, scale, scale), mode="trilinear")


def shrink(high_BCTHW: torch.Tensor, scale: int) -> torch.Tensor:
    """Return the video reduced by area averaging: the small video of a training pair."""
    _check_scale(scale)
    height, width = high_BCTHW.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f"{height}x{width} pixels do not divide by scale {scale}: crop them")
    return functional.avg_pool3d(high_BCTHW, (1, scale, scale))


def augment(
    condition_BCTHW: torch.Tensor, level_B: torch.Tensor, noise_BCTHW: torch.Tensor
) -> torch.Tensor:
    """Return sqrt(1 - s^2) c + s n for each item's level s in [0, 1]."""
    s = level_B.reshape(-1, 1, 1, 1, 1).to(condition_BCTHW)
    return (1.0 - s**2).sqrt() * condition_BCTHW + s * noise_BCTHW


def denoiser(
    model: torch.nn.Module,
    condition_BCTHW: torch.Tensor,
    text_BND: torch.Tensor,
    level_B: torch.Tensor,
    *,
    schedule: Schedule,
    precondition: bool = True,
    known_BCTHW: torch.Tensor | None = None,
    temporal: bool = True,
) -> Denoise:
    """Return the SSR as a function of (x_t, timestep_B) for one augmented, enlarged condition.

    The network says how far x0 lies from the mean of its posterior, in standard deviations, if x0 were
    Gaussian around the condition, and it sees x_t as the normalised innovation. So an SSR starts from the
    enlarged video and learns detail; it need not learn to copy (as Karras et al. 2022 for images).
    Without `precondition` it sees cat(x_t, condition) and its output is the prediction itself.
    known_BCTHW are known pixels and their mask at the SSR's resolution, C + 1 channels, or none.
    Without `temporal` it enlarges each frame by itself.
    """
    known: dict[str, Any] = {} if known_BCTHW is None else {"known_BCTHW": known_BCTHW}
    known |= {} if temporal else {"temporal": False}

    def network(x_BCTHW: torch.Tensor, timestep_B: torch.Tensor) -> torch.Tensor:
        both = torch.cat((x_BCTHW, condition_BCTHW), dim=1)
        said = model(both, timestep_B, text_BND, level_B=level_B, **known)
        return said[:, : x_BCTHW.shape[1]]  # public weights may say a variance too

    if not precondition:
        return network

    def denoise(x_BCTHW: torch.Tensor, timestep_B: torch.Tensor) -> torch.Tensor:
        given, said = _weights(schedule, timestep_B, level_B, like=x_BCTHW)
        detail = network(_sum(given, x_BCTHW, condition_BCTHW), timestep_B).to(x_BCTHW)
        return _sum(said, x_BCTHW, condition_BCTHW, detail)

    return denoise


def _sum(weights_B: Sequence[torch.Tensor], *videos_BCTHW: torch.Tensor) -> torch.Tensor:
    """Return the weighted sum of videos, one pass over memory each."""
    total = weights_B[0] * videos_BCTHW[0]
    for weight_B, video_BCTHW in zip(weights_B[1:], videos_BCTHW[1:], strict=True):
        total = torch.addcmul(total, video_BCTHW, weight_B)
    return total


def _weights(
    schedule: Schedule, timestep_B: torch.Tensor, level_B: torch.Tensor, *, like: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return what x_t and the condition weigh in what the network is shown, and what they and its detail in the prediction.

    With m = u c the mean (u = 1 / sqrt(1 - s^2)), V its variance and T = alpha^2 V + sigma^2 that of x_t: the network is
    shown i = (x_t - alpha m) / sqrt(T), and x0 = m + alpha V / sqrt(T) i + sigma sqrt(V / T) detail. Put into one another,
    with alpha^2 + sigma^2 = 1, nothing is left to divide by sigma, and nothing cancels.
    """
    alpha, sigma = alpha_sigma(schedule, timestep_B, like.new_empty(len(like), dtype=torch.float64))
    s = level_B.to(alpha)
    u = (1.0 - s**2).rsqrt()
    variance = (s * u) ** 2 + DETAIL_STD**2
    total = alpha**2 * variance + sigma**2
    share = (variance / total).sqrt()
    if schedule.prediction == "x0":
        said = alpha * share**2, u * sigma**2 / total, sigma * share
    elif schedule.prediction == "epsilon":
        said = sigma / total, -alpha * sigma * u / total, -alpha * share
    else:
        said = alpha * sigma * (1.0 - variance) / total, -sigma * u / total, -share
    given = total.rsqrt(), -alpha * u * total.rsqrt()
    shape = (-1, *(1 for _ in like.shape[1:]))
    told = [[w.to(like).reshape(shape) for w in group] for group in (given, said)]
    return told[0], told[1]


def _check_scale(scale: int) -> None:
    if scale not in SCALES:
        raise ValueError(f"the scale of an SSR must be 2, 4 or 8, not {scale}: chain two for more")
