"""A checkpoint in pieces as a training reads it: of each tensor only the rows that this worker keeps, wherever they lie."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.distributed.tensor import DTensor

from pipelines import pieces


class Kept:
    """A verified checkpoint; its files stay open until the with block ends."""

    def __init__(self, folder: Path, index: Mapping[str, Any]) -> None:
        self.meta: dict[str, Any] = index["meta"]
        self._folder, self._tensors = folder, index["tensors"]
        self._stack, self._open, self._group = ExitStack(), {}, ""

    def __enter__(self) -> "Kept":
        return self

    def __exit__(self, *_error: object) -> None:
        self._close()

    def names(self, group: str) -> list[str]:
        """Return the names of a group's tensors."""
        return list(self._tensors[group])

    def shape(self, group: str, name: str) -> tuple[int, ...]:
        """Return the shape of a whole tensor."""
        return tuple(self._tensors[group][name]["shape"])

    def like(self, group: str, name: str, like: torch.Tensor | None = None) -> torch.Tensor:
        """Return a tensor placed, and sharded, as `like` is (None: whole, on the CPU); ValueError if its shape is another."""
        shape = self.shape(group, name)
        if like is None:
            return self.rows(group, name, 0, shape[0] if shape else 1).reshape(shape)
        if tuple(like.shape) != shape:
            raise ValueError(f"{group} {name} is {shape} in the checkpoint, not {(*like.shape,)}")
        own = self.rows(group, name, *pieces.rows_of(like))
        if not isinstance(like, DTensor):
            return own.reshape(shape).to(like.device)
        local = own.to(like.device)
        return DTensor.from_local(
            local,
            like.device_mesh,
            like.placements,
            run_check=False,
            shape=like.shape,
            stride=like.stride(),
        )

    def rows(self, group: str, name: str, first: int, last: int) -> torch.Tensor:
        """Return rows [first, last) of a tensor in memory of their own; a number is a tensor of one row."""
        entry = self._tensors[group][name]
        shape = [last - first, *entry["shape"][1:]]
        found = torch.empty(shape, dtype=getattr(torch, entry["dtype"]))
        for rank, start, count in entry["pieces"]:
            begin, end = max(first, start), min(last, start + count)
            if begin < end:
                part = self._file(group, rank).get_slice(name)
                found[begin - first : end - first] = part[begin - start : end - start]
        return found

    def _file(self, group: str, rank: int) -> Any:
        if group != self._group:  # one group after the other: no more files open than workers wrote
            self._close()
            self._group = group
        if rank not in self._open:
            path = self._folder / pieces.file_name(group, rank)
            self._open[rank] = self._stack.enter_context(safe_open(path, framework="pt"))
        return self._open[rank]

    def _close(self) -> None:
        self._open.clear()
        self._stack.close()
