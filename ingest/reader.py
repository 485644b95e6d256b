"""Random access to a frozen view: rows, verified payloads, frames, latents.

The view's file is mapped and shared by all processes of a machine; neither torch nor a decoder is
loaded before frames are asked for, so a process that only fetches stays small.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ingest.augment import Cut, Frames, cut_of, render
from ingest.objects import Root
from ingest.shards import CorruptPayload, read_payload
from ingest.views import View, open_view

LATENT_KINDS = {"latent_f16_tchw": np.dtype("<f2"), "tokens_i32": np.dtype("<i4")}
Row = Mapping[str, Any]


class ViewReader:
    """The clips of one view by index, in the order of their ids.

    Args:
        root: where the dataset lives.
        view: its View or digest, or the path of a view file.
        latents: rows of the latents annotation by clip id (see `latent_rows`), for `latents`.
    """

    def __init__(
        self,
        root: Root | Path | str,
        view: View | Path | str,
        *,
        latents: Mapping[str, Row] | None = None,
    ) -> None:
        self.root = Root.of(root)
        if isinstance(view, Path):
            table, self.digest = open_view(view)
        else:
            name = view.digest if isinstance(view, View) else view
            table, self.digest = open_view(self.root, name)
        self._batches = [_Batch(batch) for batch in table.to_batches()]
        sizes = [batch.rows.num_rows for batch in self._batches]
        self._starts = np.cumsum([0, *sizes]).tolist()
        self._latents = latents or {}

    def __len__(self) -> int:
        """Number of clips."""
        return self._starts[-1]

    def _place(self, index: int) -> "tuple[_Batch, int]":
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of a view of {len(self)}")
        number = bisect_right(self._starts, index) - 1
        return self._batches[number], index - self._starts[number]

    def row(self, index: int) -> dict[str, Any]:
        """Return the columns of one clip as plain values, `clip_id` as hex text.

        Raises IndexError.
        """
        batch, place = self._place(index)
        columns = zip(batch.rows.schema.names, batch.rows.columns, strict=True)
        row = {name: column[place].as_py() for name, column in columns}
        return row | {"clip_id": row["clip_id"].hex()}

    def numbers(self, name: str) -> np.ndarray:
        """Return a column of integers."""
        parts = [np.asarray(_integers(batch.rows.column(name))) for batch in self._batches]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def payload(self, index: int) -> memoryview:
        """Return the verified payload bytes of a clip; raises CorruptPayload, FileNotFoundError."""
        batch, place = self._place(index)
        return read_payload(
            self.root,
            batch.shards[batch.shard[place]],
            batch.offset[place],
            batch.length[place],
            batch.crc32[place],
            clip_id=batch.ids[32 * place : 32 * place + 32].hex(),
        )

    def frames(
        self, index: int, frames: Frames, *, seed: int = 0, epoch: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a clip as uint8 THWC, and its low pair (without frames when low is 1).

        Raises CorruptPayload, FileNotFoundError; ValueError when the clip has too few frames.
        """
        row = self.row(index)
        cut = cut_of(row, frames, seed=seed, epoch=epoch)
        high, low = (np.empty(shape, np.uint8) for shape in frames.shapes(row["frame_count"]))
        decode(self.root, row, cut, high, low)
        return high, low

    def latent_row(self, index: int) -> Row:
        """Return the latents' row of a clip; raises ValueError when it has none."""
        name = self.row(index)["clip_id"]
        if name not in self._latents:
            raise ValueError(f"clip {name}: has no latents; make them, or select clips that have")
        return self._latents[name]

    def latents(self, index: int) -> np.ndarray:
        """Return a clip's latents: float16 TCHW or int32 tokens, a view of the stored bytes.

        Raises CorruptPayload, FileNotFoundError; ValueError when the clip has none.
        """
        row = self.latent_row(index)
        shape = latent_shape(row)
        kind = LATENT_KINDS[row["payload_kind"]]
        payload = fetch(self.root, row)
        if len(payload) != int(np.prod(shape)) * kind.itemsize:
            raise CorruptPayload(
                f"{named(self.root, row)}: {len(payload)} bytes are no {shape} of {kind.name}"
            )
        return np.frombuffer(payload, kind).reshape(shape)


def latent_rows(annotation: pa.Table, *, producer: str) -> dict[str, Row]:
    """Return the rows of the latents annotation that one producer made, by clip id."""
    rows = annotation.to_pylist()
    return {row["clip_id"]: row for row in rows if row["producer"] == producer}


def latent_shape(row: Row) -> tuple[int, ...]:
    """Return the shape of a row's latents; raises ValueError for a kind that is none."""
    if row["payload_kind"] not in LATENT_KINDS:
        raise ValueError(f"clip {row['clip_id']}: {row['payload_kind']} holds no latents")
    return tuple(json.loads(row["shape"]))


def named(root: Root, row: Row) -> str:
    """Return the words that name a clip in an error."""
    return f"shard {root.join(row['shard'])}, clip {row['clip_id']}"


def fetch(root: Root, row: Row) -> memoryview:
    """Return the verified payload of a view's row; raises CorruptPayload, FileNotFoundError."""
    place = row["shard"], row["offset"], row["length"], row["crc32"]
    return read_payload(root, *place, clip_id=row["clip_id"])


def decode(root: Root, row: Row, cut: Cut, high_THWC: np.ndarray, low_THWC: np.ndarray) -> None:
    """Fetch a clip and render what `cut` takes of it; raises CorruptPayload, FileNotFoundError."""
    shown(root, row, cut, fetch(root, row), (high_THWC, low_THWC))


def shown(
    root: Root, row: Row, cut: Cut, payload: memoryview, out: tuple[np.ndarray, np.ndarray]
) -> None:
    """Render a fetched payload; raises CorruptPayload naming shard and clip."""
    try:
        render(payload, row, cut, *out)
    except ValueError as error:
        raise CorruptPayload(f"{named(root, row)}: {error}") from error


class _Batch:
    """Rows of a view, and where their payloads lie as plain integers, without a copy."""

    def __init__(self, rows: pa.RecordBatch) -> None:
        self.rows = rows
        shards: Any = rows.column("shard")
        self.shards = shards.dictionary.to_pylist()
        self.shard = _integers(shards.indices)
        self.offset = _integers(rows.column("offset"))
        self.length = _integers(rows.column("length"))
        self.crc32 = _integers(rows.column("crc32"))
        ids = rows.column("clip_id")
        self.ids = memoryview(ids.buffers()[1])[32 * ids.offset :]


def _integers(column: "pa.Array[Any]") -> memoryview:
    # Not to_numpy(): it would import pandas where that is installed.
    stored = memoryview(column.buffers()[1])
    whole = stored.cast("q") if column.type.bit_width == 64 else stored.cast("i")
    return whole[column.offset :][: len(column)]
