"""Image U-Nets of diffusers: read from a checkpoint folder, checked, built, and their parts called alike.

Two block families (diffusers 0.42): Stable Diffusion's (resizing by a convolution, transformers with
cross-attention) and DeepFloyd IF's (resizing by a resnet that hears the time, attention with added keys and
values). diffusers is loaded where a network is built: who only describes one need not wait the seconds that takes.
Letters: B batch, C channels, T frames, H height, W width, N tokens, D width, F = B*T folded.
"""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

RESIZING = frozenset(
    f"{family}{way}"
    for family, ways in {
        "": ("DownBlock2D", "UpBlock2D"),
        "CrossAttn": ("DownBlock2D", "UpBlock2D"),
        "Resnet": ("DownsampleBlock2D", "UpsampleBlock2D"),
        "SimpleCrossAttn": ("DownBlock2D", "UpBlock2D"),
    }.items()
    for way in ways
)
MIDDLE = frozenset({"UNetMidBlock2D", "UNetMidBlock2DCrossAttn", "UNetMidBlock2DSimpleCrossAttn"})

# What an image model may ask for beside (sample, timestep, text, noise level): nothing.
_UNDERSTOOD: dict[str, tuple[Any, ...]] = {
    "addition_embed_type": (None, "text"),
    "encoder_hid_dim_type": (None, "text_proj"),
    "class_embed_type": (None, "timestep"),
    "dual_cross_attention": (False, None),
}

_WEIGHTS = "diffusion_pytorch_model"


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor's arguments, all of them, for the JSON of a config.json.

    ValueError names a block or an input that cannot be inflated, and a key that diffusers does not know.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(UNet2DConditionModel.__init__).parameters.items()
        if name != "self"
    }
    given = {name: v for name, v in config.items() if not name.startswith("_")}
    strange = sorted(name for name in given.keys() - defaults.keys() if given[name] is not None)
    if strange:
        raise ValueError(
            f"the image model's config has {', '.join(strange)}, which this version of diffusers does not "
            f"know: is it the config of a UNet2DConditionModel?"
        )
    found = json.loads(json.dumps(defaults | {n: given[n] for n in given.keys() & defaults.keys()}))
    _check_blocks(
        {*found["down_block_types"], *found["up_block_types"]}, {found["mid_block_type"]} - {None}
    )
    for name, understood in _UNDERSTOOD.items():
        if found[name] not in understood:
            raise ValueError(
                f"cannot inflate an image model with {name} {found[name]!r}: it needs inputs beside the "
                f"sample, the timestep, the text's tokens and a noise level"
            )
    return found


def shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a stunet.Config says of the image model of `arguments`; sample_px where it has one."""
    text = config["cross_attention_dim"]
    dims = {config["encoder_hid_dim"]} - {None} or ({text} if isinstance(text, int) else set(text))
    if len(dims) != 1:
        raise ValueError(f"cross_attention_dim {text}: the levels must hear tokens of one width")
    sides = config["sample_size"]
    sides = {sides} if isinstance(sides, int) else set(sides or ())
    found = {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "widths": tuple(config["block_out_channels"]),
        "blocks_per_level": max(layers(config)),
        "text_dim": dims.pop(),
        "noise_level": config["class_embed_type"] == "timestep" or bool(config["num_class_embeds"]),
    }
    return found | ({"sample_px": sides.pop()} if len(sides) == 1 else {})


def layers(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the resnets of the encoder's levels, finest first; the decoder's have one more each."""
    count, levels = config["layers_per_block"], len(config["block_out_channels"])
    return (count,) * levels if isinstance(count, int) else tuple(count)


def called() -> tuple[type[nn.Module], ...]:
    """Return what a pass calls as a whole: resizes and pairs are made of these."""
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    return ResnetBlock2D, Transformer2DModel


def build(config: Mapping[str, Any], *, seed: int) -> "UNet2DConditionModel":
    """Return the image model with random weights that depend on `seed` only."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel(**config)


def read(folder: Path, *, variant: str = "") -> tuple[str, dict[str, torch.Tensor]]:
    """Return config.json's text and the tensors of a pipeline's folder or of its `unet` folder.

    safetensors only, whole or in shards; nothing is unpickled or downloaded. `variant` is the middle of a
    file's name, as fp16. FileNotFoundError or ValueError says what is missing and what to do.
    """
    inner = folder / "unet" if (folder / "unet" / "config.json").is_file() else folder
    path = inner / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no image model in {folder}: neither unet/config.json nor config.json"
        )
    text = path.read_text(encoding="utf-8")
    try:
        kind = json.loads(text).get("_class_name", "UNet2DConditionModel")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no JSON object: {error}") from error
    if kind != "UNet2DConditionModel":
        raise ValueError(f"{path} describes a {kind}: only a UNet2DConditionModel can be inflated")
    stem = f"{_WEIGHTS}.{variant}" if variant else _WEIGHTS
    whole = inner / f"{stem}.safetensors"
    if whole.is_file():
        return text, _tensors(whole)
    # diffusers writes the variant behind "index" in a sharded checkpoint: x.safetensors.index.fp16.json
    for name in (f"{stem}.safetensors.index.json", f"{_WEIGHTS}.safetensors.index.{variant}.json"):
        if (inner / name).is_file():
            return text, _shards(inner / name)
    raise FileNotFoundError(_what_to_do(inner, whole.name))


def load(config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> "UNet2DConditionModel":
    """Return the image model with these weights in fp32, made once; ValueError when they do not fit."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    # Copied: what was read may be pages of a file, and is the caller's.
    own = {name: torch.clone(tensor.float()) for name, tensor in state.items()}
    try:
        unet.load_state_dict(own, strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the image model's weights do not fit its config: {error}") from error
    return unet


def check(unet: "UNet2DConditionModel") -> None:
    """Raise ValueError unless every block is of the two families."""
    resizing = {type(block).__name__ for block in [*unet.down_blocks, *unet.up_blocks]}
    _check_blocks(resizing, set() if unet.mid_block is None else {type(unet.mid_block).__name__})


def embed(
    unet: Any,
    x: torch.Tensor,
    timestep_B: torch.Tensor,
    text_BND: torch.Tensor,
    level_B: torch.Tensor | None,
) -> torch.Tensor:
    """Return e_BD = time + noise level + pooled text, as the image model computes it.

    level_B in [0, 1] is the image model's own noise level, or class of noise, on the scale of its
    timesteps: 1 stands for 1000, or for the last class.
    """
    e = unet.time_embedding(unet.get_time_embed(sample=x, timestep=timestep_B))
    if level_B is not None:
        labels = 1000.0 * level_B
        if unet.config.class_embed_type is None:
            last = unet.class_embedding.num_embeddings - 1
            labels = ((last + 1) * level_B.float()).round().long().clamp(0, last)
        level = unet.get_class_embed(sample=x, class_labels=labels)
        e = torch.cat((e, level), dim=-1) if unet.config.class_embeddings_concat else e + level
    pooled = unet.get_aug_embed(e, text_BND, added_cond_kwargs={})
    e = e if pooled is None else e + pooled
    return e if unet.time_embed_act is None else unet.time_embed_act(e)


def embed_dim(unet: Any) -> int:
    """Return the width D of e_BD."""
    width = unet.time_embedding.linear_2.out_features
    return 2 * width if unet.config.class_embeddings_concat else width


def attend(attention: Any, h_FCHW: torch.Tensor, text_FND: torch.Tensor) -> torch.Tensor:
    """Run one spatial attention of either family: a Transformer2DModel has blocks, an Attention has none."""
    if hasattr(attention, "transformer_blocks"):
        return attention(h_FCHW, encoder_hidden_states=text_FND, return_dict=False)[0]
    return attention(h_FCHW, encoder_hidden_states=text_FND)


def resize(layer: nn.Module, h_FCHW: torch.Tensor, e_FD: torch.Tensor) -> torch.Tensor:
    """Run one spatial resize of either family: a convolution, or a resnet that hears e."""
    return layer(h_FCHW, e_FD) if hasattr(layer, "time_emb_proj") else layer(h_FCHW)


def _check_blocks(resizing: set[str], middle: set[str]) -> None:
    strange = sorted((resizing - RESIZING) | (middle - MIDDLE))
    if strange:
        known = ", ".join(sorted(RESIZING | MIDDLE))
        raise ValueError(f"cannot inflate {', '.join(strange)}: known are {known}")


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}; copy the file again") from error


def _shards(index: Path) -> dict[str, torch.Tensor]:
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of shards: {error!r}") from error
    state: dict[str, torch.Tensor] = {}
    for name in files:
        path = index.parent / name
        if Path(name).name != name or path.suffix != ".safetensors" or not path.is_file():
            raise ValueError(f"{index} names {name!r}, which is no .safetensors file beside it")
        held = _tensors(path)
        missing = sorted(key for key, file in places.items() if file == name and key not in held)
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing[:3])}: copy the file again")
        state |= {key: held[key] for key, file in places.items() if file == name}
    return state


def _what_to_do(folder: Path, wanted: str) -> str:
    """Say which weights the folder has instead."""
    others = sorted(path.name for path in folder.glob(f"{_WEIGHTS}.*.safetensors"))
    pickles = sorted(path.name for path in folder.glob(f"{_WEIGHTS}*.bin"))
    if others:
        return f"no {wanted} in {folder}: it has {', '.join(others)}; name one by variant"
    if pickles:
        return (
            f"{folder} has its weights as a pickle ({pickles[0]}), which is not read: make {wanted} of it "
            f"with diffusers' save_pretrained where you trust the file"
        )
    return f"no {wanted} in {folder}: download the model's safetensors"
