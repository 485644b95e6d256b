"""Views made directly of payloads, without curating any video; what tests of reading read."""

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from ingest.encode import encode_video
from ingest.objects import Root
from ingest.schema import payload_schema, view_schema
from ingest.shards import write_shard
from ingest.views import View, write


@dataclass(frozen=True, kw_only=True)
class Made:
    """A view below a root, its rows by index, and what its clips decode to."""

    root: Root
    view: View
    rows: list[dict]
    frames: list[np.ndarray]

    @property
    def ids(self) -> list[str]:
        return [row["clip_id"] for row in self.rows]

    def spoil(self, *indices: int) -> list[str]:
        """Flip a bit in the middle of clips; return their ids."""
        for index in indices:
            row = self.rows[index]
            path = self.root.path / row["shard"]
            data = bytearray(path.read_bytes())
            data[row["offset"] + row["length"] // 2] ^= 4
            path.write_bytes(data)
        return [self.ids[index] for index in indices]


def picture(number: int, *, frames: int, height: int, width: int) -> np.ndarray:
    """Return uint8 THWC noise that no other number gives, smooth enough for a video."""
    draws = np.random.default_rng(number)
    coarse = draws.integers(0, 256, (frames, height // 4, width // 4, 3), np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def stored(frames: np.ndarray, kind: str) -> bytes:
    if kind == "raw_u8_thwc":
        return frames.tobytes()
    if kind == "png":
        return cv2.imencode(".png", frames[0, ..., ::-1])[1].tobytes()
    return encode_video(frames, 16, lossless=True)


def place(root: Root | Path | str, payloads: Sequence[tuple[str, bytes]]) -> list[dict]:
    """Store payloads with their clip ids in one shard; return their locations as plain values."""
    rows = [
        dict.fromkeys(payload_schema().names)
        | {
            "clip_id": bytes.fromhex(name),
            "payload_sha256": hashlib.sha256(data).digest(),
            "payload_crc32": zlib.crc32(data),
            "payload": data,
        }
        for name, data in payloads
    ]
    return [
        {"shard": at.shard, "offset": at.offset, "length": at.length, "crc32": at.crc32}
        for at in write_shard(rows, root)
    ]


def name_of(number: int, kind: str) -> str:
    return hashlib.sha256(f"{kind} {number}".encode()).hexdigest()


def make(
    place_of: Root | Path | str,
    *,
    clips: int = 7,
    frames: int = 6,
    size: tuple[int, int] = (24, 16),
    kind: str = "raw_u8_thwc",
    first: int = 0,
    shards: int = 2,
) -> Made:
    """Make a view of `clips` clips of (width, height) = `size`, in so many shards."""
    root = Root.of(place_of)
    shape = {"frames": frames, "width": size[0], "height": size[1]}
    numbers = sorted(range(first, first + clips), key=lambda number: name_of(number, kind))
    pictures = [picture(number, **shape) for number in numbers]
    named = [
        (name_of(number, kind), stored(shown, kind))
        for number, shown in zip(numbers, pictures, strict=True)
    ]
    places = [found for part in range(shards) for found in place(root, named[part::shards])]
    order = [index for part in range(shards) for index in range(clips)[part::shards]]
    rows = [
        {
            "clip_id": named[index][0],
            **place_found,
            "frame_count": frames,
            "width": size[0],
            "height": size[1],
            "payload_kind": kind,
            "fps_num": 16,
            "fps_den": 1,
            "caption": f"clip {numbers[index]}",
            "label": f"class {numbers[index] % 3}",
        }
        for index, place_found in zip(order, places, strict=True)
    ]
    rows.sort(key=lambda row: row["clip_id"])
    return Made(root=root, view=write_view(root, rows), rows=rows, frames=pictures)


def write_view(root: Root, rows: list[dict]) -> View:
    digest = hashlib.sha256(json.dumps([row["clip_id"] for row in rows]).encode()).hexdigest()
    plain = [row | {"clip_id": bytes.fromhex(row["clip_id"])} for row in rows]
    table = pa.Table.from_pylist(plain, view_schema().with_metadata({"kinoray.view": digest}))
    write(root, table)
    return View(name=f"views/{digest}.arrow", digest=digest, num_clips=len(rows))
