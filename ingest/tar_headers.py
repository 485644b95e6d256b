"""Going through the headers of a stranger's tar: in bounded memory, to a certain end, to its whole end."""

import io
import os
import tarfile
from collections.abc import Callable, Iterator

HEADER_BYTES = 1 << 20  # a header that wants more memory than this is an attack
BLOCK = 512
DISK_BYTES = 1 << 12  # a disk reads on by itself


class Headers(io.RawIOBase):
    """What tarfile reads headers through: a little ahead, and never a huge read.

    `read_at(start, length)` gives the bytes of a tar of `size` bytes, asked for at least `ahead`.
    """

    def __init__(
        self, read_at: Callable[[int, int], bytes], size: int, ahead: int = DISK_BYTES
    ) -> None:
        self._read_at, self.size, self._ahead = read_at, size, ahead
        self._position, self._start, self._held = 0, 0, b""

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; raises tarfile.ReadError for more than any header needs."""
        if not 0 <= size <= HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        data = self.at(self._position, size)
        self._position += len(data)
        return data

    def at(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start`, or fewer where the file ends."""
        size = max(0, min(size, self.size - start))
        behind = start - self._start
        if behind < 0 or behind + size > len(self._held):
            wanted = min(max(size, self._ahead), self.size - start)
            self._start, self._held = start, self._read_at(start, wanted) if size else b""
            behind = 0
        return self._held[behind : behind + size]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to `offset` from the start."""
        if whence != os.SEEK_SET:
            raise io.UnsupportedOperation("seek from the start only")
        self._position = offset
        return offset

    def tell(self) -> int:
        """Return the position."""
        return self._position


def entries(headers: Headers) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar that is not compressed, folders not among them.

    Raises tarfile.TarError, ValueError or OSError where the tar is damaged, also where tarfile
    would take that for the end or go in circles (CVE-2025-8194, by sizes below zero).
    """
    try:
        with tarfile.open(fileobj=headers, mode="r:") as tar:
            remembered = vars(tar)["members"]
            while entry := tar.next():
                remembered.clear()  # and their headers' words with them
                if sum(map(len, tar.pax_headers.values())) > HEADER_BYTES:  # words for all members
                    raise tarfile.ReadError("headers for all members without end")
                if tar.offset <= entry.offset:
                    raise tarfile.ReadError(f"{entry.name!r} leads back")
                if entry.isreg() and entry.offset_data + entry.size > headers.size:
                    raise tarfile.ReadError("the file ends inside a member")
                if not entry.isdir():
                    yield entry
            if headers.at(tar.offset, BLOCK) != bytes(BLOCK):
                raise tarfile.ReadError(f"no end mark, nor a header, at {tar.offset}")
    except RecursionError as error:
        raise tarfile.ReadError("headers of headers without end") from error
