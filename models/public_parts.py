"""The parts of a public pipeline, each a folder: what kind it is, which of its files count, how it is built.

Kinds: "network" (diffusers) and "text" (transformers) have weights, as safetensors whole or in shards;
"settings" are schedulers and guiders, one JSON file; "words" are tokenizers and processors. Nothing is
unpickled, fetched or run from the folder. transformers is reached by the names in model_index.json
(models/text_t5.py is its home).
"""

import importlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin, no_init_weights
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from models import clip_weights, text_t5

AGAIN = "save or download the whole pipeline again"
_NO_CODE = "only classes of diffusers and transformers are built; use a pipeline without it"
_STEMS = {"network": "diffusion_pytorch_model", "text": "model"}
_PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of a pipeline: its folder, its class and what kind of thing it is."""

    folder: Path
    made: Any
    kind: str

    @property
    def name(self) -> str:
        """Its name in the pipeline."""
        return self.folder.name


def read(index: Path, name: str, told: Sequence[Any]) -> Part:
    """Return the part that model_index.json names [library, class]; ValueError for what is not built."""
    if len(told) != 2 or not all(isinstance(word, str) for word in told):
        raise ValueError(f"{index}: {name} is no [library, class]: {AGAIN}")
    library, title = told
    where = library if library in {"diffusers", "transformers"} else None
    if where is None and library.isidentifier() and hasattr(diffusers.pipelines, library):
        where = f"diffusers.pipelines.{library}"  # a part that lives beside its pipeline
    made = getattr(importlib.import_module(where), title, None) if where else None
    kind = _kind(made)
    if kind is None:
        raise ValueError(f"{index}: {name} is a {library}.{title}, which is not run: {_NO_CODE}")
    folder = index.parent / name
    if not folder.is_dir():
        raise ValueError(f"no {folder}, a part of the pipeline: {AGAIN}")
    return Part(folder=folder, made=made, kind=kind)


def _kind(made: Any) -> str | None:
    if not isinstance(made, type):
        return None
    if issubclass(made, ModelMixin):
        return "network"
    if issubclass(made, ConfigMixin):
        return None if issubclass(made, DiffusionPipeline) else "settings"
    transformers: Any = importlib.import_module("transformers")
    if issubclass(made, transformers.PreTrainedModel):
        return "text"
    words = ("PreTrainedTokenizerBase", "ProcessorMixin", "ImageProcessingMixin")
    return "words" if issubclass(made, tuple(getattr(transformers, n) for n in words)) else None


def files(part: Part) -> list[Path]:
    """Return the files of a part that decide pixels, all there and whole; ValueError says what to do."""
    folder = part.folder
    if part.kind == "words":
        found = sorted(path for path in folder.iterdir() if path.is_file())
        found = [p for p in found if p.suffix not in {".md", ""}]
    else:
        found = [folder / (part.made.config_name if part.kind != "text" else "config.json")]
    if not found or not all(path.is_file() for path in found):
        raise ValueError(f"no {found[0] if found else folder / '*'}: {AGAIN}")
    for path in found:
        if path.suffix in _PICKLES:
            raise ValueError(f"{path} is a pickle, which is not read: save the part without it")
        if path.suffix == ".json" and part.kind != "settings":
            _no_code(path)
    return found if part.kind not in _STEMS else [*found, *weights(part)[0]]


def _no_code(path: Path) -> None:
    if "auto_map" in as_json(path):
        raise ValueError(f"{path} wants code of its own (auto_map), which is not run: {_NO_CODE}")


def weights(part: Part) -> tuple[list[Path], list[Path]]:
    """Return the files of a part's weights, index first, and those among them that hold tensors."""
    stem = _STEMS[part.kind]
    whole, index = (part.folder / f"{stem}.safetensors{end}" for end in ("", ".index.json"))
    if whole.is_file():
        found, shards = [whole], [whole]
    elif index.is_file():
        names = sorted(set(as_json(index).get("weight_map", {}).values()))
        shards = [part.folder / str(name) for name in names]
        bad = [p for p in shards if p.parent != part.folder or p.suffix != ".safetensors"]
        if bad or not shards or not all(path.is_file() for path in shards):
            raise ValueError(f"{index} names files that are not beside it: {AGAIN}")
        found = [index, *shards]
    else:
        raise ValueError(_no_weights(part.folder, whole.name))
    for path in shards:
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}): copy the file again") from error
    return found, shards


def _no_weights(folder: Path, wanted: str) -> str:
    """Say which weights the folder has instead."""
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if others:
        return f"no {wanted} in {folder}: it has {', '.join(others)}; save the pipeline without a variant"
    if pickles:
        return (
            f"{folder} has its weights as a pickle ({pickles[0]}), which is not read: save the pipeline "
            "with safe_serialization where you trust the file"
        )
    return f"no {wanted} in {folder}: {AGAIN}"


def blank(part: Part) -> Any:
    """Return a network of a part's shape that holds no memory."""
    with torch.device("meta"):
        return _built(part)


def load(part: Part, dtype: torch.dtype) -> Any:
    """Return a part, networks in evaluation and in `dtype`; ValueError when its files do not fit.

    Does not touch torch's generators. What the library keeps in fp32 for its precision stays there.
    """
    with quiet(), torch.random.fork_rng(devices=[]):
        try:
            return _LOAD[part.kind](part, dtype)
        except (*clip_weights.UNREADABLE, OSError, RuntimeError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{part.folder} cannot be built: {reason}; {AGAIN}") from error


def _built(part: Part) -> Any:
    return part.made.from_config(as_json(part.folder / "config.json"))


def _network(part: Part, dtype: torch.dtype) -> Any:
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        # Unset memory is not touched: the weights take its place.
        with no_init_weights():
            network = _built(part)
    finally:
        torch.set_default_dtype(usual)
    state: dict[str, torch.Tensor] = {}
    for path in weights(part)[1]:
        state |= load_file(path)
    # Old files have old names of the attention's weights; the library's own loading renames them so.
    network._fix_state_dict_keys_on_load(state)  # noqa: SLF001
    exact = set(part.made._keep_in_fp32_modules or ())  # noqa: SLF001
    own = {
        name: tensor.to(torch.float32 if exact & {*name.split(".")} else dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in state.items()
    }
    network.load_state_dict(own, strict=True, assign=True)
    return network.eval().requires_grad_(requires_grad=False)


def _text(part: Part, dtype: torch.dtype) -> Any:
    model, told = part.made.from_pretrained(
        part.folder,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=dtype,
        output_loading_info=True,
    )
    # transformers would draw them at random and go on
    if lacking := sorted(told["missing_keys"]):
        raise ValueError(f"{part.folder} lacks {len(lacking)} tensors of its config.json: {AGAIN}")
    model.forward = _by_row(model.forward)
    return model.eval().requires_grad_(requires_grad=False)


def _by_row(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a text encoder's forward that takes each text of a batch by itself.

    transformers leaves the mask out where no text of the batch is padded, which is another kernel: the
    length of one text would show in the bits of another.
    """

    @wraps(forward)
    def one_by_one(*args: Any, **told: Any) -> Any:
        rows = len(args[0] if args else told["input_ids"])

        def row(value: Any, i: int) -> Any:
            mine = isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == rows
            return value[i : i + 1] if mine else value

        return _joined(
            [
                forward(*(row(v, i) for v in args), **{n: row(v, i) for n, v in told.items()})
                for i in range(rows)
            ]
        )

    return one_by_one


def _joined(parts: Sequence[Any]) -> Any:
    """Return what the rows gave as a batch would: tensors in a row; a cache, which nobody reads, as None."""
    first = parts[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(parts))
    if isinstance(first, Mapping):
        return type(first)(**{name: _joined([part[name] for part in parts]) for name in first})
    if isinstance(first, tuple):
        return tuple(_joined(column) for column in zip(*parts, strict=True))
    return None


def _settings(part: Part, _: torch.dtype) -> Any:
    return part.made.from_config(as_json(part.folder / part.made.config_name))


def _words(part: Part, _: torch.dtype) -> Any:
    pieces = (part.folder / "spiece.model").is_file()
    if pieces and not (part.folder / "tokenizer.json").is_file() and part.name == "tokenizer":
        # T5's, as most public pipelines have it; transformers alone cannot read it.
        return text_t5.tokenizer(part.folder.parent)
    return part.made.from_pretrained(part.folder, local_files_only=True, trust_remote_code=False)


_LOAD = {"network": _network, "text": _text, "settings": _settings, "words": _words}


def as_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; ValueError says which file is none."""
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a JSON object ({error}): {AGAIN}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No bars, no warnings and no network while a library of others runs; the program's choices come back."""
    hub: Any = importlib.import_module("huggingface_hub.constants")
    logs = [
        importlib.import_module(f"{name}.utils.logging") for name in ("diffusers", "transformers")
    ]
    before = (
        hub.HF_HUB_OFFLINE,
        [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs],
    )
    hub.HF_HUB_OFFLINE = True
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hub.HF_HUB_OFFLINE = before[0]
        for log, (level, shown) in zip(logs, before[1], strict=True):
            log.set_verbosity(level)
            if shown:
                log.enable_progress_bar()
