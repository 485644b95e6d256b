"""The shape of a STUNet: what it says of its image model, and what the temporal modules add."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models import image_unet


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Shape of a STUNet; level 0 is the finest, and the last of `widths` the coarsest.

    `temporal_factor` has one entry for each of the len(widths) - 1 spatial resizes.
    `text_levels` coarsest levels have spatial self-attention and cross-attention to the text.
    `known`: takes known frames. `checkpointing`: keeps less for the gradients and computes again. `image`: JSON of
    a diffusers UNet2DConditionModel, for which `text_levels` is not read; `head_dim` and `norm_groups` are then
    those of the temporal modules.
    """

    sample_px: int = 32
    in_channels: int = 3
    out_channels: int = 3
    widths: tuple[int, ...] = (16, 32, 64)
    blocks_per_level: int = 1
    text_dim: int = 64
    text_levels: int = 1
    temporal_factor: tuple[int, ...] = (2, 2)
    temporal_attention: bool = True
    attention_blocks: int = 1
    head_dim: int = 16
    norm_groups: int = 8
    noise_level: bool = False
    known: bool = False
    checkpointing: bool = False
    image: str = ""

    def __post_init__(self) -> None:
        self._check_time()
        if len(self.temporal_factor) != len(self.widths) - 1:
            raise ValueError(
                f"temporal_factor {self.temporal_factor} needs {len(self.widths) - 1} entries, "
                f"one for each spatial resize between widths {self.widths}"
            )
        attended = self.widths[len(self.widths) - max(1, self.text_levels) :]
        if any(width % self.norm_groups for width in self.widths):
            raise ValueError(f"widths {self.widths} must be multiples of {self.norm_groups} groups")
        if any(width % self.head_dim for width in attended):
            raise ValueError(f"widths {attended} have attention: multiples of {self.head_dim} only")
        if not 0 <= self.text_levels <= len(self.widths):
            raise ValueError("text_levels must lie in 0..len(widths)")
        if not self.image and self.text_dim % self.head_dim:
            raise ValueError("text_dim must be a multiple of head_dim: text_dim % head_dim = 0")
        for name, value in (image_unet.shape(self.image_config) if self.image else {}).items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} {getattr(self, name)}: the image model has {value}")

    def _check_time(self) -> None:
        if min((1, *self.temporal_factor)) < 1 or self.attention_blocks < 0:
            raise ValueError("temporal_factor: at least 1 each; attention_blocks: at least 0")

    @classmethod
    def of_image(cls, image_config: Mapping[str, Any], **choices: Any) -> "Config":
        """Return the Config over the image model of a diffusers config.json.

        `choices` are fields that the image model leaves open; by default every spatial resize halves or
        doubles the frames, and temporal attention has heads of the largest width up to 64 that fits.
        """
        image = image_unet.arguments(image_config)
        said = image_unet.shape(image)
        coarsest = said["widths"][-1]
        open_fields = {
            "text_levels": 0,
            "temporal_factor": (2,) * (len(said["widths"]) - 1),
            "head_dim": max(d for d in range(1, 65) if coarsest % d == 0),
            "norm_groups": image["norm_num_groups"] or 1,
        }
        return cls(**{**open_fields, **said, **choices, "image": json.dumps(image, sort_keys=True)})

    @property
    def image_config(self) -> dict[str, Any]:
        """Arguments of the image model's constructor."""
        if not self.image:
            return _own_image(self)
        return image_unet.arguments(json.loads(self.image))

    @property
    def video_channels(self) -> int:
        """Channels of the video itself: of what is predicted, without a learned variance.

        Half of the output when this doubles the video's channels, as DeepFloyd IF's: twice the input, or
        in a super-resolution as many as the input, which also holds the condition.
        """
        plain = self.in_channels // 2 if self.noise_level else self.in_channels
        return plain if self.out_channels == 2 * plain else self.out_channels

    @property
    def frames_multiple(self) -> int:
        """What the number of frames must be divisible by."""
        product = 1
        for factor in self.temporal_factor:
            product *= factor
        return product

    @property
    def px_multiple(self) -> int:
        """What height and width must be divisible by."""
        return 2 ** (len(self.widths) - 1)


def _own_image(config: Config) -> dict[str, Any]:
    """Return the image model that a Config without `image` stands for."""
    levels = len(config.widths)
    with_text = [level >= levels - config.text_levels for level in range(levels)]
    return {
        "sample_size": config.sample_px,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "down_block_types": tuple(
            "CrossAttnDownBlock2D" if t else "DownBlock2D" for t in with_text
        ),
        "up_block_types": tuple(
            "CrossAttnUpBlock2D" if t else "UpBlock2D" for t in reversed(with_text)
        ),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "block_out_channels": config.widths,
        "layers_per_block": config.blocks_per_level,
        "norm_num_groups": config.norm_groups,
        "cross_attention_dim": config.text_dim,
        # diffusers reads this as the number of heads (its issue 2011)
        "attention_head_dim": tuple(max(1, width // config.head_dim) for width in config.widths),
        "use_linear_projection": True,
        "resnet_time_scale_shift": "scale_shift",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": config.text_dim // config.head_dim,
        "class_embed_type": "timestep" if config.noise_level else None,
    }
