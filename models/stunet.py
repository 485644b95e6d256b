"""Space-time U-Net: a diffusers image U-Net inflated in time (Lumiere, sections 3.1 and App. B).

The image U-Net's own blocks run frame by frame; the temporal modules stand between them (models/walk.py).
Base = the image U-Net, motion = the temporal modules: two disjoint state dicts.
Letters: B batch, C channels, T frames, H height, W width, N tokens, D embedding, F = B*T folded.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from models import image_unet
from models.temporal import Motion
from models.walk import Walk

Role = Literal["base", "motion", "ssr"]


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
            "norm_groups": image["norm_num_groups"],
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


def build(config: Config, *, seed: int) -> "STUNet":
    """Return a STUNet over a fresh image model; every weight depends on `seed` only."""
    return _over(image_unet.build(config.image_config, seed=seed), config, seed=seed)


def inflate(folder: Path, *, seed: int, variant: str = "", **choices: Any) -> "STUNet":
    """Return a STUNet over the image model in a diffusers checkpoint folder, in fp32.

    `choices` are those of Config.of_image, `variant` that of image_unet.read, whose errors it raises.
    The temporal modules' weights depend on `seed` only.
    """
    text, state = image_unet.read(folder, variant=variant)
    config = Config.of_image(json.loads(text), **choices)
    return _over(image_unet.load(config.image_config, state), config, seed=seed)


def _over(unet: image_unet.UNet2DConditionModel, config: Config, *, seed: int) -> "STUNet":
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        return STUNet(unet, config)


class STUNet(nn.Module):
    """Image U-Net `unet` (base) plus temporal modules `motion`, called on whole videos."""

    def __init__(self, unet: image_unet.UNet2DConditionModel, config: Config) -> None:
        super().__init__()
        image_unet.check(unet)
        self.config = config
        self.unet = unet
        self.motion = Motion(
            unet,
            factors=config.temporal_factor,
            embed_dim=image_unet.embed_dim(unet),
            text_dim=config.text_dim,
            groups=config.norm_groups,
            head_dim=config.head_dim,
            attention_blocks=config.attention_blocks if config.temporal_attention else 0,
            known_channels=config.video_channels + 1 if config.known else 0,
        )

    def forward(
        self,
        x_BCTHW: torch.Tensor,
        timestep_B: torch.Tensor,
        text_BND: torch.Tensor,
        *,
        level_B: torch.Tensor | None = None,
        temporal: bool = True,
        known_BCTHW: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the prediction_BCTHW for noisy video, timesteps (integers) and text tokens.

        level_B in [0, 1] is the noise-augmentation level of an SSR. known_BCTHW is known video (0 where
        unknown) and behind it its mask (1 = known); None knows nothing, as zeros do. temporal=False runs
        the image model on each frame, exactly. ValueError when T, H or W do not divide: nothing is padded.
        """
        self._check(x_BCTHW, level_B, known_BCTHW, temporal=temporal)
        b, t = x_BCTHW.shape[0], x_BCTHW.shape[2]
        text_BND = text_BND.to(x_BCTHW.dtype)
        unet: Any = self.unet  # torch and diffusers declare their blocks' members loosely
        e_BD = image_unet.embed(unet, x_BCTHW, timestep_B, text_BND, level_B)
        walk = Walk(
            unet,
            self.motion,
            e_BD=e_BD,
            told_BD=e_BD + self.motion.text_in(text_BND) if temporal else e_BD,
            text_BND=unet.process_encoder_hidden_states(text_BND, added_cond_kwargs={}),
            frames=t,
            temporal=temporal,
            checkpointing=self.config.checkpointing,
        )
        h = walk.up(walk.middle(walk.down(self._enter(x_BCTHW, known_BCTHW, temporal=temporal))))
        if unet.conv_norm_out is not None:
            h = unet.conv_act(unet.conv_norm_out(h))
        out = unet.conv_out(h)
        return out.reshape(b, t, *out.shape[1:]).transpose(1, 2)

    def _enter(
        self, x: torch.Tensor, known: torch.Tensor | None, *, temporal: bool
    ) -> torch.Tensor:
        """Return the first features: conv_in of the frames, plus what is known of them."""
        unet: Any = self.unet
        h = unet.conv_in(_fold(2.0 * x - 1.0 if unet.config.center_input_sample else x))
        if self.motion.known_in is None or not temporal:
            return h
        if known is None:
            # Zeros, not nothing: the same bits, and data-parallel training has every gradient.
            known = x.new_zeros(x.shape[0], self.config.video_channels + 1, *x.shape[2:])
        return h + self.motion.known_in(_fold(known.to(x.dtype)))

    def _check(
        self,
        x: torch.Tensor,
        level_B: torch.Tensor | None,
        known: torch.Tensor | None,
        *,
        temporal: bool,
    ) -> None:
        c, t, h, w = x.shape[1:]
        if c != self.config.in_channels:
            raise ValueError(f"the model takes {self.config.in_channels} channels, not {c}")
        if temporal and t % self.config.frames_multiple:
            raise ValueError(f"{t} frames do not divide by {self.config.frames_multiple}")
        if h % self.config.px_multiple or w % self.config.px_multiple:
            raise ValueError(f"{h}x{w} pixels do not divide by {self.config.px_multiple}")
        if self.config.noise_level != (level_B is not None):
            need = "needs" if self.config.noise_level else "takes no"
            raise ValueError(f"this model {need} level_B, the noise-augmentation level")
        if known is None:
            return
        if not self.config.known or not temporal:
            raise ValueError("takes known frames with Config.known=True and temporal=True only")
        wanted = (x.shape[0], self.config.video_channels + 1, t, h, w)
        if known.shape != wanted:
            raise ValueError(f"known_BCTHW must be {wanted}, video and mask, not {(*known.shape,)}")


def _fold(x_BCTHW: torch.Tensor) -> torch.Tensor:
    """Return the frames (B*T, C, H, W) with channels innermost."""
    return x_BCTHW.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def base_state(model: STUNet) -> dict[str, torch.Tensor]:
    """Return the image model's tensors under the names of its own diffusers checkpoint."""
    return _contiguous(model.unet.state_dict())


def motion_state(model: STUNet) -> dict[str, torch.Tensor]:
    """Return the temporal modules' tensors; disjoint from and complementary to `base_state`."""
    return _contiguous(model.motion.state_dict())


def load_base(model: STUNet, state: dict[str, torch.Tensor]) -> None:
    """Load `base_state`; RuntimeError names missing and unexpected tensors."""
    model.unet.load_state_dict(state, strict=True)


def load_motion(model: STUNet, state: dict[str, torch.Tensor]) -> None:
    """Load `motion_state`; RuntimeError names missing and unexpected tensors."""
    model.motion.load_state_dict(state, strict=True)


def trainable(model: STUNet, role: Role) -> dict[str, nn.Parameter]:
    """Freeze all but the role's own parameters (ssr: all of them) and return these by name."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(role in {"ssr", "base" if name.startswith("unet.") else "motion"})
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _contiguous(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}
