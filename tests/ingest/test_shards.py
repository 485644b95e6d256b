import errno
import hashlib
import os
import pickle
import random
import subprocess
import sys
import zlib
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.files import StorageError
from ingest.schema import payload_schema
from ingest.shards import CorruptPayload, ShardWriter, read_payload, write_shard

CHECKOUT = Path(__file__).parents[2]


def row(payload: bytes, name: bytes = b"") -> dict:
    return {
        "clip_id": hashlib.sha256(name or payload).digest(),
        "payload_sha256": hashlib.sha256(payload).digest(),
        "payload_crc32": zlib.crc32(payload),
        "payload_kind": "h264_mp4",
        "payload": payload,
    }


def read(root, place):
    return bytes(read_payload(root, place.shard, place.offset, place.length, place.crc32))


@settings(deadline=None, max_examples=25)
@given(payloads=st.lists(st.binary(min_size=1, max_size=5000), min_size=1, max_size=150))
def test_what_is_read_is_what_was_written(tmp_path_factory, payloads):
    root = tmp_path_factory.mktemp("shard")
    places = write_shard(map(row, payloads), root)
    assert [read(root, place) for place in places] == payloads
    raw = (root / places[0].shard).read_bytes()
    assert [raw[p.offset : p.offset + p.length] for p in places] == payloads  # absolute ranges


def test_the_name_is_the_content_and_writing_twice_is_once(tmp_path):
    rows = [row(b"a" * 100), row(b"b" * 200)]
    first, second = write_shard(rows, tmp_path), write_shard(rows, tmp_path)
    assert first == second
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in files] == [files[0].stem]
    assert files[0].parent.name == files[0].stem[:2]


def test_a_shard_is_a_plain_arrow_file(tmp_path):
    places = write_shard([row(bytes([n]) * (1 << 20)) for n in range(20)], tmp_path)
    reader = pa.ipc.open_file(str(tmp_path / places[0].shard))
    assert reader.num_record_batches > 1  # bounded batches, not one of everything
    table = reader.read_all()
    assert table.schema.equals(payload_schema())
    assert table.column("payload").to_pylist() == [bytes([n]) * (1 << 20) for n in range(20)]


def test_an_empty_or_abandoned_shard_leaves_nothing(tmp_path):
    assert write_shard([], tmp_path) == []
    with pytest.raises(ValueError, match="payload"):
        write_shard([row(b"")], tmp_path)

    def fail():
        with ShardWriter(tmp_path) as writer:
            for n in range(100):
                writer.append(row(b"x" * 1000, bytes([n])))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_every_damage_is_told_with_shard_and_clip(tmp_path):
    payloads = [random.Random(n).randbytes(4000) for n in range(10)]
    places = write_shard(map(row, payloads), tmp_path)
    path = tmp_path / places[0].shard
    good = path.read_bytes()
    generator = random.Random(0)
    for _trial in range(100):
        place = generator.choice(places)
        bit = generator.randrange(place.offset * 8, (place.offset + place.length) * 8)
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        other = tmp_path / f"bad{_trial}"
        other.write_bytes(bad)
        with pytest.raises(CorruptPayload, match=rf"{other.name}.*clip c7"):
            read_payload(
                tmp_path, other.name, place.offset, place.length, place.crc32, clip_id="c7"
            )
    assert read(tmp_path, places[3]) == payloads[3]
    path.write_bytes(good[: places[5].offset + 10])  # truncated under a reader that has it open
    with pytest.raises(CorruptPayload, match="shorter"):
        read(tmp_path, places[5])
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    with pytest.raises(CorruptPayload, match="shorter"):
        read_payload(tmp_path, empty.name, 0, 1, 0)
    with pytest.raises(FileNotFoundError):
        read_payload(tmp_path, "gone", 0, 1, 0)
    swapped = places[1]
    with pytest.raises(CorruptPayload):
        read_payload(tmp_path, "bad0", swapped.offset, swapped.length, places[2].crc32)


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests_shards import row
from ingest.shards import StorageError, write_shard
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_shard([row(bytes([n]) * 50_000) for n in range(200)], Path(sys.argv[1]))
except StorageError as error:
    print(error.errno, error.filename)
"""


def test_a_full_disk_is_told_with_the_path_and_harms_nothing(tmp_path):
    kept = write_shard([row(b"kept" * 100)], tmp_path)[0]
    helper = tmp_path / "code"
    helper.mkdir()
    (helper / "tests_shards.py").write_text(Path(__file__).read_text())
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(helper)],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        check=True,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
    )
    code, name = done.stdout.split(maxsplit=1)
    assert int(code) == errno.EFBIG
    assert name.startswith(str(tmp_path / "data"))
    assert read(tmp_path, kept) == b"kept" * 100
    assert [path.name for path in (tmp_path / "data").rglob("*") if path.is_file()] == [
        Path(kept.shard).name
    ]


def test_a_read_only_place_is_a_storage_error(tmp_path):
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="data"):
        write_shard([row(b"x")], tmp_path)


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(StorageError(errno.ENOSPC, "No space left", "/data/x")))
    assert (error.errno, error.filename, error.fatal) == (errno.ENOSPC, "/data/x", True)
    assert str(pickle.loads(pickle.dumps(CorruptPayload("clip x")))) == "clip x"
