"""Checkpoints in progress, in pieces: what each worker copies and writes, and the index that makes one checkpoint of it.

A piece is a block of rows of a tensor (a number counts as one row). What FSDP2 shards is cut where it is sharded; of what
every worker has, each writes its share by bytes. A group of tensors and a worker make one safetensors file; the JSON index
says where each piece belongs, so that any form on any number of workers finds its rows. No pickle anywhere.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from cluster.group import Place
from ingest.files import StorageError, atomic_write, storage_error

FORMAT = "kinoray-pieces/2"
INDEX = "checkpoint.json"
Groups = Mapping[str, Mapping[str, torch.Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Rows of a tensor, copied to the CPU: the first one's number, and the shape of the whole."""

    rows: torch.Tensor
    first: int
    shape: tuple[int, ...]


Pieces = dict[str, dict[str, Piece]]


class OtherVersion(ValueError):
    """A checkpoint in the format of another version: whole, and not for this one to read or to discard."""


def cut(groups: Groups, place: Place) -> Pieces:
    """Copy this worker's piece of each tensor, which may have no rows; nothing is exchanged."""
    common = sum(t.nbytes for state in groups.values() for t in state.values() if not sharded(t))
    before, made = 0, {}
    for group, state in groups.items():
        made[group] = {}
        for name, tensor in state.items():
            own = tensor.detach()
            if sharded(own):
                first, last = rows_of(own)
                rows = own.to_local()  # type: ignore[attr-defined]  sharded
            else:
                flat = _rows(own.to_local() if isinstance(own, DTensor) else own)
                first, last = _share(flat, before, common, place)
                rows = flat[first:last]
                before += flat.nbytes
            copied = torch.empty(rows.shape, dtype=rows.dtype, device="cpu")
            shape = tuple(tensor.shape)
            made[group][name] = Piece(rows=copied.copy_(rows), first=first, shape=shape)
    return made


def sharded(tensor: torch.Tensor) -> bool:
    """Return whether each worker has rows of its own; NotImplementedError when it is cut in another way."""
    if not isinstance(tensor, DTensor) or all(p.is_replicate() for p in tensor.placements):
        return False
    if tuple(tensor.placements) != (Shard(0),):
        raise NotImplementedError(
            f"a tensor placed as {tensor.placements}: checkpoints know rows on a mesh of one dimension"
        )
    return True


def rows_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the first of this worker's rows of a tensor and the one after the last."""
    if not sharded(tensor) or not isinstance(tensor, DTensor):
        return 0, tensor.shape[0] if tensor.ndim else 1
    shape, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return (int(offset[0]), int(offset[0]) + int(shape[0])) if shape[0] else (0, 0)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.ndim else tensor.reshape(1)


def _share(rows: torch.Tensor, before: int, common: int, place: Place) -> tuple[int, int]:
    """Return the rows whose first byte lies in this worker's share of all common bytes, laid end to end."""
    if rows.numel() == 0:
        return 0, 0
    size, world = rows.nbytes // len(rows), place.world_size
    first, last = (
        min(max(-((before * world - edge * common) // (size * world)), 0), len(rows))
        for edge in (place.rank, place.rank + 1)
    )
    return first, last


def file_name(group: str, rank: int) -> str:
    """Return the name of the file with a worker's pieces of a group."""
    return f"{group}-{rank:05d}.safetensors"


def note_name(rank: int) -> str:
    """Return the name of the file by which a worker says that its files are whole."""
    return f"done-{rank:05d}.json"


def write(folder: Path, pieces: Pieces, rank: int, own: object = None) -> None:
    """Write a worker's files into a folder that the others write to as well, and then its note; StorageError if it cannot.

    `own` is JSON, what this worker alone has to keep.
    """
    files, told = {}, {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder) from error
    for group, state in pieces.items():
        mine = {name: piece.rows for name, piece in state.items() if piece.rows.numel()}
        told[group] = {name: [state[name].first, len(rows)] for name, rows in mine.items()}
        if mine:
            path = folder / file_name(group, rank)
            _save(mine, path)
            files[path.name] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    note = {"rank": rank, "files": files, "pieces": told, "own": own}
    atomic_write(folder / note_name(rank), json.dumps(note).encode())


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise storage_error(error, path) from error
    except SafetensorError as error:  # its own words for what the system said
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else 0
        raise StorageError(code, os.strerror(code) if code else str(error), str(path)) from error


def finish(
    folder: Path, pieces: Pieces, told: Mapping[str, Any], notes: Iterable[Mapping[str, Any]]
) -> None:
    """Write the index over all workers' files, on disk, and drop their notes; ValueError when rows are missing or twice.

    `told` is role, spec, parents and meta, all JSON; meta gets what the workers keep of their own as "of_workers".
    """
    notes = list(notes)
    files: dict[str, Any] = {}
    tensors = {
        group: {
            name: {"dtype": str(p.rows.dtype)[6:], "shape": list(p.shape), "pieces": []}
            for name, p in state.items()
        }
        for group, state in pieces.items()
    }
    for note in notes:
        files |= note["files"]
        for group, state in note["pieces"].items():
            for name, (first, rows) in state.items():
                tensors[group][name]["pieces"].append([note["rank"], first, rows])
    for entry in (entry for state in tensors.values() for entry in state.values()):
        entry["pieces"].sort(key=lambda piece: piece[1])
        _check_whole(entry)
    meta = {**told["meta"], "of_workers": [note["own"] for note in notes]}
    index = {**told, "meta": meta, "format": FORMAT, "files": files, "tensors": tensors}
    text = _canonical({**index, "digest": _digest(index)})
    atomic_write(folder / INDEX, text.encode())
    for note in folder.glob("done-*.json"):
        note.unlink()


def _check_whole(entry: Mapping[str, Any]) -> None:
    shape, reached = entry["shape"], 0
    for _rank, first, rows in entry["pieces"]:
        if first != reached:
            raise ValueError(f"rows {reached} to {first} of a tensor {shape} were not written")
        reached = first + rows
    if 0 not in shape and reached != (shape[0] if shape else 1):
        raise ValueError(f"rows from {reached} on of a tensor {shape} were not written")


def read_index(folder: Path) -> dict[str, Any]:
    """Return the index of a checkpoint; ValueError when it is damaged, OtherVersion when another version wrote it."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        digest, version = index.pop("digest"), index["format"]
        ours = _digest({**index, "format": FORMAT}) == digest
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if ours and version == FORMAT:
        return index
    if not ours and version != FORMAT and re.fullmatch(r"kinoray-[a-z]+/\d+", str(version)):
        raise OtherVersion(
            f"{path} was written by another version (its format is {version}, this version reads {FORMAT}); "
            f"next: go on with that version, or start over with --no-resume"
        )
    raise ValueError(f"{path} is damaged: its digest is not that of its contents")


def damaged(folder: Path, index: Mapping[str, Any], place: Place) -> list[str]:
    """Return the names of files that are not what the index says, or not to be read, among this worker's share by bytes."""

    def doubtful(name: str) -> bool:
        try:
            return not sound(folder, index, name)
        except OSError:
            return True

    return [name for name in _shared_out(index["files"], place) if doubtful(name)]


def _shared_out(files: Mapping[str, Any], place: Place) -> Iterator[str]:
    total, before = sum(told["bytes"] for told in files.values()), 0
    for name, told in sorted(files.items()):
        if before * place.world_size // total == place.rank:
            yield name
        before += told["bytes"]


def sound(folder: Path, index: Mapping[str, Any], name: str) -> bool:
    """Return whether a file is there and has the size and the sha256 of the index; OSError where that cannot be told."""
    told = index["files"][name]
    try:
        return (folder / name).stat().st_size == told["bytes"] and (
            sha256(folder / name) == told["sha256"]
        )
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False


def sha256(path: Path) -> str:
    """Return a file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(index: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(index).encode()).hexdigest()
