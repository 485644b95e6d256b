"""What a STUNet costs: temporal parameters by closed forms, FLOPs of a forward pass counted without memory.

For c channels a ConvInflate has 13 c^2 weights (9 spatial, 3 temporal, 1 output), an AttnInflate 12 c^2 (4
attention, 8 perceptron), a temporal resampler 3 c^2; scale and shift from the D-wide embedding (FiLM) add 2 c D.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from models import image_unet, stunet
from models.temporal import TextIn


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Counts of the temporal modules' parameters; `rest` are biases and norms, FiLM's biases in `film`."""

    conv_inflate: int
    attn_inflate: int
    resample: int
    known: int
    text: int
    film: int
    rest: int

    @property
    def weights(self) -> int:
        """What the closed forms of the inflations and resamplers give, without FiLM, biases and norms."""
        return self.conv_inflate + self.attn_inflate + self.resample

    @property
    def total(self) -> int:
        """All parameters of the motion state."""
        return self.weights + self.known + self.text + self.film + self.rest


def temporal_parameters(config: stunet.Config) -> Parameters:
    """Return the counts of the motion state of a Config, by closed forms; no network is built."""
    image = image_unet.arguments(config.image_config)
    convs, attns = _blocks(config, image)
    resamplers = [
        width
        for fine, coarse, factor in zip(
            config.widths[:-1], config.widths[1:], config.temporal_factor, strict=True
        )
        if factor > 1
        for width in (fine, coarse)
    ]
    embed = _embed_dim(image)
    known = (config.video_channels + 1) * config.widths[0] * image["conv_in_kernel"] ** 2
    return Parameters(
        conv_inflate=sum(13 * c * c for c in convs),
        attn_inflate=sum(12 * c * c for c in attns),
        resample=sum(3 * c * c for c in resamplers),
        known=known if config.known else 0,
        text=_text(config.text_dim, embed),
        film=sum(2 * c * (embed + 1) for c in convs + attns),
        # two biases and a norm; qkv, output and two perceptron biases and two norms; one bias
        rest=4 * sum(convs) + 13 * sum(attns) + sum(resamplers),
    )


def flops(
    config: stunet.Config,
    *,
    frames: int,
    height: int,
    width: int,
    batch: int = 1,
    tokens: int = 77,
    temporal: bool = True,
    temporal_resampling: bool = True,
) -> int:
    """Return the FLOPs (2 a multiply-add) of a forward pass: convolutions, matrix products, attention.

    height and width are those of the network's input (latents, for a latent model). Without
    temporal_resampling the same inflations stand at every level, all at the full number of frames;
    temporal=False is the bare image model on each frame.
    """
    if not temporal_resampling:
        config = replace(config, temporal_factor=(1,) * len(config.temporal_factor))
    with torch.device("meta"):
        model = stunet.build(config, seed=0)
        x_BCTHW = torch.empty(batch, config.in_channels, frames, height, width)
        timestep_B = torch.empty(batch, dtype=torch.long)
        text_BND = torch.empty(batch, tokens, config.text_dim)
        level_B = torch.empty(batch) if config.noise_level else None
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(x_BCTHW, timestep_B, text_BND, level_B=level_B, temporal=temporal)
    return counter.get_total_flops()


def training_flops(
    config: stunet.Config,
    role: stunet.Role,
    *,
    frames: int,
    height: int,
    width: int,
    tokens: int = 77,
) -> int:
    """Return the FLOPs of learning from one clip, or one window of it: forward, and back to what the role trains.

    `frames` are images for a base. Nothing is counted twice, whatever is computed twice to save memory.
    """
    with torch.device("meta"):
        model = stunet.build(replace(config, checkpointing=False), seed=0)
        stunet.trainable(model, role)
        x_BCTHW = torch.empty(1, config.in_channels, frames, height, width)
        level_B = torch.empty(1) if config.noise_level else None
        text_BND = torch.empty(1, tokens, config.text_dim)
        with FlopCounterMode(display=False) as counter:
            said = model(
                x_BCTHW,
                torch.empty(1, dtype=torch.long),
                text_BND,
                level_B=level_B,
                temporal=role != "base",
            )
            said.sum().backward()
    return counter.get_total_flops()


def _text(dim: int, embed: int) -> int:
    """Return the parameters of TextIn: two layers, a norm before each, and the tokens' weights."""
    return 2 * dim + (dim + 1) * embed + embed * TextIn.HEADS + 2 * embed + (embed + 1) * embed


def _blocks(config: stunet.Config, image: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Return the channels of every ConvInflate and of every AttnInflate."""
    convs, attns = [], []
    depths = image_unet.layers(image)
    for level, (channels, depth) in enumerate(zip(config.widths, depths, strict=True)):
        coarsest = level == len(config.widths) - 1
        # encoder, decoder, and at the coarsest level the middle block
        places = depth + (depth + 1) + (1 if coarsest and image["mid_block_type"] else 0)
        if coarsest and config.temporal_attention and config.attention_blocks:
            attns += [channels] * (places * config.attention_blocks)
        else:
            convs += [channels] * places
    return convs, attns


def _embed_dim(image: dict[str, Any]) -> int:
    ratio = 2 if image["time_embedding_type"] == "fourier" else 4
    width = image["time_embedding_dim"] or ratio * image["block_out_channels"][0]
    return 2 * width if image["class_embeddings_concat"] else width
