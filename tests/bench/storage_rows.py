"""Rows for the storage bench's own datasets: a corpus as a dataset, and a ledger of a million rows."""

import hashlib
import random
import zlib
from collections.abc import Iterator
from functools import cache

import pyarrow as pa

from ingest.ledger import to_table
from ingest.shards import Location, write_shard
from ingest.store import Dataset
from tests.bench.storage_corpus import Corpus

SHARD_BYTES = 64_000_000
UNIT_CLIPS = 9


def commit_clips(corpus: Corpus, dataset: Dataset) -> pa.Table:
    """Write the corpus into shards of the dataset and return the ledger rows that name them."""
    payloads, places = corpus.payloads, list[Location]()
    while len(places) < len(payloads):
        count, size = len(places), 0
        while count < len(payloads) and size < SHARD_BYTES:
            size += len(payloads[count])
            count += 1
        places += write_shard(map(payload_row, payloads[len(places) : count]), dataset.root)
    rows = zip(payloads, corpus.scores, places, strict=True)
    return to_table(
        {
            **_clip(hashlib.sha256(payload).hexdigest()),
            "motion": score,
            "shard": place.shard,
            "offset": place.offset,
            "length": place.length,
            "crc32": place.crc32,
        }
        for payload, score, place in rows
    )


def payload_row(payload: bytes) -> dict[str, object]:
    name = hashlib.sha256(payload).digest()
    return {
        "clip_id": name,
        "payload_sha256": name,
        "payload_crc32": zlib.crc32(payload),
        "payload": payload,
    }


def _clip(name: str) -> dict[str, object]:
    return {
        "unit_id": name,
        "kind": "clip",
        "id": name,
        "fate": "kept",
        "attempts": 1,
        "source_uri": "film.mp4",
        "source_sha256": name,
        "frame_count": 80,
        "fps_num": 16,
        "fps_den": 1,
        "width": 320,
        "height": 320,
        "payload_kind": "h264_mp4",
        "payload_sha256": name,
    }


def batches(num_units: int) -> Iterator[pa.Table]:
    """Yield ledger rows without end, `num_units` units a table: a source and nine kept clips each.

    Ids are hashes and scores are random, so that neither compresses better than real ones would.
    """
    first = 0
    while True:
        yield _units(first, num_units)
        first += num_units


@cache
def _template(num_units: int) -> pa.Table:
    clip = {
        "motion": 0.0,
        "shard": f"data/00/{'0' * 64}.arrow",
        "offset": 0,
        "length": 0,
        "crc32": 0,
    }
    unit = [{**_clip(""), "kind": "source"}, *({**_clip(""), **clip} for _ in range(UNIT_CLIPS))]
    return to_table(unit * num_units)


def _units(first: int, num_units: int) -> pa.Table:
    table = _template(num_units)
    rows = UNIT_CLIPS + 1
    units = [_hash(f"unit {first + i // rows}") for i in range(num_units * rows)]
    ids = [_hash(f"row {first * rows + i}") for i in range(num_units * rows)]
    chance = random.Random(first)
    columns: dict[str, list[object]] = {
        "unit_id": units,
        "source_sha256": units,
        "id": ids,
        "payload_sha256": ids,
        "motion": [chance.random() for _ in ids],
        "offset": [chance.randrange(1 << 27) for _ in ids],
        "length": [chance.randrange(50_000, 250_000) for _ in ids],
        "crc32": [chance.randrange(1 << 32) for _ in ids],
    }
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        field = table.schema.field(place)
        table = table.set_column(place, field, pa.array(values, field.type))
    return table


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
