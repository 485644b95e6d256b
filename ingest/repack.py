"""Reading shards other than by location, and copying verified payloads into new ones."""

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from ingest.moves import moves_table
from ingest.objects import Root
from ingest.ranged import open_stored
from ingest.shards import CorruptPayload, ShardWriter

T = TypeVar("T")
DATA, SUFFIX, PAYLOAD = "data", ".arrow", "payload"
Fact = Mapping[str, Any]


def is_shard(name: str) -> bool:
    """Whether a name below the root is that of a finished shard."""
    return name.startswith(f"{DATA}/") and name.endswith(SUFFIX) and "/." not in name


def facts(root: Root, shard: str, names: Sequence[str] = ()) -> pa.Table:
    """Return columns of a shard, by default all but the payload, without reading payloads.

    Raises CorruptPayload, FileNotFoundError.
    """

    def read() -> pa.Table:
        with open_stored(root, shard) as source:
            known = pa.ipc.open_file(source).schema.names
            wanted = [i for i, n in enumerate(known) if n != PAYLOAD and n in (names or known)]
            options = pa.ipc.IpcReadOptions(included_fields=wanted, use_threads=False)
            found = pa.ipc.open_file(source, options=options).read_all()
            found.validate(full=True)  # else a flipped bit could lead outside of the memory
            return found

    return _readable(root, shard, read)


def metadata(root: Root, shard: str) -> dict[str, str]:
    """Return what a shard says of its making; raises CorruptPayload, FileNotFoundError."""

    def read() -> dict[bytes, bytes]:
        with open_stored(root, shard) as source:
            return pa.ipc.open_file(source).schema.metadata or {}

    return {key.decode(): value.decode() for key, value in _readable(root, shard, read).items()}


def contents(root: Root, shard: str) -> Iterator[tuple[Fact, bytes]]:
    """Yield the columns and the payload of each clip of a shard; memory holds one batch.

    Raises CorruptPayload, FileNotFoundError.
    """
    source = _readable(root, shard, lambda: open_stored(root, shard))
    with source:
        reader = _readable(root, shard, lambda: pa.ipc.open_file(source))

        def read(number: int) -> tuple[list[Fact], Any]:
            batch = reader.get_batch(number)
            batch.validate(full=True)
            return batch.drop_columns([PAYLOAD]).to_pylist(), batch.column(PAYLOAD)

        for number in range(reader.num_record_batches):
            told, payloads = _readable(root, shard, lambda number=number: read(number))
            for index, fact in enumerate(told):
                yield fact, payloads[index].as_py()


def check(root: Root, shard: str, fact: Fact, payload: bytes | memoryview) -> None:
    """Raise CorruptPayload unless a payload is what its shard says of it."""
    for name, found in (
        ("payload_crc32", zlib.crc32(payload)),
        ("payload_sha256", hashlib.sha256(payload).digest()),
    ):
        if found != fact[name]:
            raise CorruptPayload(
                f"shard {root.join(shard)}, clip {fact['clip_id'].hex()}: {name} differs, "
                "the bytes changed; restore the file or take the clip down"
            )


class Repacker:
    """Writes one shard of payloads that lie in others; `close` returns their moves.

    Used as a context manager, like ShardWriter.
    """

    def __init__(self, root: Root, shards: Iterable[str]) -> None:
        told = [metadata(root, shard) for shard in sorted(set(shards))]
        keys = sorted({key for one in told for key in one})
        # What the old shards disagree in, such as a version of ffmpeg, is told in full.
        joined = {k: ", ".join(sorted({one[k] for one in told if k in one})) for k in keys}
        self._root = root
        self._writer = ShardWriter(root, joined)
        self._moved: list[tuple[str, str, int]] = []

    def __enter__(self) -> "Repacker":
        self._writer.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._writer.__exit__(*error)

    def append(self, shard: str, fact: Fact, payload: bytes) -> None:
        """Add a payload of `shard`, with the columns that it has there.

        Raises CorruptPayload when it is not what they say.
        """
        check(self._root, shard, fact, payload)
        self._writer.append({**fact, PAYLOAD: payload})
        self._moved.append((shard, fact["clip_id"].hex(), fact["payload_crc32"]))

    def close(self) -> pa.Table:
        """Finish the shard and return the moves; see moves.schema."""
        places = self._writer.close()
        return moves_table(dict(zip(self._moved, places, strict=True)))


def _readable(root: Root, shard: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError) or getattr(error, "fatal", False):
            raise
        raise CorruptPayload(
            f"shard {root.join(shard)}, every clip: cannot be read as Arrow; restore the file"
        ) from error
