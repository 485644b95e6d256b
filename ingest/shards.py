"""Payload shards: immutable, uncompressed Arrow IPC files named by the sha256 of their bytes.

Each payload has an absolute byte range and a checksum, so one clip is one slice of a mapped file
(or one ranged request), and every read is verified: no common format notices a flipped bit itself.
"""

import hashlib
import mmap
import os
import secrets
import tempfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from ingest.files import TEMPORARY, StorageError, storage_error
from ingest.objects import Root
from ingest.schema import PAYLOAD_KINDS, payload_schema

BATCH_BYTES = 8 << 20
BATCH_ROWS = 64
OPEN_SHARDS = 256


class CorruptPayload(ValueError):
    """Stored bytes are not those that were written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """Where a payload lies: shard path below the dataset, byte range, CRC-32 of the bytes."""

    shard: str
    offset: int
    length: int
    crc32: int


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

    def __init__(self, root: Root | Path | str, metadata: dict[str, str] | None = None) -> None:
        self._root = Root.of(root)
        self._schema = payload_schema().with_metadata({"kinoray.schema": "1", **(metadata or {})})
        # On the same disk as the shard will be, so that it can be renamed; for a store, any local one.
        local = self._root.path / "data" if self._root.is_local else Path(tempfile.gettempdir())
        self._temporary = local / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}"
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
        batch = self._batch()
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

    def _batch(self) -> pa.RecordBatch:
        """Return the pending rows; every batch has the same dictionary, as the format demands."""
        batch = pa.RecordBatch.from_pylist(self._rows, schema=self._schema)
        at = self._schema.get_field_index("payload_kind")
        kinds = [row.get("payload_kind") for row in self._rows]
        codes = pa.array(
            [None if k is None else PAYLOAD_KINDS.index(str(k)) for k in kinds], pa.int8()
        )
        fixed = pa.DictionaryArray.from_arrays(codes, pa.array(PAYLOAD_KINDS))
        return batch.set_column(at, self._schema.field(at), fixed)

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
        except OSError as error:
            raise storage_error(error, self._temporary) from error
        shard = f"data/{name[:2]}/{name}.arrow"
        places = _locations(self._temporary, shard)
        self._root.upload(shard, self._temporary)
        return places


def write_shard(
    rows: Iterable[dict[str, object]],
    root: Root | Path | str,
    metadata: dict[str, str] | None = None,
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
    root: Root | Path | str,
    shard: str,
    offset: int,
    length: int,
    crc32: int,
    *,
    clip_id: str = "",
) -> memoryview:
    """Return the verified payload bytes: a view of the mapped file, or one ranged request to a store.

    Raises CorruptPayload naming shard and clip, FileNotFoundError when the shard is gone.
    """
    place = Root.of(root)
    if place.is_local:
        payload = _slice(place.join(shard), offset, length, clip_id)
    else:
        payload = memoryview(_requested(place, shard, offset, length))
        if len(payload) != length:
            raise _shorter(place.join(shard), clip_id)
    if zlib.crc32(payload) != crc32:
        raise CorruptPayload(
            f"{_named(place.join(shard), clip_id)}: checksum differs, the bytes changed; restore it"
        )
    return payload


def _requested(place: Root, shard: str, offset: int, length: int) -> bytes:
    try:
        return place.read_range(shard, offset, length)
    except StorageError:  # a range behind the end is refused like any other trouble
        if place.size(shard) < offset + length:
            return b""
        raise


def _slice(path: str, offset: int, length: int, clip_id: str) -> memoryview:
    try:
        mapped = _mapped(path)
    except ValueError as error:  # mmap refuses an empty file
        raise _shorter(path, clip_id) from error
    # size() asks the file: reading a map past a truncated end would kill the process.
    if offset < 0 or length < 0 or offset + length > mapped.size():
        raise _shorter(path, clip_id)
    return memoryview(mapped)[offset : offset + length]


def _shorter(path: str, clip_id: str) -> CorruptPayload:
    return CorruptPayload(
        f"{_named(path, clip_id)}: the file is shorter than its ledger says; restore it"
    )


def _named(path: str, clip_id: str) -> str:
    return f"shard {path}, clip {clip_id or 'unnamed'}"
