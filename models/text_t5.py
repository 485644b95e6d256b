"""Text tokens of a T5 encoder from a local folder, as DeepFloyd-IF makes them (transformers' only home).

Layout of a diffusers pipeline: text_encoder/ (config.json and safetensors, whole or in shards) and
tokenizer/ (tokenizer.json or spiece.model). Texts are stripped and lowered, cut or padded to a
fixed length, padding masked in the encoder. Never fetched, never unpickled.
Letters: B batch, N tokens, D width of tokens.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from transformers.models.t5.modeling_t5 import T5EncoderModel
from transformers.models.t5.tokenization_t5 import T5Tokenizer
from transformers.utils import logging

from models import clip_weights, texts

_VERSION = "t5-text/v1"  # raise it when the same files would give other tokens
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True, slots=True)
class T5Text:
    """Texts to the last hidden states of the encoder in `folder`; the model is loaded when used.

    The files must not change while a process runs: a model is loaded once.
    `precision` None is fp32 on CPUs and bf16 on GPUs; fp16 overflows in T5 and is not offered.
    """

    folder: Path
    length: int = 77
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] | None = None

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"length {self.length} must be at least 2 tokens: a word and the end")
        if self.precision not in {*_DTYPES, None}:
            raise ValueError(f"precision {self.precision!r} of T5 must be fp32 or bf16")

    @property
    def dim(self) -> int:
        """Width of a token."""
        return int(_json(self.folder / "text_encoder" / "config.json")["d_model"])

    def digest(self) -> str:
        """Return the id of all files that decide the tokens; each is read once a process."""
        told = {f"{path.parent.name}/{path.name}": _sha256(path) for path in _files(self.folder)}
        whole = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        return f"{_VERSION}/{whole}/length={self.length}"

    def settings(self) -> dict[str, Any]:
        """Return what conditioning.text_conditioner makes this of, as JSON."""
        return {"kind": "t5", "folder": str(self.folder), "length": self.length}

    def __call__(self, texts_: Sequence[str]) -> torch.Tensor:
        """Return tokens_BND, fp32; longer texts are cut, "" is the end token and padding."""
        model, tokenizer = _loaded(self.folder, self.device, _dtype(self))

        def encode(some: list[str]) -> torch.Tensor:
            ids = tokenizer(
                [text.lower().strip() for text in some],
                padding="max_length",
                max_length=self.length,
                truncation=True,
                return_tensors="pt",
            ).to(self.device)
            return model(input_ids=ids.input_ids, attention_mask=ids.attention_mask)[0]

        shape = (self.length, self.dim)
        return texts.encoded(texts_, encode, device=self.device, shape=shape)


def _dtype(text: T5Text) -> torch.dtype:
    default = "fp32" if torch.device(text.device).type == "cpu" else "bf16"
    return _DTYPES[text.precision or default]


@lru_cache(maxsize=2)
def _loaded(folder: Path, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    _files(folder)
    place = folder / "text_encoder"
    load: Any = T5EncoderModel.from_pretrained  # its annotation forgets the loading report
    with _quiet():
        try:
            model, told = load(
                place,
                local_files_only=True,
                use_safetensors=True,
                dtype=dtype,
                output_loading_info=True,
            )
        except clip_weights.UNREADABLE as error:
            raise ValueError(f"{place}: {error}: copy the folder anew") from error
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{place} does not fit its config.json: {reason}") from error
    # transformers would draw them at random and go on
    if lacking := sorted(told["missing_keys"]):
        raise ValueError(f"{place} lacks {len(lacking)} tensors of its config.json: {lacking[:3]}")
    return model.eval().requires_grad_(requires_grad=False).to(device), tokenizer(folder)


def tokenizer(folder: Path) -> Any:
    """Return the tokenizer in a pipeline's folder, read without the sentencepiece package."""
    place = folder / "tokenizer"
    if (place / "tokenizer.json").is_file():
        return T5Tokenizer.from_pretrained(place, local_files_only=True)
    # transformers reads this with the sentencepiece package only; it is a protobuf message
    from transformers.utils import sentencepiece_model_pb2_new as spm  # noqa: PLC0415

    proto: Any = spm.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]  made at run time
    proto.ParseFromString((place / "spiece.model").read_bytes())
    return T5Tokenizer(
        vocab=[(piece.piece, piece.score) for piece in proto.pieces],
        _spm_precompiled_charsmap=proto.normalizer_spec.precompiled_charsmap or None,
    )


def _files(folder: Path) -> list[Path]:
    """Return every file that decides the tokens; FileNotFoundError names what is missing."""
    encoder, tokenizer = folder / "text_encoder", folder / "tokenizer"
    found = [encoder / "config.json"]
    if (encoder / _INDEX).is_file():
        shards = sorted(set(_json(encoder / _INDEX)["weight_map"].values()))
        found += [encoder / _INDEX, *(encoder / name for name in shards)]
    else:
        found.append(encoder / _WHOLE)
    vocabulary = "tokenizer.json" if (tokenizer / "tokenizer.json").is_file() else "spiece.model"
    found.append(tokenizer / vocabulary)
    if vocabulary == "tokenizer.json":
        extra = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
        found += [tokenizer / name for name in extra if (tokenizer / name).is_file()]
    for path in found:
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: {_next_step(path)}")
    return found


def _next_step(path: Path) -> str:
    pickled = sorted(path.parent.glob("*.bin")) if path.suffix == ".safetensors" else []
    if pickled:
        return f"turn {pickled[0].name} into safetensors (save_pretrained does)"
    return "copy the pipeline's text_encoder/ and tokenizer/ there"


def _sha256(path: Path) -> str:
    if path.suffix == ".safetensors":
        return clip_weights.verified(path, "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}: copy the pipeline's text_encoder/ and tokenizer/ there"
        )
    return json.loads(path.read_text("utf-8"))


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars in a library; the program's own choice comes back."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # missing tensors are an error of ours, not a warning
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
