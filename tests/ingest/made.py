"""Datasets whose payloads are random bytes: for everything that moves bytes without looking into them."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from fractions import Fraction
from pathlib import Path

import pyarrow as pa

from ingest.clip import Prep, clip_id
from ingest.ledger import to_table
from ingest.schema import captions_schema, labels_schema, rights_schema
from ingest.shards import ShardWriter
from ingest.store import Dataset

CHECKOUT = Path(__file__).parents[2]
PREP = Prep()
CLOCK = {"stream_index": 0, "timebase_num": 1, "timebase_den": 16}
SHAPE = {"fps_num": 16, "fps_den": 1, "frame_count": 80, "width": 64, "height": 48}
MOVED = ("shard", "offset")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def made(root, *, sources=4, clips=3, size=2000, shards=1, first=0) -> Dataset:
    """A dataset of kept clips only, with captions; its content depends on the numbers alone."""
    dataset = Dataset.create(root, PREP.contract, PREP)
    numbers, rows, captions = list(range(first, first + sources)), [], []
    for shard in range(shards):
        mine = [row for number in numbers[shard::shards] for row in source_rows(number, clips)]
        kept = [row for row in mine if row["kind"] == "clip"]
        with ShardWriter(dataset.root) as writer:
            for row in kept:
                payload = random.Random(row["id"]).randbytes(size)
                sha256 = hashlib.sha256(payload)
                row |= {"payload_sha256": sha256.hexdigest(), "payload_kind": "h264_mp4"}
                ids = {"clip_id": bytes.fromhex(row["id"]), "payload_sha256": sha256.digest()}
                crc32 = zlib.crc32(payload)
                writer.append(ids | {"payload_crc32": crc32, "payload": payload})
                captions.append(said(row) | {"caption": f"größe {row['id'][:4]}", "rank": 0})
            for row, place in zip(kept, writer.close(), strict=True):
                row |= {name: getattr(place, name) for name in place.__slots__}
        rows += mine
    table = pa.Table.from_pylist(captions, schema=captions_schema())
    batch = dataset.next_batch("made")
    dataset.commit(to_table(rows), table, app_id="made", batch=batch)
    return dataset


def source_rows(number: int, clips: int) -> list[dict]:
    source = digest(f"source {number}")
    base = {
        "unit_id": digest(f"unit {number}"),
        "source_uri": f"/videos/{number}.mp4",
        "source_sha256": source,
        "source_bytes": 1000 + number,
        "prep_digest": PREP.digest(),
        "keep_digest": digest("keep"),
        "attempts": 1,
        "fate": "kept",
    }
    counted = {"kind": "source", "id": source, "num_candidates": clips, "num_kept": clips}
    return [base | counted, *(base | clip_row(source, index) for index in range(clips))]


def clip_row(source: str, index: int) -> dict:
    times = {"start_pts": 80 * index, "end_pts": 80 * index + 80}
    identity = clip_id(
        source_sha256=source,
        stream_index=0,
        timebase=Fraction(1, 16),
        prep_digest=PREP.digest(),
        **times,
    )
    when = {"start_s": 5.0 * index, "end_s": 5.0 * index + 5, "shot_index": index}
    motion = random.Random(identity).random()
    return CLOCK | SHAPE | times | when | {"kind": "clip", "id": identity, "motion": motion}


def said(row: dict, producer: str = "sidecar/v1") -> dict:
    return {"clip_id": row["id"], "producer": producer, "payload_sha256": row["payload_sha256"]}


def label(dataset: Dataset, text: str, producer: str = "test") -> None:
    """Give every clip a label."""
    rows = [
        said(row | {"id": row["clip_id"]}, producer) | {"label": text}
        for row in dataset.kept_clips().to_pylist()
    ]
    table = pa.Table.from_pylist(rows, schema=labels_schema())
    batch = dataset.next_annotation("labels", "test")
    dataset.annotate("labels", table, app_id="test", batch=batch)


def allow(dataset: Dataset, number: int, licence: str, consent: str = "given") -> None:
    """State the rights of one source."""
    at = f"2026-01-01T00:00:00.{number:06d}+00:00"
    row = {"source_sha256": digest(f"source {number}"), "producer": "test", "at": at}
    table = pa.Table.from_pylist(
        [row | {"licence": licence, "consent": consent}], schema=rights_schema()
    )
    batch = dataset.next_annotation("rights", "test")
    dataset.annotate("rights", table, app_id="test", batch=batch)


def told(dataset: Dataset) -> list[dict]:
    """What `clips` says of every clip, but for where its bytes lie."""
    return dataset.kept_clips().drop_columns(list(MOVED)).to_pylist()


def run(script: str, *args: object, kill_when=None) -> bool:
    """Run a script in a process of its own; kill it as soon as `kill_when()`; was it killed?"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None:
        if kill_when and kill_when():
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode != 0
