import random
import shutil

import pytest

from ingest.store import Dataset
from ingest.verify import verify
from ingest.versions import tag
from tests.ingest.made_shards import add, annotate, made, made_at_once, name_of

SOURCES, ROUNDS = "abcdefghijklmnopqrstu", 4  # with those of latents 25 shards: 100 damages
CLIPS = len(SOURCES) * 2 + 8
ROWS = {}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    dataset = made_at_once(tmp_path_factory.mktemp("whole"), SOURCES, 2, size=400)
    annotate(dataset, "abcd", 2)
    return dataset


@pytest.fixture
def shards(whole):
    """The bytes of every shard; what a test does to the files is undone after it."""
    root = whole.root
    found = {e.name: root.read(e.name) for e in list(root.names("data"))}
    yield found
    for name, data in found.items():
        root.replace(name, data)


def named(result, shard, dataset):
    """Whether one line names the shard and one of its clips."""
    lines = [line for line in result.problems if shard in line]
    ids = [row["clip_id"] for row in rows_of(dataset) if row["shard"] == shard] if lines else []
    return any(name in line for name in ids for line in lines)


def unnamed(result, dataset):
    """Return the shards of which no line names both the shard and one of its clips."""
    told = {
        row["shard"]
        for line in result.problems
        for row in rows_of(dataset)
        if row["shard"] in line and row["clip_id"] in line
    }
    return sorted({row["shard"] for row in rows_of(dataset)} - told)


def rows_of(dataset):
    at = str(dataset.root), tuple(dataset.versions().values())
    if at not in ROWS:
        latents = dataset.annotation("latents").to_pylist()
        ROWS[at] = [*dataset.kept_clips().to_pylist(), *latents]
    return ROWS[at]


def test_what_is_whole_has_no_problem(whole):
    told = []
    for how in ("crc", "sha256"):
        found = verify(whole, how=how, threads=2, progress=lambda *p: told.append(p))
        assert (found.ok, found.clips, found.shards, found.problems) == (True, CLIPS, 25, ())
    assert told[-1] == (CLIPS, CLIPS)
    with pytest.raises(ValueError, match="one of crc, sha256, decode"):
        verify(whole, how="quickly")


def test_every_flipped_bit_of_a_shard_is_found(whole, shards):
    draw = random.Random(5)
    for _ in range(ROUNDS):
        for shard, data in shards.items():
            flipped, bit = bytearray(data), draw.randrange(8 * len(data))
            flipped[bit // 8] ^= 1 << bit % 8
            whole.root.replace(shard, flipped)
        assert unnamed(verify(whole, how="sha256", threads=1), whole) == []


def test_every_flipped_bit_of_a_payload_is_found_by_its_checksum(whole, shards):
    draw = random.Random(6)
    rows = rows_of(whole)
    for _ in range(ROUNDS):
        hit = set()
        for shard, data in shards.items():
            row = draw.choice([row for row in rows if row["shard"] == shard])
            flipped = bytearray(data)
            flipped[row["offset"] + draw.randrange(row["length"])] ^= 1 << draw.randrange(8)
            whole.root.replace(shard, flipped)
            hit.add((shard, row["clip_id"]))
        lines = verify(whole, threads=1).problems
        assert len(lines) == len(hit)
        assert all(any(s in line and c in line for line in lines) for s, c in hit)


@pytest.mark.parametrize("how", ["crc", "sha256"])
def test_every_cut_and_every_swap_is_found(whole, shards, how):
    draw, ends = random.Random(7), {}
    for row in rows_of(whole):
        ends[row["shard"]] = max(ends.get(row["shard"], 0), row["offset"] + row["length"])
    for number in range(1, ROUNDS // 2 + 1):
        for shard, data in shards.items():
            # A checksum of payloads knows nothing of what lies behind the last of them.
            end = ends[shard] if how == "crc" else len(data)
            whole.root.replace(shard, data[: draw.randrange(end)])
        assert unnamed(verify(whole, how=how, threads=1), whole) == []
        names = sorted(shards)
        for shard, other in zip(names, [*names[number:], *names[:number]], strict=True):
            whole.root.replace(shard, shards[other])
        assert unnamed(verify(whole, how=how, threads=1), whole) == []


def test_what_is_missing(whole, shards):
    shard = whole.kept_clips().column("shard")[0].as_py()
    view = whole.freeze_view()
    whole.root.delete(shard)
    found = verify(whole).problems
    assert named(verify(whole), shard, whole)
    assert f"view {view.digest}: 1 of its shards are gone, such as {shard}" in found
    whole.root.replace(shard, shards[shard])
    whole.root.replace(view.name, b"nothing")
    assert "not a view" in verify(whole).problems[0]
    whole.root.delete(view.name)


def test_books_that_do_not_balance_and_other_bytes(tmp_path):
    dataset = made(tmp_path, "a")
    tag(dataset, "one")
    clip = name_of("a/1")
    delta = dataset.table("ledger").delta
    delta.update(updates={"payload_sha256": "'0'"}, predicate=f"id = '{clip}'")
    (line,) = verify(Dataset.open(tmp_path), how="sha256").problems
    assert f"clip {clip}: hash differs" in line
    delta.update(updates={"num_kept": "2"}, predicate="kind = 'source'")
    assert "2 kept counted but 3 kept rows" in verify(Dataset.open(tmp_path)).problems[0]
    assert verify(Dataset.open(tmp_path, "one"), how="sha256").ok  # each version for itself
    made(tmp_path / "empty", "")
    assert verify(Dataset.open(tmp_path / "empty")).ok


def test_every_frame_decodes(small_dataset, tmp_path):
    shutil.copytree(small_dataset.root.path, tmp_path / "d")
    dataset = Dataset.open(tmp_path / "d")
    dataset.table("ledger").delta.delete("start_s > 3 AND kind = 'clip'")
    dataset.table("ledger").delta.update(
        updates={"num_candidates": "1", "num_kept": "1"}, predicate="kind = 'source'"
    )
    dataset.refresh()
    first = verify(dataset, how="decode")
    assert not [line for line in first.problems if "decode" in line]
    clip = dataset.kept_clips().column("clip_id")[0].as_py()
    dataset.table("ledger").delta.update(updates={"frame_count": "79"}, predicate=f"id = '{clip}'")
    lines = [
        line for line in verify(Dataset.open(tmp_path / "d"), how="decode").problems if clip in line
    ]
    assert "its row says (79," in lines[0]


def test_latents_and_raw_frames(tmp_path):
    dataset = made(tmp_path, "a", 1, size=4 * 6 * 8 * 3)
    annotate(dataset, "a", 1)
    delta = dataset.table("ledger").delta
    shape = {"payload_kind": "'raw_u8_thwc'", "frame_count": "4", "height": "6", "width": "8"}
    delta.update(updates=shape, predicate="kind = 'clip'")
    found = verify(Dataset.open(tmp_path), how="decode")
    assert [line for line in found.problems if "latent" in line or "decode" in line] == []
    delta.update(updates={"frame_count": "5"}, predicate="fate = 'kept'")
    dataset.table("annotations/latents").delta.update(updates={"shape": "'[1]'"})
    lines = verify(Dataset.open(tmp_path), how="decode").problems
    assert any("480 bytes, not 2" in line for line in lines)
    assert any("raw" in line or "bytes" in line for line in lines if name_of("a/0") in line)


def test_in_an_object_store(bucket):
    dataset = made(bucket, "ab")
    assert verify(dataset, how="sha256").ok
    shard = dataset.kept_clips().column("shard")[0].as_py()
    data = dataset.root.read(shard)
    for broken in (data[:2000], data[:-1] + b"x", b""):
        dataset.root.replace(shard, broken)
        assert named(verify(dataset, how="sha256"), shard, dataset)
    dataset.root.delete(shard)
    assert named(verify(dataset), shard, dataset)
    add(dataset, "c")
    assert len(verify(dataset).problems) == 1
