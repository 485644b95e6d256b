"""Payload shards: immutable, uncompressed Arrow IPC files named by the sha256 of their bytes.

Each payload has an absolute byte range and a checksum, so one clip is one slice of a mapped file
(or one ranged request), and every read is verified: no common format notices a flipped bit itself.
"""

import hashlib
import mmap
import os
import secrets
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from ingest.schema import payload_schema

BATCH_BYTES = 8 << 20
BATCH_ROWS = 64
OPEN_SHARDS = 256


class StorageError(OSError):
    """The dataset's disk cannot be written (full, read-only, gone): no fault of any source."""

    fatal = True


class CorruptPayload(ValueError):
    """Stored bytes are not those that were written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """Where a payload lies: shard path below the dataset, byte range, CRC-32 of the bytes."""

    shard: str
    offset: int
    length: int
    crc32: int


def storage_error(error: OSError, path: Path) -> StorageError:
    """Return `error` as a StorageError that names the path."""
    return StorageError(error.errno or 0, error.strerror or str(error), str(path))


def sync_folder(folder: Path) -> None:
    """Make names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _HashingFile:
    """What pyarrow writes through; pyarrow wants write, flush, tell, close and closed."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._hash = hashlib.sha256()

    def write(self, data: pa.Buffer | bytes) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self._file.tell()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        self._file.close()

    def finish(self) -> str:
        """Force the bytes to disk and return their hex sha256."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._hash.hexdigest()


class ShardWriter:
    """Writes one shard clip by clip; nothing exists under its final name before `close` returns.

    Used as a context manager, an unfinished shard is removed. Raises StorageError with the path.
    """

    def __init__(self, root: Path, metadata: dict[str, str] | None = None) -> None:
        self._root = root
        self._schema = payload_schema().with_metadata({"kinoray.schema": "1", **(metadata or {})})
        self._temporary = root / "data" / f".writing-{os.getpid()}-{secrets.token_hex(8)}"
        self._rows: list[dict[str, object]] = []
        self._pending_bytes = 0
        self._file: _HashingFile | None = None
        self._writer: pa.RecordBatchFileWriter | None = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None and not self._file.closed:
            self._file.close()
        with suppress(OSError):  # never there, or the disk is gone: the first error is the one
            self._temporary.unlink()

    def append(self, row: dict[str, object]) -> None:
        """Add one clip: a mapping of the payload schema's columns."""
        payload = row["payload"]
        if not isinstance(payload, bytes) or not payload:
            raise ValueError("payload must be bytes, and at least one")
        self._rows.append(row)
        self._pending_bytes += len(payload)
        if self._pending_bytes >= BATCH_BYTES or len(self._rows) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        batch = pa.RecordBatch.from_pylist(self._rows, schema=self._schema)
        try:
            if self._file is None or self._writer is None:
                self._temporary.parent.mkdir(parents=True, exist_ok=True)
                self._file = _HashingFile(self._temporary)
                self._writer = pa.ipc.new_file(self._file, self._schema)
            self._writer.write_batch(batch)
        except OSError as error:
            raise storage_error(error, self._temporary) from error
        self._rows.clear()
        self._pending_bytes = 0

    def close(self) -> list[Location]:
        """Finish the shard and return where each payload lies, in the order of `append`.

        A shard without clips is not written.
        """
        if self._rows:
            self._flush()
        if self._file is None or self._writer is None:
            return []
        try:
            self._writer.close()
            name = self._file.finish()
            shard = Path("data") / name[:2] / f"{name}.arrow"
            final = self._root / shard
            final.parent.mkdir(exist_ok=True)
            self._temporary.replace(final)
            sync_folder(final.parent)
            sync_folder(final.parent.parent)
        except OSError as error:
            raise storage_error(error, self._temporary) from error
        return _locations(final, str(shard))


def write_shard(
    rows: Iterable[dict[str, object]], root: Path, metadata: dict[str, str] | None = None
) -> list[Location]:
    """Write rows of the payload schema as one shard below `root`; see ShardWriter."""
    with ShardWriter(root, metadata) as writer:
        for row in rows:
            writer.append(row)
        return writer.close()


def _locations(path: Path, shard: str) -> list[Location]:
    with pa.memory_map(str(path)) as mapped:
        whole = mapped.read_buffer()
        reader = pa.ipc.open_file(pa.BufferReader(whole))
        found = []
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            payloads = batch.column("payload")
            bounds = memoryview(payloads.buffers()[1]).cast("q")
            base = payloads.buffers()[2].address - whole.address
            for index, crc in enumerate(batch.column("payload_crc32").to_pylist()):
                start = bounds[payloads.offset + index]
                length = bounds[payloads.offset + index + 1] - start
                found.append(Location(shard=shard, offset=base + start, length=length, crc32=crc))
        return found


@lru_cache(maxsize=OPEN_SHARDS)
def _mapped(path: str) -> mmap.mmap:
    with Path(path).open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def read_payload(
    path: str | Path, offset: int, length: int, crc32: int, *, clip_id: str = ""
) -> memoryview:
    """Return the payload bytes of a shard as a view of the mapped file, verified.

    Raises CorruptPayload naming shard and clip, FileNotFoundError when the shard is gone.
    """
    place = f"shard {path}, clip {clip_id or 'unnamed'}"
    try:
        mapped = _mapped(str(path))
    except ValueError as error:  # mmap refuses an empty file
        raise CorruptPayload(f"{place}: the file is empty; curate its source again") from error
    # size() asks the file: reading a map past a truncated end would kill the process.
    if offset < 0 or length < 0 or offset + length > mapped.size():
        raise CorruptPayload(f"{place}: the file is shorter than its ledger says; restore it")
    payload = memoryview(mapped)[offset : offset + length]
    if zlib.crc32(payload) != crc32:
        raise CorruptPayload(f"{place}: checksum differs, the bytes changed on disk; restore it")
    return payload
