"""What a decode worker is asked, and the memory that it shares with its parent."""

import json
import mmap
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field

import numpy as np

from ingest.augment import Cut
from ingest.files import StorageError
from ingest.objects import Root
from ingest.reader import Row, named
from ingest.shards import CorruptPayload

QUEUED = 8
SLOTS = 3
ROW_FIELDS = (
    "clip_id",
    "shard",
    "offset",
    "length",
    "crc32",
    "payload_kind",
    "frame_count",
    "width",
    "height",
)
LOST = {kind.__name__: kind for kind in (CorruptPayload, FileNotFoundError)}
Pair = tuple[np.ndarray, np.ndarray]
Shapes = tuple[tuple[int, ...], tuple[int, ...]]


class DecodersDown(RuntimeError):
    """Decode workers cannot start on this machine, or one failed in a way that is no clip's fault."""


@dataclass(kw_only=True, slots=True, eq=False)
class Job:
    """One clip to decode into `out`; `done` resolves to None or to the error.

    `deaths` counts workers that crashed on it, `kills` those that were killed from outside.
    """

    root: Root
    row: Row
    cut: Cut
    out: Pair
    done: Future[None] = field(default_factory=Future)
    deaths: int = 0
    kills: int = 0

    def line(self, number: int) -> bytes:
        """Return the request as the worker reads it."""
        indices = self.cut.indices
        request = {
            "job": number,
            "root": self.root.uri,
            "row": {name: self.row[name] for name in ROW_FIELDS},
            "cut": asdict(self.cut) | {"indices": [indices.start, indices.stop, indices.step]},
        }
        return json.dumps(request).encode() + b"\n"

    def error(self, answer: dict[str, str]) -> Exception:
        """Return the error that a worker's answer tells of."""
        name, message = answer["error"], answer["message"]
        if name in LOST:
            return LOST[name](message)
        if name == StorageError.__name__:
            return StorageError(0, message, self.root.uri)
        return DecodersDown(f"{named(self.root, self.row)}: {name}: {message}")


def stretch(shapes: Shapes) -> int:
    """Return the bytes of both shapes, in whole pages."""
    size = sum(int(np.prod(shape)) for shape in shapes)
    return max(1, -(-size // mmap.PAGESIZE)) * mmap.PAGESIZE


def pair_in(memory: np.ndarray, shapes: Sequence[Sequence[int]]) -> Pair:
    """Return the arrays of both shapes, one after the other, in a stretch of uint8 memory."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    high = memory[: sizes[0]].reshape(shapes[0])
    return high, memory[sizes[0] : sum(sizes)].reshape(shapes[1])
