"""Reading everything, to know that all is there and is what was written."""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ingest.decode import payload_frames
from ingest.moves import shards_of_view
from ingest.objects import Root
from ingest.reader import LATENT_KINDS
from ingest.repack import DATA
from ingest.store import Dataset
from ingest.views import NotAView, open_view, views

How = Literal["crc", "sha256", "decode"]
HOW: tuple[How, ...] = ("crc", "sha256", "decode")
CHUNK_BYTES = 8 << 20
Row = Mapping[str, Any]
# Every payload that is named, once. Only the hash of a video's payload is in the tables.
NAMED = """
    SELECT k.shard, k.offset, k.id AS clip_id, k.length, k.crc32, k.payload_sha256,
        coalesce(k.payload_kind, 'h264_mp4') AS kind, k.frame_count, k.width, k.height, '' AS shape
    FROM ledger k WHERE k.kind = 'clip' AND k.fate = 'kept' AND k.shard IS NOT NULL
    UNION
    SELECT l.shard, l.offset, l.clip_id, l.length, l.crc32, NULL, l.payload_kind, 0, 0, 0, l.shape
    FROM latents l
    ORDER BY 1, 2
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """How many payloads and shards were read; a line for each problem, naming shard and clip."""

    clips: int
    shards: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(
    dataset: Dataset,
    *,
    how: How = "crc",
    threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Verified:
    """Read every payload that this version names, and check that its fates add up.

    `crc` compares the bytes of payloads; `sha256` also the hashes of payloads and of whole shards,
    so that no bit of them is unread; `decode` also decodes every frame. `progress` hears how many
    payloads are done, and of how many. Raises StorageError when the place cannot be read at all.
    """
    if how not in HOW:
        raise ValueError(f"how={how!r}: one of {', '.join(HOW)}")
    dataset.refresh()
    rows, root, done = dataset.query(NAMED), dataset.root, 0
    shards = list(_by_shard(rows))
    problems = list(dataset.balance().problems)
    problems += _views(root)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        results = pool.map(lambda part: _shard(root, part.to_pylist(), how), shards)
        for part, found in zip(shards, results, strict=True):
            problems += found
            done += part.num_rows
            if progress is not None:
                progress(done, rows.num_rows)
    return Verified(clips=rows.num_rows, shards=len(shards), problems=tuple(problems))


def _by_shard(rows: pa.Table) -> Iterator[pa.Table]:
    if not rows.num_rows:
        return
    names = rows.column("shard").combine_chunks().dictionary_encode()
    codes = names.indices.to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    for start, end in zip(starts, [*starts[1:], rows.num_rows], strict=True):
        yield rows.slice(start, end - start)


def _shard(root: Root, rows: list[Row], how: How) -> list[str]:
    """Return what is wrong with one shard and its payloads."""
    shard = rows[0]["shard"]
    whole = f"shard {root.join(shard)}, clip {rows[0]['clip_id']}"
    whole += f" and {len(rows) - 1} others" if len(rows) > 1 else ""
    try:
        size = root.size(shard)
        found = [_payload(root, row, how, size) for row in rows]
        if how != "crc" and _hash(root, shard, size) != PurePosixPath(shard).stem:
            found.append(f"{whole}: the file's hash is not its name; restore the file")
    except FileNotFoundError:
        found = [f"{whole}: the file is gone; restore it"]
    return [line for line in found if line]


def _payload(root: Root, row: Row, how: How, size: int) -> str:
    """Return what is wrong with a payload, "" for nothing."""
    name = f"shard {root.join(row['shard'])}, clip {row['clip_id']}"
    if row["offset"] + row["length"] > size:
        return f"{name}: the file is shorter than its ledger says; restore the file"
    # Not through the reader's maps: they may still show a file that was replaced.
    payload = root.read_range(row["shard"], row["offset"], row["length"])
    if zlib.crc32(payload) != row["crc32"]:
        return f"{name}: checksum differs, the bytes changed; restore the file"
    if how == "crc":
        return ""
    if row["payload_sha256"] not in (None, hashlib.sha256(payload).hexdigest()):
        return f"{name}: hash differs, the bytes are not this clip's; restore the file"
    return _decoded(name, row, payload) if how == "decode" else ""


def _decoded(name: str, row: Row, payload: bytes) -> str:
    if row["kind"] in LATENT_KINDS:
        wanted = prod(json.loads(row["shape"])) * LATENT_KINDS[row["kind"]].itemsize
        return "" if wanted == len(payload) else f"{name}: {len(payload)} bytes, not {wanted}"
    wanted = row["frame_count"], row["height"], row["width"], 3
    try:
        frames_THWC = payload_frames(payload, kind=row["kind"], shape=wanted[:3])
    except ValueError as error:
        return f"{name}: {error}"
    shape = frames_THWC.shape
    return "" if shape == wanted else f"{name}: decodes to {shape}, its row says {wanted}"


def _hash(root: Root, shard: str, size: int) -> str:
    found = hashlib.sha256()
    for start in range(0, size, CHUNK_BYTES):
        found.update(root.read_range(shard, start, min(CHUNK_BYTES, size - start)))
    return found.hexdigest()


def _views(root: Root) -> list[str]:
    """Return a line for each view that cannot be read, or that names shards which are gone."""
    present = {entry.name for entry in root.names(DATA)}
    found = []
    for digest in views(root):
        try:
            view, told = open_view(root, digest)
            gone = sorted(shards_of_view(view) - present)
        except NotAView as error:
            found.append(str(error))
            continue
        if told != digest:
            found.append(f"view {digest}: says that it is {told}; restore the file")
        if gone:
            found.append(f"view {digest}: {len(gone)} of its shards are gone, such as {gone[0]}")
    return found
