import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ingest.augment import Frames
from ingest.objects import Root
from ingest.reader import ViewReader, latent_rows
from ingest.schema import latents_schema, view_schema
from ingest.shards import CorruptPayload
from tests.ingest.made_views import make, place, stored

AS_STORED = Frames(width=24, height=16)
CHECKOUT = Path(__file__).parents[2]
SMALL_READER = """
import json, sys, time
began = time.process_time()
from ingest.reader import ViewReader
import_s = time.process_time() - began
from random import Random
reader, draws = ViewReader(sys.argv[1], sys.argv[2]), Random(0)
read = sum(len(reader.payload(draws.randrange(len(reader)))) for _ in range(3000))
status = open("/proc/self/status").read()
heavy = {"torch", "cv2", "decord", "pandas", "deltalake"} & set(sys.modules)
print(json.dumps([import_s, int(status.split("RssAnon:")[1].split()[0]), read, sorted(heavy)]))
"""


@pytest.mark.parametrize("kind", ["raw_u8_thwc", "png", "h264_mp4"])
def test_every_kind_reads_back_exactly(tmp_path, kind):
    made = make(tmp_path, kind=kind, frames=1 if kind == "png" else 6)
    reader = ViewReader(tmp_path, made.view)
    assert (len(reader), reader.digest) == (7, made.view.digest)
    for index, frames in enumerate(made.frames):
        assert reader.row(index) == made.rows[index]
        assert bytes(reader.payload(index)) == stored(frames, kind)
        high, low = reader.frames(index, AS_STORED)
        assert np.array_equal(high, frames)
        assert len(low) == 0
    for index in (-1, 7):
        with pytest.raises(IndexError, match="a view of 7"):
            reader.payload(index)


def test_a_view_is_found_by_file_digest_or_itself(tmp_path):
    made = make(tmp_path, clips=3)
    for view in (made.view, made.view.digest, tmp_path / made.view.name):
        assert ViewReader(str(tmp_path), view).row(2) == made.rows[2]


def test_a_view_of_several_pieces(tmp_path):
    made = make(tmp_path, clips=9)
    plain = [row | {"clip_id": bytes.fromhex(row["clip_id"])} for row in made.rows]
    schema = view_schema().with_metadata({"kinoray.view": "pieces"})
    path = tmp_path / "pieces.arrow"
    options = pa.ipc.IpcWriteOptions(unify_dictionaries=True)
    pieces = [pa.Table.from_pylist(plain[k : k + 4], schema) for k in (0, 4, 8)]
    with pa.ipc.new_file(str(path), schema, options=options) as writer:
        writer.write_table(pa.concat_tables(pieces).unify_dictionaries())
    reader = ViewReader(tmp_path, path)
    assert len(reader) == 9
    for index, frames in enumerate(made.frames):
        assert reader.row(index) == made.rows[index]
        assert bytes(reader.payload(index)) == frames.tobytes()
    assert reader.numbers("length").tolist() == [row["length"] for row in made.rows]


def test_random_frames_are_a_function_of_seed_and_epoch(tmp_path):
    made = make(tmp_path, frames=12, clips=3)
    wanted = Frames(
        width=8, height=8, frames=4, start="random", crop="random", flip_share=0.5, low=2
    )
    reader, again = ViewReader(tmp_path, made.view), ViewReader(tmp_path, made.view)
    views = [reader.frames(1, wanted, seed=3, epoch=epoch) for epoch in range(5)]
    for epoch, (high, low) in enumerate(views):
        assert (high.shape, low.shape) == ((4, 8, 8, 3), (4, 4, 4, 3))
        for one, other in zip(
            (high, low), again.frames(1, wanted, seed=3, epoch=epoch), strict=True
        ):
            assert np.array_equal(one, other)
    assert len({high.tobytes() for high, _ in views}) > 2
    with pytest.raises(ValueError, match=f"clip {made.ids[0]}: 13 frames at stride 1 span 13"):
        reader.frames(0, Frames(width=8, height=8, frames=13))


def test_what_is_spoilt_is_named(tmp_path):
    made = make(tmp_path)
    bad = made.spoil(4)[0]
    reader = ViewReader(tmp_path, made.view)
    for read in (reader.payload, lambda index: reader.frames(index, AS_STORED)):
        with pytest.raises(CorruptPayload, match=f"{bad}: checksum"):
            read(4)
    reader.payload(3)
    gone = make(tmp_path / "other", clips=2, shards=1)
    (tmp_path / "other" / gone.rows[0]["shard"]).unlink()
    with pytest.raises(FileNotFoundError, match=gone.rows[0]["shard"]):
        ViewReader(gone.root, gone.view).frames(0, AS_STORED)


def test_a_store_is_asked_once_for_each_clip(bucket, monkeypatch):
    made = make(bucket, kind="png", frames=1)
    reader = ViewReader(bucket, made.view)
    asked = []
    inner = Root.read_range

    def counted(self, name, offset, length):
        asked.append((name, offset, length))
        return inner(self, name, offset, length)

    monkeypatch.setattr(Root, "read_range", counted)  # counts, and then does the real thing
    for index, frames in enumerate(made.frames):
        assert np.array_equal(reader.frames(index, AS_STORED)[0], frames)
    assert asked == [(row["shard"], row["offset"], row["length"]) for row in made.rows]


def latents_of(made, arrays, kind):
    places = place(made.root, [(n, a.tobytes()) for n, a in zip(made.ids, arrays, strict=True)])
    rows = [
        {
            "clip_id": name,
            "producer": "vae",
            "payload_sha256": "",
            "payload_kind": kind,
            "shape": json.dumps(array.shape),
            **found,
        }
        for name, array, found in zip(made.ids, arrays, places, strict=True)
    ]
    other = [row | {"producer": "other", "shape": "[1]"} for row in rows]
    return latent_rows(pa.Table.from_pylist(rows + other, latents_schema()), producer="vae")


@pytest.mark.parametrize(
    ("kind", "dtype", "shape"),
    [("latent_f16_tchw", np.float16, (3, 4, 2, 5)), ("tokens_i32", np.int32, (11,))],
)
def test_latents_and_tokens_read_back_exactly(tmp_path, kind, dtype, shape):
    made = make(tmp_path, clips=5)
    draws = np.random.default_rng(0)
    arrays = [(draws.standard_normal(shape) * 100).astype(dtype) for _ in made.ids]
    rows = latents_of(made, arrays, kind)
    reader = ViewReader(tmp_path, made.view, latents=rows)
    for index, array in enumerate(arrays):
        assert (reader.latents(index).dtype, reader.latents(index).shape) == (dtype, shape)
        assert np.array_equal(reader.latents(index), array)
    with pytest.raises(ValueError, match=f"clip {made.ids[0]}: has no latents"):
        ViewReader(tmp_path, made.view).latents(0)
    rows[made.ids[1]] |= {"shape": "[7, 7]"}
    rows[made.ids[2]] |= {"payload_kind": "png"}
    with pytest.raises(CorruptPayload, match=f"{made.ids[1]}: .* bytes are no"):
        reader.latents(1)
    with pytest.raises(ValueError, match=f"{made.ids[2]}: png holds no latents"):
        reader.latents(2)


def test_a_process_that_only_fetches_is_small(tmp_path):
    made = make(tmp_path, clips=40, frames=8, size=(64, 48))
    command = [sys.executable, "-c", SMALL_READER, str(tmp_path), made.view.digest]
    best_s = 9.0
    for _ in range(3):  # the least of three: the machine has other work, too
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=True, timeout=60)
        import_s, anonymous_kb, read, heavy = json.loads(done.stdout)
        best_s = min(best_s, import_s)
        assert (read, heavy) == (3000 * 8 * 64 * 48 * 3, [])
        assert anonymous_kb <= 40 << 10
        if best_s <= 0.3:
            return
    pytest.fail(f"importing the reader took {best_s:.2f} CPU s")
