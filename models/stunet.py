"""Space-time U-Net: a diffusers image U-Net inflated in time (Lumiere, sections 3.1 and App. B).

The image U-Net's own blocks run frame by frame; the temporal modules stand between them, and skips
are taken after the temporal down-sampling of their level. Base = the image U-Net, motion = the
temporal modules: two disjoint state dicts. The forward pass is written out, no hooks.
Letters: B batch, C channels, T frames, H height, W width, N tokens, D embedding, F = B*T folded.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from models.temporal import Motion

Role = Literal["base", "motion", "ssr"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Shape of a STUNet; level 0 is the finest, and the last of `widths` the coarsest.

    `temporal_factor` has one entry for each of the len(widths) - 1 spatial resizes.
    `text_levels` coarsest levels have spatial self-attention and cross-attention to the text.
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
        if not 0 <= self.text_levels <= len(self.widths) or self.text_dim % self.head_dim:
            raise ValueError("text_levels must lie in 0..len(widths), text_dim % head_dim be 0")

    @property
    def embed_dim(self) -> int:
        """Width of the time embedding, as diffusers derives it."""
        return 4 * self.widths[0]

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


def image_unet(config: Config, *, seed: int) -> UNet2DConditionModel:
    """Return the image model with random weights that depend on `seed` only."""
    levels = len(config.widths)
    with_text = [level >= levels - config.text_levels for level in range(levels)]
    heads: Any = tuple(max(1, width // config.head_dim) for width in config.widths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel(
            sample_size=config.sample_px,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            down_block_types=tuple(
                "CrossAttnDownBlock2D" if t else "DownBlock2D" for t in with_text
            ),
            up_block_types=tuple(
                "CrossAttnUpBlock2D" if t else "UpBlock2D" for t in reversed(with_text)
            ),
            mid_block_type="UNetMidBlock2DCrossAttn",
            block_out_channels=config.widths,
            layers_per_block=config.blocks_per_level,
            norm_num_groups=config.norm_groups,
            cross_attention_dim=config.text_dim,
            # diffusers reads this as the number of heads (its issue 2011)
            attention_head_dim=heads,
            use_linear_projection=True,
            resnet_time_scale_shift="scale_shift",
            addition_embed_type="text",
            addition_embed_type_num_heads=config.text_dim // config.head_dim,
            class_embed_type="timestep" if config.noise_level else None,
        )


def build(config: Config, *, seed: int) -> "STUNet":
    """Return a STUNet over a fresh image model; every weight depends on `seed` only."""
    unet = image_unet(config, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        return STUNet(unet, config)


class STUNet(nn.Module):
    """Image U-Net `unet` (base) plus temporal modules `motion`, called on whole videos."""

    def __init__(self, unet: UNet2DConditionModel, config: Config) -> None:
        super().__init__()
        _check_family(unet)
        self.config = config
        self.unet = unet
        self.motion = Motion(
            unet,
            factors=config.temporal_factor,
            embed_dim=config.embed_dim,
            groups=config.norm_groups,
            head_dim=config.head_dim,
            attention_blocks=config.attention_blocks if config.temporal_attention else 0,
        )

    def forward(
        self,
        x_BCTHW: torch.Tensor,
        timestep_B: torch.Tensor,
        text_BND: torch.Tensor,
        *,
        level_B: torch.Tensor | None = None,
        temporal: bool = True,
    ) -> torch.Tensor:
        """Return the prediction_BCTHW for noisy video, timesteps (integers) and text tokens.

        level_B in [0, 1] is the noise-augmentation level of an SSR. temporal=False runs the image
        model on each frame, exactly. ValueError when T, H or W do not divide: nothing is padded.
        """
        self._check(x_BCTHW, level_B, temporal=temporal)
        b, t = x_BCTHW.shape[0], x_BCTHW.shape[2]
        text_BND = text_BND.to(x_BCTHW.dtype)
        e_BD = self._embed(x_BCTHW, timestep_B, text_BND, level_B)
        walk = _Walk(self, e_BD, text_BND, frames=t, temporal=temporal)
        h = x_BCTHW.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        h = walk.up(walk.middle(walk.down(self.unet.conv_in(h))))
        if self.unet.conv_norm_out is not None and self.unet.conv_act is not None:
            h = self.unet.conv_act(self.unet.conv_norm_out(h))
        out = self.unet.conv_out(h)
        return out.reshape(b, t, *out.shape[1:]).transpose(1, 2)

    def _embed(
        self,
        x: torch.Tensor,
        timestep_B: torch.Tensor,
        text_BND: torch.Tensor,
        level_B: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return e_BD = time + level + pooled text, as the image model computes it."""
        unet = self.unet
        e = unet.time_embedding(unet.get_time_embed(sample=x, timestep=timestep_B))
        if level_B is not None:
            # the level is embedded like a timestep, on the same scale of 0 to 1000
            e = e + unet.get_class_embed(sample=x, class_labels=1000.0 * level_B)
        pooled = unet.get_aug_embed(e, text_BND, added_cond_kwargs={})
        return e if pooled is None else e + pooled

    def _check(self, x: torch.Tensor, level_B: torch.Tensor | None, *, temporal: bool) -> None:
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


class _Walk:
    """One forward pass: the frames and conditions of the level it is at, and the skips."""

    def __init__(
        self,
        model: STUNet,
        e_BD: torch.Tensor,
        text_BND: torch.Tensor,
        *,
        frames: int,
        temporal: bool,
    ) -> None:
        self.unet: Any = model.unet  # torch and diffusers declare their blocks' members loosely
        self.motion: Any = model.motion
        self.e_BD, self.text_BND = e_BD, text_BND
        self.temporal = temporal
        self.skips: list[torch.Tensor] = []
        self._set_frames(frames)

    def _set_frames(self, frames: int) -> None:
        """Repeat e and text for each frame of the current level."""
        self.frames = frames
        self.e_FD = self.e_BD.repeat_interleave(frames, 0)
        self.text_FND = self.text_BND.repeat_interleave(frames, 0)

    def down(self, h: torch.Tensor) -> torch.Tensor:
        self.skips.append(h)
        for level, block in enumerate(self.unet.down_blocks):
            for i, resnet in enumerate(block.resnets):
                h = self._attend(block, i, resnet(h, self.e_FD))
                h = self._inflate(self.motion.down[level][i], h)
                self.skips.append(h)
            if block.downsamplers is not None:
                h = self._resample(self.motion.tdown[level], block.downsamplers[0](h))
                self.skips.append(h)
        return h

    def middle(self, h: torch.Tensor) -> torch.Tensor:
        mid = self.unet.mid_block
        h = mid.resnets[0](h, self.e_FD)
        for i, resnet in enumerate(mid.resnets[1:]):
            h = self._attend(mid, i, h)
            h = resnet(self._inflate(self.motion.mid, h) if i == 0 else h, self.e_FD)
        return h

    def up(self, h: torch.Tensor) -> torch.Tensor:
        for place, block in enumerate(self.unet.up_blocks):
            for i, resnet in enumerate(block.resnets):
                h = resnet(torch.cat((h, self.skips.pop()), dim=1), self.e_FD)
                h = self._inflate(self.motion.up[place][i], self._attend(block, i, h))
            if block.upsamplers is not None:
                h = self._resample(self.motion.tup[place], block.upsamplers[0](h))
        return h

    def _attend(self, block: Any, i: int, h: torch.Tensor) -> torch.Tensor:
        if not getattr(block, "has_cross_attention", False):
            return h
        return block.attentions[i](h, encoder_hidden_states=self.text_FND, return_dict=False)[0]

    def _inflate(self, stack: Iterable[nn.Module], h: torch.Tensor) -> torch.Tensor:
        if self.temporal:
            for module in stack:
                h = module(h, self.e_BD, self.frames)
        return h

    def _resample(self, module: nn.Module, h: torch.Tensor) -> torch.Tensor:
        if self.temporal and not isinstance(module, nn.Identity):
            h = module(h, self.frames)
            self._set_frames(h.shape[0] // self.e_BD.shape[0])
        return h


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


def _check_family(unet: UNet2DConditionModel) -> None:
    resizing = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}
    known = resizing | {"UNetMidBlock2DCrossAttn"}
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    strange = sorted({type(block).__name__ for block in blocks} - known)
    if strange:
        raise ValueError(
            f"cannot inflate {', '.join(strange)}: known are {', '.join(sorted(known))}"
        )
