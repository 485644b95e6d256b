"""Datasets whose payloads are random bytes, one shard a source: quick to make, with every table."""

import json
import random
import zlib
from hashlib import sha256

import pyarrow as pa

from ingest.clip import Contract, Prep
from ingest.ledger import to_table
from ingest.schema import captions_schema, labels_schema, latents_schema, rights_schema
from ingest.shards import write_shard
from ingest.store import Dataset

SIZE = 3000


def name_of(text):
    return sha256(text.encode()).hexdigest()


def payload_of(text, size=SIZE):
    return random.Random(text).randbytes(size)


def stored(name, payload, source, kind):
    return {
        "clip_id": bytes.fromhex(name),
        "payload_sha256": sha256(payload).digest(),
        "payload_crc32": zlib.crc32(payload),
        "payload": payload,
        "source_sha256": bytes.fromhex(name_of(source)),
        "source_uri": f"/videos/{source}.mp4",
        "payload_kind": kind,
        "color": {"range": "tv", "primaries": "bt709", "transfer": "bt709", "matrix": "bt709"},
    }


def unit(root, source, clips=3, *, rejected=1, size=SIZE, note="", shard=True):
    """Write the shard of one source; return its ledger rows and captions."""
    same = {
        "unit_id": name_of(f"unit {source}{note}"),
        "source_uri": f"/videos/{source}.mp4",
        "source_sha256": name_of(source),
        "attempts": 1,
    }
    names = [f"{source}/{n}" for n in range(clips)]
    payloads = [payload_of(name, size) for name in names]
    facts = [
        stored(name_of(n), p, source, "h264_mp4") for n, p in zip(names, payloads, strict=True)
    ]
    places = write_shard(facts, root, {"made_by": source}) if shard else []
    rows = [
        same
        | {
            "kind": "source",
            "id": name_of(source),
            "fate": "kept" if clips else "rejected",
            "rule": None if clips else "no_clip_kept",
            "num_candidates": clips + rejected,
            "num_kept": clips,
            "message": f"{source} was seen",
        }
    ]
    for number, (name, payload, place) in enumerate(zip(names, payloads, places, strict=True)):
        rows.append(
            same
            | {
                "kind": "clip",
                "id": name_of(name),
                "fate": "kept",
                "payload_kind": "h264_mp4",
                "payload_sha256": sha256(payload).hexdigest(),
                "shard": place.shard,
                "offset": place.offset,
                "length": place.length,
                "crc32": place.crc32,
                "start_pts": 80 * number,
                "frame_count": 80,
                "width": 64,
                "height": 64,
                "fps_num": 16,
                "fps_den": 1,
                "motion": number / 10,
            }
        )
    for number in range(rejected):
        row = {"kind": "clip", "id": name_of(f"{source}/bad{number}"), "fate": "rejected"}
        rows.append(same | row | {"rule": "min_motion", "score": 0.1, "motion": 0.001})
    said = [
        {
            "clip_id": name_of(name),
            "producer": "test",
            "payload_sha256": sha256(payload).hexdigest(),
            "caption": f"caption of {name}",
            "rank": 0,
        }
        for name, payload in zip(names, payloads, strict=True)
    ]
    return to_table(rows), pa.Table.from_pylist(said, captions_schema())


def made(place, sources="abcd", clips=3, **settings):
    """Return a dataset of the named sources, each committed by itself."""
    dataset = Dataset.create(place, Contract(), Prep())
    for source in sources:
        add(dataset, source, clips, **settings)
    return dataset


def made_at_once(place, sources, clips=3, **settings):
    """Return a dataset of the named sources, all in one commit."""
    dataset = Dataset.create(place, Contract(), Prep())
    units = [unit(dataset.root, source, clips, **settings) for source in sources]
    rows, said = (pa.concat_tables(tables) for tables in zip(*units, strict=True))
    dataset.commit(rows, said, app_id="made", batch=1)
    return dataset


def add(dataset, source, clips=3, **settings):
    rows, said = unit(dataset.root, source, clips, **settings)
    dataset.commit(rows, said, app_id="made", batch=dataset.next_batch("made"))


def annotate(dataset, sources="abcd", clips=3):
    """Give every clip a label and latents, every source rights."""
    labels, latents, rights = [], [], []
    for source in sources:
        names = [f"{source}/{n}" for n in range(clips)]
        facts = [
            stored(name_of(n), payload_of(f"latent {n}", 480), source, "latent_f16_tchw")
            for n in names
        ]
        places = write_shard(facts, dataset.root)
        for name, place in zip(names, places, strict=True):
            same = {
                "clip_id": name_of(name),
                "producer": "test",
                "payload_sha256": sha256(payload_of(name)).hexdigest(),
            }
            labels.append(same | {"label": f"label of {name}"})
            where = {
                "shard": place.shard,
                "offset": place.offset,
                "length": place.length,
                "crc32": place.crc32,
            }
            latents.append(
                same
                | where
                | {"payload_kind": "latent_f16_tchw", "shape": json.dumps([2, 4, 5, 6])}
            )
        said = {"licence": "cc-by-4.0", "consent": "given", "at": "2026-01-01T00:00:00+00:00"}
        rights.append({"source_sha256": name_of(source), "producer": "test"} | said)
    for name, rows, schema in (
        ("labels", labels, labels_schema()),
        ("latents", latents, latents_schema()),
        ("rights", rights, rights_schema()),
    ):
        table = pa.Table.from_pylist(rows, schema)
        dataset.annotate(name, table, app_id="made", batch=dataset.next_annotation(name, "made"))


def tree(root):
    """Return all bytes below a root by name."""
    return {entry.name: root.read(entry.name) for entry in list(root.names())}


def contents(dataset):
    """Return the payload bytes of every clip and of every clip's latents, read through the tables."""
    from ingest.shards import read_payload  # noqa: PLC0415

    found = {}
    for kind, rows in (("clip", dataset.kept_clips()), ("latents", dataset.annotation("latents"))):
        for row in rows.to_pylist():
            place = row["shard"], row["offset"], row["length"], row["crc32"]
            found[kind, row["clip_id"]] = bytes(
                read_payload(dataset.root, *place, clip_id=row["clip_id"])
            )
    return found
