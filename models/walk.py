"""One forward pass through image U-Net and temporal modules, written out; no hooks.

The image model's blocks run frame by frame; after each (resnet, attention) pair stands an inflation, after
each spatial resize a temporal one, and skips are taken after it. Letters: B batch, C channels, H height,
W width, N tokens, D width of tokens and embedding, F = B * frames of the level the walk is at.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from models import image_unet


@dataclass(frozen=True, kw_only=True)
class Level:
    """The conditions of one temporal level, repeated for each of its `frames` but for told_BD."""

    frames: int
    told_BD: torch.Tensor
    e_FD: torch.Tensor
    text_FND: torch.Tensor


class Walk:
    """The level a pass is at, and its skips; `temporal` off leaves out all that is not the image model's.

    e_BD is the image model's embedding, told_BD that of the temporal modules.
    With `checkpointing` each step keeps its inputs only and is run again for the gradients.
    """

    def __init__(
        self,
        unet: Any,
        motion: Any,
        *,
        e_BD: torch.Tensor,
        told_BD: torch.Tensor,
        text_BND: torch.Tensor,
        frames: int,
        temporal: bool,
        checkpointing: bool,
    ) -> None:
        self.unet, self.motion = unet, motion
        self.e_BD, self.told_BD, self.text_BND = e_BD, told_BD, text_BND
        self.temporal, self.checkpointing = temporal, checkpointing
        self.skips: list[torch.Tensor] = []
        self.here = self._level(frames)

    def down(self, h: torch.Tensor) -> torch.Tensor:
        """Run the encoder and collect the skips."""
        self.skips.append(h)
        for level, block in enumerate(self.unet.down_blocks):
            for i, resnet in enumerate(block.resnets):
                h = self._step(h, resnet, _attention(block, i), self.motion.down[level][i])
                self.skips.append(h)
            if block.downsamplers is not None:
                h = self._resize(h, block.downsamplers[0], self.motion.tdown[level])
                self.skips.append(h)
        return h

    def middle(self, h: torch.Tensor) -> torch.Tensor:
        """Run the middle block, where there is one; its inflation follows the first pair."""
        mid = self.unet.mid_block
        for i, resnet in enumerate(() if mid is None else mid.resnets):
            h = self._step(h, resnet, _attention(mid, i), self.motion.mid if i == 0 else ())
        return h

    def up(self, h: torch.Tensor) -> torch.Tensor:
        """Run the decoder."""
        for place, block in enumerate(self.unet.up_blocks):
            for i, resnet in enumerate(block.resnets):
                stack = self.motion.up[place][i]
                h = self._step(h, resnet, _attention(block, i), stack, self.skips.pop())
            if block.upsamplers is not None:
                h = self._resize(h, block.upsamplers[0], self.motion.tup[place])
        return h

    def _level(self, frames: int) -> Level:
        return Level(
            frames=frames,
            told_BD=self.told_BD,
            e_FD=self.e_BD.repeat_interleave(frames, 0),
            text_FND=self.text_BND.repeat_interleave(frames, 0),
        )

    def _step(
        self,
        h: torch.Tensor,
        resnet: nn.Module,
        attention: nn.Module | None,
        stack: Iterable[nn.Module],
        *skip: torch.Tensor,
    ) -> torch.Tensor:
        # Bound here, not read from self: when a step is run again the walk stands elsewhere.
        here, inflations = self.here, list(stack) if self.temporal else []

        def run(h: torch.Tensor, *skip: torch.Tensor) -> torch.Tensor:
            h = resnet(torch.cat((h, *skip), dim=1) if skip else h, here.e_FD)
            if attention is not None:
                h = image_unet.attend(attention, h, here.text_FND)
            for module in inflations:
                h = module(h, here.told_BD, here.frames)
            return h

        return self._run(run, h, *skip)

    def _resize(self, h: torch.Tensor, layer: nn.Module, resampler: nn.Module) -> torch.Tensor:
        here = self.here
        resampled = self.temporal and not isinstance(resampler, nn.Identity)

        def run(h: torch.Tensor) -> torch.Tensor:
            h = image_unet.resize(layer, h, here.e_FD)
            return resampler(h, here.frames) if resampled else h

        h = self._run(run, h)
        if resampled:
            self.here = self._level(h.shape[0] // self.e_BD.shape[0])
        return h

    def _run(self, run: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(run, *inputs, use_reentrant=False)
        return run(*inputs)


def _attention(block: Any, i: int) -> nn.Module | None:
    """Return the attention after resnet i, where the block has one there."""
    attentions = getattr(block, "attentions", None) or ()
    return attentions[i] if i < len(attentions) else None
