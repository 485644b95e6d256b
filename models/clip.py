"""open_clip (the only one that imports it): a model by its weights, ready to embed and caption.

Weights come from a file or the local cache; nothing is ever fetched. fp32 on CPUs; bf16 on GPUs, or
fp16 where they have no bf16.
"""

import difflib
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import open_clip
import torch
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from models.clip_aesthetic import AestheticHead
from models.clip_generate import Beams
from models.clip_pixels import Pixels
from models.clip_towers import Clip
from models.clip_weights import UNREADABLE, Weights, no_tensors, verified

__all__ = ["AestheticHead", "Beams", "Clip", "Weights", "identity", "load"]

Precision = Literal["fp32", "bf16", "fp16"]
_GPU_BATCH = 64
_VERSION = 1  # raise it when the same weights would give other numbers


def load(
    weights: Weights,
    *,
    device: str = "cpu",
    precision: Precision | None = None,
    cache_dir: Path | None = None,
) -> Clip:
    """Return a model with its weights on a device; `cache_dir` is the cache of tags, else the usual.

    Raises FileNotFoundError naming the file and the command that fetches it, or ValueError when
    the name, the hash, or the layout of the file is wrong; either within seconds, network or not.
    """
    shape = _shape(weights)
    file = _file(weights, cache_dir)
    found = verified(file, weights.sha256)
    precision = precision or _precision(device)
    with _offline(weights.model, shape.config):
        try:
            model = open_clip.create_model(
                shape.name,
                str(file.absolute()),
                precision=precision,
                device=device,
                force_preprocess_cfg=dict(shape.preprocess),
                weights_only=True,
            )
        except UNREADABLE as error:
            raise ValueError(no_tensors(file)) from error
        except (RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{file} does not fit {weights.model}: {reason}") from error
        tokenizer = open_clip.get_tokenizer(shape.name)
    return Clip(
        model=model.eval().requires_grad_(requires_grad=False),
        tokenizer=tokenizer,
        pixels=Pixels.from_config(open_clip.get_model_preprocess_cfg(model)),
        name=weights.model,
        digest=_digest(shape, found),
        device=torch.device(device),
        dtype=open_clip.get_input_dtype(precision) or torch.float32,
        batch=1 if torch.device(device).type == "cpu" else _GPU_BATCH,
    )


def identity(weights: Weights, *, cache_dir: Path | None = None) -> str:
    """Return the digest that `load` would give, without building the model.

    A file that was given with its sha256 is taken at its word. Raises what `load` raises.
    """
    shape = _shape(weights)
    if weights.path is not None:
        return _digest(shape, weights.sha256)
    return _digest(shape, verified(_file(weights, cache_dir), weights.sha256))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shape:
    """An architecture under the name that open_clip knows it by, and how it prepares images."""

    name: str
    config: Mapping[str, Any]
    preprocess: Mapping[str, Any]


def _shape(weights: Weights) -> _Shape:
    if weights.model.endswith(".json"):
        if weights.path is None:
            raise ValueError(
                f"{weights.model} is nobody's tag: give path and sha256 of its weights"
            )
        return _own_shape(Path(weights.model))
    if weights.model not in open_clip.list_models():
        near = difflib.get_close_matches(weights.model, open_clip.list_models(), n=3, cutoff=0.4)
        raise ValueError(
            f"open_clip has no model {weights.model!r}: try {', '.join(near) or 'a config (.json)'}"
        )
    config = open_clip.get_model_config(weights.model) or {}
    return _Shape(name=weights.model, config=config, preprocess=_preprocess(weights, config))


def _own_shape(path: Path) -> _Shape:
    """A lab's own config, registered under a name of its content: two may share a file name.

    open_clip takes the tokenizer of a config that names none from the model's name; here it is the
    plain one then, so that what a config means does not depend on how its file is called.
    """
    try:
        whole = json.loads(path.read_text("utf-8"))
        config = whole.get("model_cfg", whole)
        missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(config)
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is no open_clip model config: {error}") from error
    if missing:
        raise ValueError(f"{path} is no open_clip model config: no {', '.join(sorted(missing))}")
    name = f"config-{_sha256(config)[:16]}"
    if name not in open_clip.list_models():
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / f"{name}.json"
            copy.write_text(json.dumps(config), "utf-8")
            open_clip.add_model_config(copy)
    preprocess = merge_preprocess_dict(PreprocessCfg(), whole.get("preprocess_cfg", {}))
    return _Shape(name=name, config=config, preprocess=_sizeless(preprocess))


def _preprocess(weights: Weights, config: Mapping[str, Any]) -> Mapping[str, Any]:
    tags = list_pretrained_tags_by_model(weights.model)
    if weights.tag:
        chosen = get_pretrained_cfg(weights.model, weights.tag)
        if not chosen:
            raise ValueError(f"{weights.model} has no tag {weights.tag!r}: {', '.join(tags)}")
        if chosen.get("quick_gelu", False) != config.get("quick_gelu", False):
            name = weights.model.removesuffix("-quickgelu")
            right = f"{name}-quickgelu" if chosen.get("quick_gelu") else name
            raise ValueError(f"{weights.tag} was trained with the activation of {right}: name that")
        return _sizeless(merge_preprocess_dict(PreprocessCfg(), chosen))
    ways = [
        _sizeless(merge_preprocess_dict(PreprocessCfg(), get_pretrained_cfg(weights.model, tag)))
        for tag in tags
    ]
    if any(way != ways[0] for way in ways):
        raise ValueError(
            f"weights of {weights.model} differ in how they prepare images: "
            f"name the tag that {weights.path} is or was trained like: {', '.join(tags)}"
        )
    return ways[0] if ways else _sizeless(merge_preprocess_dict(PreprocessCfg(), {}))


def _sizeless(preprocess: dict[str, Any]) -> dict[str, Any]:
    """The size is the tower's own; a fixed one would be silently wrong for most."""
    return {key: value for key, value in sorted(preprocess.items()) if key != "size"}


def _file(weights: Weights, cache_dir: Path | None) -> Path:
    """Return the file of the weights, looked up in the local cache for a tag; never the network."""
    if weights.path is not None:
        return weights.path
    chosen = get_pretrained_cfg(weights.model, weights.tag)
    repository, _, name = chosen.get("hf_hub", "").rpartition("/")
    names = [name] if name else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    for one in names if repository else ():
        found = huggingface_hub.try_to_load_from_cache(repository, one, cache_dir=cache_dir)
        if isinstance(found, str):
            return Path(found)
    if repository:
        wanted = name or '--include "open_clip*"'
        raise FileNotFoundError(
            f"no {names[0]} of {weights.model} ({weights.tag}) in the local cache: run "
            f"`hf download {repository} {wanted}` where there is a network, or give path and sha256"
        )
    url = chosen.get("url", "")
    kept = (cache_dir or Path.home() / ".cache" / "clip") / url.rpartition("/")[2]
    if not kept.is_file():
        raise FileNotFoundError(
            f"no {kept}: run `curl -L -o {kept} {url}` where there is a network, "
            "or give path and sha256"
        )
    return kept


@contextmanager
def _offline(model: str, config: Mapping[str, Any]) -> Iterator[None]:
    """Keep every library off the network: without one they retry for most of a minute.

    open_clip's log calls also give the root logger a handler; the program's own stay as they were.
    """
    handlers = list(logging.getLogger().handlers)
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    except OSError as error:
        text = config["text_cfg"]
        names = {text.get(key) for key in ("hf_model_name", "hf_tokenizer_name")} - {None, ""}
        if not names:
            raise
        commands = ", ".join(f"`hf download {name}`" for name in sorted(names))
        raise FileNotFoundError(
            f"the text side of {model} is not in the local cache: run {commands} "
            "where there is a network"
        ) from error
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before
        logging.getLogger().handlers[:] = handlers


def _precision(device: str) -> Precision:
    if not device.startswith("cuda"):
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def _digest(shape: _Shape, sha256: str) -> str:
    whole = {"config": shape.config, "preprocess": shape.preprocess, "weights": sha256}
    return _sha256(whole | {"version": _VERSION})


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
