import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import compact as compacting
from ingest.compact import compact, follow, plan, rewrite
from ingest.order import Cursor
from ingest.purge import purge
from ingest.repack import facts, metadata
from ingest.shards import CorruptPayload, read_payload
from ingest.store import Dataset, ReadOnly
from ingest.verify import verify
from ingest.versions import tag
from ingest.views import open_view
from tests.ingest.dying import dies
from tests.ingest.made_shards import SIZE, add, annotate, contents, made, name_of

TARGET = 32_000
STEPS = [
    ("ingest.compact", "rewrite", "after"),
    ("ingest.rewrite", "_commit", "before"),
    ("ingest.compact", "commit", "after"),
    ("ingest.compact", "write", "before"),
]


def order_of(dataset, digest):
    """Return the payloads that the first steps of a training run see, read through the view."""
    view, found = open_view(dataset.root, digest)
    assert found == digest
    cursor = Cursor(view_digest=digest, seed=3, global_batch=4)
    index = cursor.indices(np.arange(2 * view.num_rows), view.num_rows)
    rows = view.take(pa.array(index)).to_pylist()
    seen = []
    for row in rows:
        at = row["shard"], row["offset"], row["length"], row["crc32"]
        seen.append((row["clip_id"], row["caption"], bytes(read_payload(dataset.root, *at))))
    return seen


def shards(dataset):
    return sorted(e.name for e in dataset.root.names("data"))


def test_in_an_object_store(bucket):
    dataset = made(bucket, "abc")
    annotate(dataset, "ab")
    view = dataset.freeze_view()
    digest, old, order = dataset.digest(), contents(dataset), order_of(dataset, view.digest)
    done = compact(dataset, target_bytes=TARGET)
    assert (done.shards_before, done.shards_after, done.clips, done.views) == (5, 2, 15, 1)
    fresh = Dataset.open(bucket)
    assert (fresh.digest(), contents(fresh)) == (digest, old)
    assert order_of(fresh, view.digest) == order
    assert not plan(fresh, TARGET)


def test_packing_changes_where_bytes_lie_and_nothing_else(tmp_path):
    place = tmp_path
    dataset = made(place, "abcdefgh")
    annotate(dataset, "ab")
    view = dataset.freeze_view()
    one = tag(dataset, "one")
    digest, old, order = dataset.digest(), contents(dataset), order_of(dataset, view.digest)
    before = shards(dataset)
    told = []
    done = compact(dataset, target_bytes=TARGET, progress=lambda *p: told.append(p))
    assert (done.shards_before, done.shards_after, done.clips, done.views) == (10, 3, 30, 1)
    assert told[-1] == (done.bytes, done.bytes) == (24 * SIZE + 6 * 480,) * 2
    fresh = Dataset.open(place)
    assert (fresh.digest(), contents(fresh)) == (digest, old)
    assert order_of(fresh, view.digest) == order
    used = set(fresh.kept_clips().column("shard").to_pylist())
    assert not used & set(before)
    assert len(used) == 2
    # A source's clips lie together, in the order of time; what the shards said of themselves stays.
    for shard in used:
        rows = facts(fresh.root, shard, ["source_sha256", "clip_id"]).to_pylist()
        assert [r["source_sha256"] for r in rows] == sorted(r["source_sha256"] for r in rows)
        sources = [s for s in "abcdefgh" if name_of(s) in {r["source_sha256"].hex() for r in rows}]
        assert metadata(fresh.root, shard)["made_by"] == ", ".join(sources)
    assert Dataset.open(place, "one").digest() == one.digest
    assert verify(Dataset.open(place, "one")).ok
    assert verify(fresh, how="sha256").ok
    assert fresh.history()[-1]["operation"] == "compact"
    again = compact(fresh, target_bytes=TARGET)
    assert (again.shards_before, again.clips, again.views) == (0, 0, 0)
    assert shards(fresh) == sorted({*before, *shards(fresh)})  # the old ones wait for `collect`
    with pytest.raises(ReadOnly):
        compact(Dataset.open(place, "one"))


def test_a_dry_run_touches_nothing(tmp_path):
    dataset = made(tmp_path, "abc")
    before, version = shards(dataset), dataset.versions()
    done = compact(dataset, target_bytes=TARGET, dry_run=True)
    assert (done.shards_before, done.shards_after, done.clips) == (3, 1, 9)
    assert (shards(dataset), Dataset.open(tmp_path).versions()) == (before, version)


def test_a_shard_with_payloads_that_no_row_names_is_rewritten(tmp_path):
    dataset = made(tmp_path, "a", 20)
    assert not plan(dataset, 100)  # one big shard, whole
    dataset.table("ledger").delta.delete(f"id = '{name_of('a/7')}'")
    (group,) = plan(Dataset.open(tmp_path), 20 * SIZE)
    assert group.num_rows == 19
    done = compact(dataset, target_bytes=20 * SIZE)
    assert (done.shards_before, done.shards_after, done.clips) == (1, 1, 19)
    assert not plan(dataset, 20 * SIZE)


def test_a_clip_that_two_units_keep_is_packed_once(tmp_path):
    dataset = made(tmp_path, "ab")
    add(dataset, "a", note="by another recipe")
    digest = dataset.digest()
    compact(dataset, target_bytes=TARGET)
    assert dataset.digest() == digest
    assert len(set(dataset.ledger().column("shard").drop_null().to_pylist())) == 1
    assert verify(dataset).ok


@pytest.mark.parametrize("what", ["flipped", "cut", "gone"])
def test_damage_stops_it_before_anything_changes(tmp_path, what):
    dataset = made(tmp_path, "abc")
    row = dataset.kept_clips().to_pylist()[4]
    path, version = tmp_path / row["shard"], dataset.version
    data = bytearray(path.read_bytes())
    data[row["offset"] + 5] ^= 4
    path.write_bytes(data if what == "flipped" else data[: len(data) // 2])
    if what == "gone":
        path.unlink()
    with pytest.raises(CorruptPayload, match=row["shard"]) as caught:
        compact(dataset, target_bytes=TARGET)
    assert "clip" in str(caught.value)
    assert what != "flipped" or row["clip_id"] in str(caught.value)
    assert Dataset.open(tmp_path).version == version
    assert not [e for e in dataset.root.names("data") if "writing" in e.name]


def test_killed_at_one_step_after_the_other(tmp_path):
    dataset = made(tmp_path, "abcdef")
    annotate(dataset, "ab")
    view = dataset.freeze_view()
    digest, old, order = dataset.digest(), contents(dataset), order_of(dataset, view.digest)
    for step in STEPS:
        assert dies("tests.ingest.test_compact:open_and_compact", str(tmp_path), at=step)
        dead = Dataset.open(tmp_path)
        assert (dead.digest(), contents(dead)) == (digest, old)
        assert order_of(dead, view.digest) == order
        assert verify(dead).ok
    compact(dead, target_bytes=TARGET)
    assert (dead.digest(), contents(dead)) == (digest, old)
    assert order_of(dead, view.digest) == order
    in_view = set(open_view(dead.root, view.digest)[0].column("shard").to_pylist())
    assert in_view == set(dead.kept_clips().column("shard").to_pylist())
    assert not plan(dead, TARGET)


def open_and_compact(place):
    compact(Dataset.open(place), target_bytes=TARGET)


def test_rows_that_come_meanwhile_stay(tmp_path, monkeypatch):
    dataset = made(tmp_path, "abc")
    real = compacting.commit

    def late(*args):
        add(Dataset.open(tmp_path), "d")
        return real(*args)

    monkeypatch.setattr(compacting, "commit", late)
    compact(dataset, target_bytes=TARGET)
    assert dataset.refresh()
    assert dataset.kept_clips().num_rows == 12
    assert verify(dataset).ok


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_taken_down_meanwhile_is_not_kept(tmp_path, monkeypatch, when):
    dataset = made(tmp_path, "abc")
    secret = contents(dataset)["clip", name_of("b/1")]
    real = compacting.commit

    def late(*args):
        if when == "after":
            real(*args)
        purge(Dataset.open(tmp_path), clips=[name_of("b/1")], reason="asked")
        return real(*args)

    monkeypatch.setattr(compacting, "commit", late)
    compact(dataset, target_bytes=TARGET)
    assert not [e.name for e in dataset.root.names() if secret in dataset.root.read(e.name)]
    assert dataset.kept_clips().num_rows == 8
    assert verify(dataset).ok


def test_views_follow_the_newest_version_only_where_it_has_the_payload(tmp_path):
    dataset = made(tmp_path, "ab")
    view = dataset.freeze_view()
    dataset.table("ledger").delta.delete(f"source_sha256 = '{name_of('a')}'")
    order = order_of(dataset, view.digest)
    dataset.refresh()
    assert follow(dataset) == 0
    compact(dataset, target_bytes=TARGET)
    assert order_of(dataset, view.digest) == order


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("hp"), st.integers(1, 900)), max_size=60),
    st.integers(100, 4000),
)
def test_groups_are_near_the_target_and_stay_as_they_are(clips, target):
    rows = pa.table(
        {
            "old_shard": [f"s{n % 7}" for n in range(len(clips))],
            "kind": sorted(kind for kind, _ in clips),
            "length": pa.array([length for _, length in clips], pa.int64()),
            "at": range(len(clips)),
        }
    )
    groups = compacting._cut(rows, target)
    assert [n for g in groups for n in g.column("at").to_pylist()] == list(range(len(clips)))
    for kind in "hp":
        sums = [
            sum(g.column("length").to_pylist())
            for g in groups
            if g.column("kind")[0].as_py() == kind
        ]
        assert all(len(set(g.column("kind").to_pylist())) == 1 for g in groups)
        # Alone it may be small; else none would be chosen to be packed again.
        assert len(sums) <= 1 or min(sums) >= target / 2
        assert not sums or max(sums) <= 1.5 * target + 900


def test_real_clips_decode_to_the_same_frames(small_dataset, tmp_path):
    import shutil  # noqa: PLC0415

    from ingest.loader import read_clip  # noqa: PLC0415

    shutil.copytree(small_dataset.root.path, tmp_path / "d")
    dataset = Dataset.open(tmp_path / "d")
    rows = dataset.kept_clips().to_pylist()
    some = random.Random(1).sample(range(len(rows)), 2)
    old = [read_clip(dataset.root, rows[k], 48, 32) for k in some]
    compact(dataset)
    rows = dataset.kept_clips().to_pylist()
    assert len({row["shard"] for row in rows}) == 1
    for k, frames in zip(some, old, strict=True):
        assert np.array_equal(read_clip(dataset.root, rows[k], 48, 32), frames)
    assert verify(dataset, how="decode").ok


def test_a_group_is_rewritten_to_the_same_shard_anywhere(tmp_path):
    dataset = made(tmp_path, "ab")
    (group,) = plan(dataset, TARGET)
    first, second = rewrite(dataset.root, group), rewrite(dataset.root, group)
    assert first.equals(second)
