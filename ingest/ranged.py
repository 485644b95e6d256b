"""Stored files as files that Arrow reads from: mapped, or fetched in blocks from an object store."""

import io
from collections import OrderedDict

import pyarrow as pa

from ingest.objects import Root

BLOCK_BYTES, BLOCKS = 256 << 10, 64


def open_stored(root: Root, name: str) -> pa.NativeFile:
    """Open a file below a root for random access; raises FileNotFoundError, StorageError."""
    if root.is_local:
        return pa.memory_map(root.join(name))
    return pa.PythonFile(_Ranged(root, name), "r")


class _Ranged(io.RawIOBase):
    """A stored object as a file; Arrow asks for many small ranges, the store is asked for blocks."""

    def __init__(self, root: Root, name: str) -> None:
        self._root, self._name, self._bytes = root, name, root.size(name)
        self._at = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._bytes}[whence]
        self._at = start + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._bytes if size < 0 else min(self._bytes, self._at + size)
        start, self._at = self._at, max(self._at, end)
        if end - start > BLOCK_BYTES:
            return self._root.read_range(self._name, start, end - start)
        numbers = range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES))
        first = numbers.start * BLOCK_BYTES
        return b"".join(self._block(n) for n in numbers)[start - first : end - first]

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = number * BLOCK_BYTES
            length = min(BLOCK_BYTES, self._bytes - start)
            self._blocks[number] = self._root.read_range(self._name, start, length)
            while len(self._blocks) > BLOCKS:
                self._blocks.popitem(last=False)
        return self._blocks[number]
