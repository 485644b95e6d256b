"""The temporal modules that turn an image U-Net into a space-time U-Net (Lumiere, 3.1 and App. B).

All start as identities: zero output layers (ConvInflate, AttnInflate) and Dirac kernels (TDown,
TUp), so that at first the video model is the image model. Deviates: timestep and text reach the
blocks directly through zero-initialised scale and shift, because a base trained on frames has no
reason to carry motion words. Letters: B batch, C channels, T frames, H height, W width, D embedding;
features travel folded as h_FCHW, F = B*T, which is free to view either way in channels_last.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional


def to_time(h_FCHW: torch.Tensor, frames: int) -> torch.Tensor:
    """Return (B, C, T, H*W): 1D convolutions over frames become 2D ones with a (3, 1) kernel."""
    folded, c, h, w = h_FCHW.shape
    rows = h_FCHW.permute(0, 2, 3, 1).reshape(folded // frames, frames, h * w, c)
    return rows.permute(0, 3, 1, 2)


def from_time(x_BCTS: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Undo `to_time`: (B, C, T, H*W) to (B*T, C, H, W)."""
    b, c, t, _ = x_BCTS.shape
    rows = x_BCTS.permute(0, 2, 3, 1).reshape(b * t, height, width, c)
    return rows.permute(0, 3, 1, 2)


def layer_norm(x: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    """Normalise in fp32 whatever the type of the features is."""
    y = functional.layer_norm(
        x.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps
    )
    return y.to(x.dtype)


def filmed(
    h_FCHW: torch.Tensor, norm: nn.GroupNorm, film: tuple[torch.Tensor, torch.Tensor], frames: int
) -> torch.Tensor:
    """Return the norm of h in fp32, scaled and shifted by each video's (scale, shift), each (B, C).

    One video's scale and shift go into the norm's own, so that the features are passed over once. Not those of several:
    a loop over videos would be another compiled graph for each number of them.
    """
    scale_BC, shift_BC = film
    weight, bias = norm.weight.float(), norm.bias.float()
    if len(scale_BC) == 1:
        weight, bias = weight * scale_BC[0], bias * scale_BC[0] + shift_BC[0]
    y = functional.group_norm(h_FCHW.float(), norm.num_groups, weight, bias, norm.eps)
    if len(scale_BC) > 1:
        scale, shift = (
            a.repeat_interleave(frames, 0)[:, :, None, None] for a in (scale_BC, shift_BC)
        )
        y = torch.addcmul(shift, y, scale)
    return y.to(h_FCHW.dtype)


def plus_pointwise(h_FCHW: torch.Tensor, y_FCHW: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """Return h + a 1x1 convolution of y without bias, as the one matrix product that it is: channels lie innermost.

    As a convolution it takes torch's slow path on one CPU thread below 16 frames.
    """
    rows = [a.permute(0, 2, 3, 1) for a in (h_FCHW, y_FCHW)]
    flat = [a.reshape(-1, a.shape[-1]) for a in rows]
    out = torch.addmm(flat[0], flat[1], conv.weight[:, :, 0, 0].t())
    return out.reshape(rows[0].shape).permute(0, 3, 1, 2)


class Film(nn.Module):
    """Zero-initialised scale and shift from the embedding e_BD (time + pooled text)."""

    def __init__(self, embed_dim: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embed_dim, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, e_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (1 + scale, shift), each (B, C), in fp32: in bf16 a small scale beside 1 would be none."""
        scale, shift = self.linear(functional.silu(e_BD)).float().chunk(2, dim=-1)
        return 1.0 + scale, shift


class TextIn(nn.Module):
    """Text tokens to one embedding for the temporal modules, learned with them.

    The image model's own pooling learned from frames, and drops words that only motion shows. HEADS learned weighings of
    the tokens, equal at first, so that few words are heard among many (77 of a tower's are mostly padding); the pooled
    vector is normalised: one word would otherwise be small beside the timestep's embedding, and learned late.
    """

    HEADS = 4

    def __init__(self, text_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(text_dim)
        self.each = nn.Linear(text_dim, embed_dim)
        self.weigh = nn.Linear(embed_dim, self.HEADS, bias=False)
        self.norm_pooled = nn.LayerNorm(embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)
        nn.init.zeros_(self.weigh.weight)

    def forward(self, text_BND: torch.Tensor) -> torch.Tensor:
        """Return (B, D): what the tokens say, each by its weight."""
        each_BND = functional.silu(self.each(layer_norm(text_BND, self.norm)))
        shares_BNH = self.weigh(each_BND).softmax(dim=1)
        heads_BNHC = each_BND.unflatten(2, (self.HEADS, -1))
        pooled_BD = (heads_BNHC * shares_BNH.unsqueeze(3)).sum(1).flatten(1)
        return self.out(layer_norm(pooled_BD, self.norm_pooled))


class ConvInflate(nn.Module):
    """Factorised space-time convolution: h + W_out silu(Conv1d silu(film GN Conv2d h)).

    A 2D and a 1D convolution, each with its non-linearity. There is no norm before the first: the one behind it makes the
    block indifferent to how large h is, and beside convolutions this narrow each pass over the features is dear.
    """

    def __init__(self, channels: int, *, embed_dim: int, groups: int) -> None:
        super().__init__()
        self.space = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(groups, channels)
        self.film = Film(embed_dim, channels)
        self.time = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.out = nn.Conv2d(channels, channels, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, h_FCHW: torch.Tensor, e_BD: torch.Tensor, frames: int) -> torch.Tensor:
        """Return features of the same shape; F = B * frames."""
        height, width = h_FCHW.shape[-2:]
        y = functional.silu(filmed(self.space(h_FCHW), self.norm, self.film(e_BD), frames))
        y = functional.silu(from_time(self.time(to_time(y, frames)), height, width))
        return plus_pointwise(h_FCHW, y, self.out)


class AttnInflate(nn.Module):
    """Attention over the frames at one (y, x), with positions, then a two-layer perceptron."""

    def __init__(self, channels: int, *, embed_dim: int, head_dim: int) -> None:
        super().__init__()
        self.heads = max(1, channels // head_dim)
        self.norm_attn = nn.LayerNorm(channels)
        self.film = Film(embed_dim, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp_in = nn.Linear(channels, 4 * channels)
        self.mlp_out = nn.Linear(4 * channels, channels)
        for layer in (self.out, self.mlp_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, h_FCHW: torch.Tensor, e_BD: torch.Tensor, frames: int) -> torch.Tensor:
        """Return features of the same shape; F = B * frames."""
        height, width = h_FCHW.shape[-2:]
        grid = to_time(h_FCHW, frames)
        b, c, t, s = grid.shape
        x_BSTC = grid.permute(0, 3, 2, 1)
        scale, shift = (a[:, None, None, :] for a in self.film(e_BD))
        y = (layer_norm(x_BSTC, self.norm_attn) * scale + shift).to(x_BSTC.dtype)
        y = (y + positions(t, c, like=y)).reshape(b * s, t, c)
        q, k, v = self.qkv(y).reshape(b * s, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v)
        y = self.out(y.transpose(1, 2).reshape(b, s, t, c))
        x_BSTC = x_BSTC + y
        y = functional.gelu(self.mlp_in(layer_norm(x_BSTC, self.norm_mlp)))
        x_BSTC = x_BSTC + self.mlp_out(y)
        return from_time(x_BSTC.permute(0, 3, 2, 1), height, width)


class TDown(nn.Module):
    """Temporal down-sampling: identity-initialised convolution, then every factor-th frame."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.conv = dirac(channels, stride=factor)
        self.factor = factor

    def forward(self, h_FCHW: torch.Tensor, frames: int) -> torch.Tensor:
        """Return (B * frames / factor, C, H, W)."""
        return from_time(self.conv(to_time(h_FCHW, frames)), *h_FCHW.shape[-2:])


class TUp(nn.Module):
    """Temporal up-sampling: each frame `factor` times, then an identity-initialised convolution."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.conv = dirac(channels, stride=1)
        self.factor = factor

    def forward(self, h_FCHW: torch.Tensor, frames: int) -> torch.Tensor:
        """Return (B * frames * factor, C, H, W)."""
        # repeated where channels lie innermost; repeat_interleave would lay them outermost, and that costs two more copies
        rows_FHWC = h_FCHW.permute(0, 2, 3, 1).unsqueeze(1)
        again = rows_FHWC.expand(-1, self.factor, -1, -1, -1).flatten(0, 1).permute(0, 3, 1, 2)
        doubled = to_time(again, frames * self.factor)
        return from_time(self.conv(doubled), *h_FCHW.shape[-2:])


class Motion(nn.Module):
    """All temporal modules of a U-Net: an inflation after each (resnet, attention) pair, resamplers, text.

    attention_blocks at the coarsest level and in the middle; with 0 there are convolutions there too.
    `factors` belong to the spatial resizes from finest to coarsest; 1 leaves the frames alone.
    With known_channels, `known_in` widens the image model's first convolution by columns that start at zero.
    """

    def __init__(
        self,
        unet: Any,
        *,
        factors: Sequence[int],
        embed_dim: int,
        text_dim: int,
        groups: int,
        head_dim: int,
        attention_blocks: int,
        known_channels: int = 0,
    ) -> None:
        super().__init__()

        def stack(channels: int, *, coarsest: bool) -> nn.ModuleList:
            if not coarsest or attention_blocks == 0:
                return nn.ModuleList([ConvInflate(channels, embed_dim=embed_dim, groups=groups)])
            return nn.ModuleList(
                AttnInflate(channels, embed_dim=embed_dim, head_dim=head_dim)
                for _ in range(attention_blocks)
            )

        def stacks(block: Any, *, coarsest: bool) -> nn.ModuleList:
            return nn.ModuleList(stack(r.out_channels, coarsest=coarsest) for r in block.resnets)

        down, up = list(unet.down_blocks), list(unet.up_blocks)
        self.down = nn.ModuleList(stacks(block, coarsest=block is down[-1]) for block in down)
        middle = unet.mid_block.resnets[:1] if unet.mid_block is not None else ()
        self.mid = nn.ModuleList(b for r in middle for b in stack(r.out_channels, coarsest=True))
        self.up = nn.ModuleList(stacks(block, coarsest=block is up[0]) for block in up)
        self.tdown = nn.ModuleList(
            TDown(block.resnets[-1].out_channels, factor) if factor > 1 else nn.Identity()
            for block, factor in zip(down[:-1], factors, strict=True)
        )
        self.tup = nn.ModuleList(
            TUp(block.resnets[-1].out_channels, factor) if factor > 1 else nn.Identity()
            for block, factor in zip(up[:-1], reversed(factors), strict=True)
        )
        self.text_in = TextIn(text_dim, embed_dim)
        # last, so that the other modules' random weights are the same with and without it
        self.known_in = _known_in(unet.conv_in, known_channels) if known_channels else None


def _known_in(conv_in: nn.Conv2d, channels: int) -> nn.Conv2d:
    """Return the columns for known video and mask (Lumiere, section 4.2), all zero at first."""
    columns = nn.Conv2d(
        channels,
        conv_in.out_channels,
        kernel_size=conv_in.kernel_size,  # type: ignore[arg-type]  # a pair
        stride=conv_in.stride,  # type: ignore[arg-type]  # a pair
        padding=conv_in.padding,  # type: ignore[arg-type]  # a pair
        bias=False,
    )
    nn.init.zeros_(columns.weight)
    return columns


def dirac(channels: int, *, stride: int) -> nn.Conv2d:
    """Return a three-tap convolution over frames that at first copies the middle frame."""
    conv = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), stride=(stride, 1))
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # bias=True by default
    with torch.no_grad():
        conv.weight[range(channels), range(channels), 1, 0] = 1.0
    return conv


def positions(frames: int, channels: int, *, like: torch.Tensor) -> torch.Tensor:
    """Return sinusoidal positions (T, C); without them attention could not tell frames apart."""
    half = -(-channels // 2)
    rates = torch.exp(torch.arange(half, device=like.device) * (-math.log(10000.0) / half))
    angles = torch.arange(frames, device=like.device)[:, None] * rates[None, :]
    table = torch.cat((angles.sin(), angles.cos()), dim=1)[:, :channels]
    return table.to(like.dtype)
