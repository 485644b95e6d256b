"""Space-time U-Net: a diffusers image U-Net inflated in time (Lumiere, sections 3.1 and App. B).

The image U-Net's own blocks run frame by frame; the temporal modules stand between them (models/walk.py).
Base = the image U-Net, motion = the temporal modules: two disjoint state dicts.
Letters: B batch, C channels, T frames, H height, W width, N tokens, D embedding, F = B*T folded.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from models import image_unet
from models.stunet_config import Config as Config  # noqa: PLC0414  part of this module's interface
from models.temporal import AttnInflate, ConvInflate, Motion
from models.walk import Walk

if TYPE_CHECKING:
    from models.image_unet import UNet2DConditionModel

Role = Literal["base", "motion", "ssr"]


def build(config: Config, *, seed: int) -> "STUNet":
    """Return a STUNet over a fresh image model, to be evaluated or `trainable`; every weight depends on `seed` only."""
    return _over(image_unet.build(config.image_config, seed=seed), config, seed=seed)


def inflate(folder: Path, *, seed: int, variant: str = "", **choices: Any) -> "STUNet":
    """Return a STUNet over the image model in a diffusers checkpoint folder, in fp32.

    `choices` are those of Config.of_image, `variant` that of image_unet.read, whose errors it raises.
    The temporal modules' weights depend on `seed` only.
    """
    text, state = image_unet.read(folder, variant=variant)
    config = Config.of_image(json.loads(text), **choices)
    return _over(image_unet.load(config.image_config, state), config, seed=seed)


def _over(unet: "UNet2DConditionModel", config: Config, *, seed: int) -> "STUNet":
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        return STUNet(unet, config).eval()


class STUNet(nn.Module):
    """Image U-Net `unet` (base) plus temporal modules `motion`, called on whole videos."""

    def __init__(self, unet: "UNet2DConditionModel", config: Config) -> None:
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
        self._check(x_BCTHW, timestep_B, text_BND, level_B)
        self._check_frames(x_BCTHW, known_BCTHW, temporal=temporal)
        unet: Any = self.unet  # torch and diffusers declare their blocks' members loosely
        b, t = x_BCTHW.shape[0], x_BCTHW.shape[2]
        x_BCTHW = x_BCTHW.to(unet.conv_in.weight.dtype)  # a model in bf16 sees and says bf16
        text_BND = text_BND.to(x_BCTHW.dtype)
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
        timestep_B: torch.Tensor,
        text: torch.Tensor,
        level_B: torch.Tensor | None,
    ) -> None:
        b, c, _, h, w = x.shape
        if c != self.config.in_channels:
            raise ValueError(f"the model takes {self.config.in_channels} channels, not {c}")
        if h % self.config.px_multiple or w % self.config.px_multiple:
            raise ValueError(f"{h}x{w} pixels do not divide by {self.config.px_multiple}")
        if self.config.noise_level != (level_B is not None):
            need = "needs" if self.config.noise_level else "takes no"
            raise ValueError(f"this model {need} level_B, the noise-augmentation level")
        if text.ndim != 3 or (text.shape[0], text.shape[2]) != (b, self.config.text_dim):
            raise ValueError(
                f"text_BND must be ({b}, tokens, {self.config.text_dim}), not {(*text.shape,)}"
            )
        for name, given in (("timestep_B", timestep_B), ("level_B", level_B)):
            if given is not None and given.shape != (b,):
                raise ValueError(f"{name} must be ({b},), one a video, not {(*given.shape,)}")

    def _check_frames(self, x: torch.Tensor, known: torch.Tensor | None, *, temporal: bool) -> None:
        b, _, t, h, w = x.shape
        if temporal and t % self.config.frames_multiple:
            raise ValueError(f"{t} frames do not divide by {self.config.frames_multiple}")
        if known is None:
            return
        if not self.config.known or not temporal:
            raise ValueError("takes known frames with Config.known=True and temporal=True only")
        wanted = (b, self.config.video_channels + 1, t, h, w)
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
    """Freeze all but the role's own parameters (ssr: all of them) and return these by name; ValueError for no role."""
    if role not in get_args(Role):
        raise ValueError(f"unknown role {role!r}: use one of {', '.join(get_args(Role))}")
    # what is frozen is evaluated: its dropout would make the frozen model another one at each step
    model.train()
    model.unet.train(role != "motion")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(role in {"ssr", "base" if name.startswith("unet.") else "motion"})
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def blocks(model: STUNet) -> list[nn.Module]:
    """Return the modules that a pass calls as wholes and that hold most of the weights: what FSDP gathers one by one."""
    kinds = (*image_unet.called(), ConvInflate, AttnInflate)
    return [module for module in model.modules() if isinstance(module, kinds)]


def _contiguous(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}
