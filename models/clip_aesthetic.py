"""LAION's aesthetic heads: one number for a CLIP image embedding, about 1 (poor) to 10 (good).

Two published layouts are read: one layer (`weight`, `bias`) and the "improved" predictor
(`layers.N.weight`, `layers.N.bias`), whose layers have dropout and no activation between them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from models.clip_weights import UNREADABLE, no_tensors, verified


@dataclass(frozen=True, kw_only=True, slots=True)
class AestheticHead:
    """Affine layers in order, fp64; `digest` is the sha256 of the file."""

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    digest: str

    @classmethod
    def load(cls, path: Path, sha256: str) -> "AestheticHead":
        """Read a .safetensors, .pt or .pth file of this sha256.

        Raises FileNotFoundError, or ValueError for another content or layout.
        """
        if not sha256:
            raise ValueError(f"the aesthetic head needs sha256; `sha256sum {path}`")
        found = verified(path, sha256)
        try:
            return cls(layers=_layers(_read(path)), digest=found)
        except UNREADABLE as error:
            raise ValueError(no_tensors(path)) from error
        except ValueError as error:
            raise ValueError(f"{path} is no aesthetic head: {error}") from error

    @property
    def dim(self) -> int:
        """Width of the embeddings that it scores."""
        return self.layers[0][0].shape[1]

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """Return float64 scores (N,) of L2-normalised image embeddings (N, D)."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise ValueError(
                f"this head scores embeddings (N, {self.dim}), not {embeddings.shape}: "
                "name the model that it was made for"
            )
        scores = np.empty(len(embeddings))
        # one by one: the last digit must not depend on which clips came together
        for row, embedding in enumerate(embeddings.astype(np.float64)):
            for weight, bias in self.layers:
                embedding = weight @ embedding + bias  # noqa: PLW2901
            scores[row] = embedding[0]
        return scores


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _layers(state: Mapping[str, torch.Tensor]) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    if not isinstance(state, Mapping) or not state:
        raise ValueError("it holds no tensors by name")
    stems = sorted({name.rpartition(".")[0] for name in state}, key=_place)
    wanted = {f"{stem}.{part}".lstrip(".") for stem in stems for part in ("weight", "bias")}
    if set(state) != wanted:
        raise ValueError(f"its tensors are {sorted(state)}")
    layers = []
    width = None
    for stem in stems:
        weight, bias = (
            state[f"{stem}.{part}".lstrip(".")].double().numpy() for part in ("weight", "bias")
        )
        if (
            weight.ndim != 2
            or bias.shape != weight.shape[:1]
            or width not in {None, weight.shape[1]}
        ):
            raise ValueError(f"layer {stem or 'weight'} of {weight.shape} does not follow")
        width = len(bias)
        layers.append((weight, bias))
    if width != 1:
        raise ValueError(f"its last layer gives {width} numbers, not one")
    return tuple(layers)


def _place(stem: str) -> int:
    kind, _, number = stem.rpartition(".")
    if stem and (kind != "layers" or not number.isdigit()):
        raise ValueError(f"it has tensors of {stem!r}")
    return int(number or 0)
