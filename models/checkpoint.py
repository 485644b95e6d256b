"""Checkpoints: safetensors files and one JSON that names their hashes, the role and the parents.

No pickle anywhere, the optimizer's state included. The JSON is written last, so a folder with it
is whole; moving a finished folder to its place atomically is the caller's business. Every load
verifies the hashes.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

FORMAT = "kinoray-checkpoint/1"
_INDEX = "checkpoint.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint in memory; `tensors` holds groups such as params, ema and optimizer."""

    role: str
    spec: dict[str, Any]
    parents: dict[str, str]
    meta: dict[str, Any]
    tensors: dict[str, dict[str, torch.Tensor]]
    digest: str


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """Return sha256 over sorted names, types, shapes and bytes: equal weights, equal digest."""
    whole = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        whole.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        whole.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def save(
    folder: Path,
    *,
    role: str,
    spec: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    parents: Mapping[str, str],
    meta: Mapping[str, Any],
) -> str:
    """Write a checkpoint into a folder without one and return its digest.

    `spec`, `parents` (role to digest) and `meta` must be JSON; the digest covers all but `meta`.
    """
    index_path = folder / _INDEX
    if index_path.exists():
        raise ValueError(f"{folder} already holds a checkpoint: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for group, state in tensors.items():
        path = folder / f"{group}.safetensors"
        save_file({name: t.detach().cpu().contiguous() for name, t in state.items()}, path)
        _sync(path)
        files[group] = _sha256(path)
    index = {
        "format": FORMAT,
        "role": role,
        "spec": dict(spec),
        "parents": dict(parents),
        "files": files,
    }
    digest = _digest(index)
    text = json.dumps({**index, "digest": digest, "meta": dict(meta)}, indent=1, sort_keys=True)
    index_path.write_text(text + "\n", encoding="utf-8")
    _sync(index_path)
    return digest


def load(folder: Path, *, groups: Collection[str] = ("params",)) -> Checkpoint:
    """Read and verify a checkpoint; only the named groups' tensors are read.

    Raises FileNotFoundError without a checkpoint, ValueError naming the file that is damaged.
    """
    index = _read_index(folder / _INDEX)
    missing = [group for group in groups if group not in index["files"]]
    if missing:
        raise ValueError(f"{folder} has no tensors called {missing}: it has {list(index['files'])}")
    tensors = {}
    for group in groups:
        path = folder / f"{group}.safetensors"
        if not path.is_file() or _sha256(path) != index["files"][group]:
            raise ValueError(f"{path} is missing or damaged: its sha256 is not the one recorded")
        tensors[group] = load_file(path)
    return Checkpoint(
        role=index["role"],
        spec=index["spec"],
        parents=index["parents"],
        meta=index["meta"],
        tensors=tensors,
        digest=index["digest"],
    )


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """Return the state as tensors named "<parameter number>.<key>" and the groups as JSON."""
    state = optimizer.state_dict()
    tensors = {
        f"{number}.{key}": torch.as_tensor(value)
        for number, entries in state["state"].items()
        for key, value in entries.items()
    }
    return tensors, state["param_groups"]


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], groups: list[Any]
) -> None:
    """Continue from `pack_optimizer`."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _read_index(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path.parent}: {_INDEX} is missing")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        wanted = _digest({k: index[k] for k in ("format", "role", "spec", "parents", "files")})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if index["format"] != FORMAT:
        raise ValueError(f"{path} has format {index['format']!r}, this version reads {FORMAT!r}")
    if index.get("digest") != wanted or "meta" not in index:
        raise ValueError(f"{path} is damaged: its digest is not that of its contents")
    return index


def _digest(index: Mapping[str, Any]) -> str:
    text = json.dumps(index, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
