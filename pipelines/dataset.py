"""What a dataset needs of the house around it: takedown with its descendants, and a Ray dataset of its clips."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray.data

from ingest.decode import payload_frames
from ingest.objects import Root
from ingest.select import Selection
from ingest.shards import read_payload
from ingest.store import Dataset

CLIPS_A_BLOCK = 16


def to_ray_dataset(
    place: str,
    *,
    at: str = "",
    selection: Selection | None = None,
    read: Literal["payload", "frames"] = "payload",
) -> "ray.data.Dataset":
    """Return the clips of a selection as a Ray dataset, for work that spreads over a cluster.

    Rows are those of `clips`, with `payload` (bytes, checked against their CRC) or `frames` (uint8 THWC). Nothing is read
    before Ray asks for it. Ray decides the order; training takes its clips from ingest.loader, whose order is exact.
    """
    dataset = Dataset.open(place, at)
    clips = dataset.select(selection or Selection())
    starts = range(0, max(1, clips.num_rows), CLIPS_A_BLOCK)
    rows = ray.data.from_arrow([clips.slice(start, CLIPS_A_BLOCK) for start in starts])
    work = partial(_with_bytes, root=dataset.root, read=read)
    return rows.map_batches(work, batch_format="pyarrow", batch_size=None)


def _with_bytes(batch: pa.Table, *, root: Root, read: str) -> pa.Table | dict[str, Any]:
    rows = batch.to_pylist()
    payloads = [_payload(root, row) for row in rows]
    if read == "payload":
        return batch.append_column("payload", pa.array(payloads, pa.large_binary()))
    frames = np.empty(len(rows), object)
    for index, (row, payload) in enumerate(zip(rows, payloads, strict=True)):
        frames[index] = payload_frames(
            payload,
            kind=row["payload_kind"],
            shape=(row["frame_count"], row["height"], row["width"]),
        )
    columns = {
        name: batch.column(name).to_numpy(zero_copy_only=False) for name in batch.column_names
    }
    return {**columns, "frames": frames}


def _payload(root: Root, row: Mapping[str, Any]) -> bytes:
    place = row["shard"], row["offset"], row["length"], row["crc32"]
    return bytes(read_payload(root, *place, clip_id=row["clip_id"]))
