import os
import shutil
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest import purge as purging
from ingest import remnants
from ingest.purge import UnknownName, purge
from ingest.refs import read_tag
from ingest.shards import CorruptPayload
from ingest.store import Dataset, ReadOnly
from ingest.verify import verify
from ingest.versions import restore, tag, untag
from ingest.views import open_view, views
from tests.ingest.dying import dies
from tests.ingest.made_shards import (
    add,
    annotate,
    contents,
    made,
    name_of,
    payload_of,
    unit,
)

STEPS = [
    ("ingest.purge", "hide", "before"),
    ("ingest.rewrite", "_commit", "before"),
    ("ingest.purge", "hide", "after"),
    ("ingest.purge", "erase_annotations", "after"),
    ("ingest.purge", "strip", "after"),
    ("ingest.moves", "commit_moves", "after"),
    ("ingest.copies", "_frozen", "after"),
    ("ingest.purge", "refreeze", "after"),
    ("ingest.copies", "_own", "after"),
    ("ingest.purge", "retag", "after"),
    ("ingest.purge", "remove_views", "before"),
    ("ingest.purge", "remove_views", "after"),
    ("ingest.purge", "remove_shards", "after"),
    ("ingest.purge", "forget", "before"),
    ("ingest.purge", "forget", "after"),
    ("ingest.purge", "search", "after"),
]
SOURCE, CLIP = name_of("b"), name_of("c/1")
ASKED = {"sources": [SOURCE], "clips": [CLIP], "reason": "asked by the owner"}
GONE = ["b/0", "b/1", "b/2", "c/1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A dataset with every kind of table, two views and a tag; copied, it is another one."""
    dataset = made(tmp_path_factory.mktemp("model") / "d", "abcd")
    annotate(dataset)
    tag(dataset, "one")
    every = dataset.freeze_view()
    rows = dataset.kept_clips()
    of_a = [name == name_of("a") for name in rows.column("source_sha256").to_pylist()]
    only_a = dataset.freeze_view(rows.filter(pa.array(of_a)))
    return dataset.root.path, every.digest, only_a.digest


@pytest.fixture
def full(model, tmp_path):
    path, every, only_a = model
    shutil.copytree(path, tmp_path / "d")
    return Dataset.open(tmp_path / "d"), every, only_a


def told(root):
    """Return everything that is stored below a root as one text: bytes, and the values of tables."""
    found = []
    for entry in list(root.names()):
        data = root.read(entry.name)
        found.append(data)
        if entry.name.endswith(".parquet"):
            rows = pq.read_table(pa.BufferReader(data))
            found.append(repr(rows.to_pylist()).encode())
    return b"\n".join(found)


def check(place, *, gone=GONE, latents=True, versions=("one",)):
    dataset = Dataset.open(place)
    everything = told(dataset.root)
    for name in gone:
        assert payload_of(name) not in everything
        assert not latents or payload_of(f"latent {name}", 480) not in everything
        assert f"caption of {name}".encode() not in everything
        assert f"label of {name}".encode() not in everything
    assert b"/videos/b.mp4" not in everything
    # Not the letter last: Parquet cuts long statistics and counts their last byte up, from a to b.
    assert b"b was seen" not in everything
    assert b"/videos/c.mp4" in everything
    assert dataset.balance().ok
    fates = {(r["kind"], r["id"]): (r["fate"], r["rule"]) for r in dataset.ledger().to_pylist()}
    for name in gone:
        assert fates["clip", name_of(name)] == ("rejected", "purged")
    assert fates["source", SOURCE] == ("rejected", "purged")
    assert fates["source", name_of("c")] == ("kept", None)
    assert dataset.purged() >= {SOURCE, *map(name_of, gone)}
    for at in ("", *versions):
        version = Dataset.open(place, at)
        assert not set(map(name_of, gone)) & set(version.kept_clips().column("clip_id").to_pylist())
        assert verify(version, how="sha256").ok
        assert version.digest() == (read_tag(version.root, at).digest if at else version.digest())
    return dataset


def test_after_it_nothing_of_them_is_anywhere(full):
    dataset, every, only_a = full
    kept = {k: v for k, v in contents(dataset).items() if k[1] not in set(map(name_of, GONE))}
    before = {e.name: e.modified_s for e in dataset.root.names()}
    outlook = purge(dataset, **ASKED, dry_run=True)
    assert {e.name: e.modified_s for e in dataset.root.names()} == before
    done = purge(dataset, **ASKED)
    assert (done.clean, done.left) == (True, ())
    assert done.sources == (SOURCE,)
    assert set(done.clips) == {CLIP, *(name_of(f"b/{n}") for n in (0, 1, 2, "bad0"))}
    assert len(done.shards) == 4  # two of clips, two of latents
    assert (done.tags, set(done.views)) == (("one",), {every})
    same = ("sources", "clips", "shards", "tags")
    assert [getattr(outlook, n) for n in same] == [getattr(done, n) for n in same]
    assert set(outlook.views) == {every}
    after = check(dataset.root)
    assert contents(after) == kept
    assert after.kept_clips().num_rows == 12 - len(GONE)
    assert (after.annotation("rights").num_rows, after.annotation("labels").num_rows) == (3, 8)
    assert set(views(after.root)) == {only_a, done.views[every]}
    assert after.freeze_view().digest == done.views[every]
    log = [row for row in after.history() if row["operation"] == "purge"]
    assert log[0]["detail"]["reason"] == log[-1]["detail"]["reason"] == "asked by the owner"
    assert log[-1]["detail"]["views"] == dict(done.views)
    again = purge(after, **ASKED)
    assert (again.clean, again.shards, again.views) == (True, (), done.views)
    add(after, "e")
    restore(after, "one")
    assert after.digest() == read_tag(after.root, "one").digest
    check(dataset.root)


def test_in_an_object_store(bucket):
    dataset = made(bucket, "bc")
    view = dataset.freeze_view()
    tag(dataset, "one")
    done = purge(dataset, **ASKED)
    assert done.clean
    assert open_view(dataset.root, done.views[view.digest])[0].num_rows == 2
    check(bucket, latents=False)


def test_later_takedowns_reach_into_tables_that_tags_have_of_their_own(full):
    dataset, every, only_a = full
    tag(dataset, "two")
    first = purge(dataset, clips=[CLIP], reason="a")
    second = purge(dataset, sources=[SOURCE], reason="b")
    assert second.views == {first.views[every]: second.views[first.views[every]]}
    check(dataset.root, versions=("one", "two"))
    rest = [name_of("c/0"), name_of("c/2")]
    third = purge(dataset, sources=[name_of("a")], clips=rest, reason="c")
    assert third.clean
    assert third.views[only_a] == ""  # nothing is left of it
    assert len(views(dataset.root)) == 1
    rows = {r["id"]: r for r in dataset.ledger().to_pylist() if r["kind"] == "source"}
    empty = rows[name_of("c")]
    assert (empty["fate"], empty["rule"], empty["num_kept"]) == ("rejected", "no_clip_kept", 0)
    assert dataset.balance().ok
    untag(dataset, "one")
    assert not [e for e in dataset.root.names("tags") if e.name.startswith("tags/one")]


@pytest.mark.faults
@pytest.mark.parametrize("step", STEPS, ids=lambda step: " ".join(step[1:]))
def test_killed_at_a_step_and_run_again(full, step):
    dataset, every, only_a = full
    dead = _die(dataset.root.path, step)
    assert verify(dead, how="sha256").ok
    done = purge(dead, **ASKED)
    assert done.clean
    assert set(views(dead.root)) == {only_a, done.views[every]}
    check(dead.root)


def test_killed_at_one_step_after_the_other(full):
    dataset, every, only_a = full
    for step in (STEPS[2], STEPS[8], STEPS[11], STEPS[13]):
        dead = _die(dataset.root.path, step)
    assert verify(dead).ok
    done = purge(dead, **ASKED)
    assert done.clean
    assert set(views(dead.root)) == {only_a, done.views[every]}
    check(dead.root)


def _die(place, step):
    assert dies("tests.ingest.test_purge:open_and_purge", str(place), at=step, **ASKED)
    dead = Dataset.open(place)
    assert dead.purged() >= {SOURCE, CLIP}
    assert dead.balance().ok
    return dead


def open_and_purge(place, **settings):
    purge(Dataset.open(place), **settings)


def test_who_commits_meanwhile_loses_nothing(tmp_path):
    dataset = made(tmp_path, "abcd")
    stop, made_units, trouble = threading.Event(), [], []

    def write():
        other = Dataset.open(tmp_path)
        while not stop.is_set():
            name = f"w{len(made_units)}"
            try:
                add(other, name, 1)
            except Exception as error:
                trouble.append(error)
                raise
            made_units.append(name)
            time.sleep(0.01)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert purge(dataset, clips=[name_of("a/0"), name_of("d/1")], reason="asked").clean
    finally:
        stop.set()
        writer.join()
    assert not trouble
    after = Dataset.open(tmp_path)
    ids = set(after.kept_clips().column("clip_id").to_pylist())
    assert {name_of(f"{name}/0") for name in made_units} <= ids
    assert len(ids) == 10 + len(made_units)
    assert after.balance().ok
    assert verify(after).ok


def test_what_writers_left_behind_goes_when_it_is_old(tmp_path):
    dataset = made(tmp_path, "bc")
    unit(dataset.root, "b", 3, note="never committed")  # the same shard as that which is
    rows, said = unit(dataset.root, "b", 2)  # a shard of its own
    orphan = next(iter(set(rows.column("shard").drop_null().to_pylist())))
    dead = tmp_path / "data" / ".writing-1-ab"
    dead.write_bytes(b"x" * 100 + payload_of("b/1")[:2500])
    parquet = tmp_path / "annotations/captions/part-0-lost.parquet"
    pq.write_table(said, parquet)
    mixed = tmp_path / "copy.bin"
    mixed.write_bytes(b"y" * 33 + payload_of("c/1") + b"z")
    done = purge(dataset, **ASKED)
    assert not (tmp_path / orphan).exists()
    assert len(done.left) == 3
    assert f"copy.bin: the bytes of clip {CLIP} are in it" in "".join(done.left)
    assert dead.exists()
    old = time.time() - 2 * remnants.YOUNG_S
    os.utime(dead, (old, old))
    os.utime(parquet, (old, old))
    mixed.unlink()
    again = purge(dataset, **ASKED)
    assert again.clean
    assert not dead.exists()
    assert not parquet.exists()
    assert "ten minutes" in "".join(done.left)


def test_the_same_bytes_under_another_name_are_found(tmp_path):
    dataset = made(tmp_path, "ab")
    rows, said = unit(dataset.root, "b")
    data = dataset.root.read(rows.column("shard")[1].as_py())
    dataset.root.replace("data/aa/" + "0" * 64 + ".arrow", data)
    dataset.root.replace("runs/sheet.html", payload_of("b/2"))
    done = purge(dataset, clips=[name_of("b/2")], reason="asked")
    assert len(done.left) == 2
    assert said.num_rows == 3
    assert "holds 1 clips of this and 2 others" in done.left[0]
    assert any("runs/sheet.html: the bytes of clip" in line for line in done.left)


def test_a_damaged_neighbour_is_not_copied(tmp_path):
    dataset = made(tmp_path, "a")
    row = next(r for r in dataset.kept_clips().to_pylist() if r["clip_id"] == name_of("a/2"))
    data = bytearray((tmp_path / row["shard"]).read_bytes())
    data[row["offset"]] ^= 1
    (tmp_path / row["shard"]).write_bytes(data)
    with pytest.raises(CorruptPayload, match=row["clip_id"]):
        purge(dataset, clips=[name_of("a/0")], reason="asked")
    ids = Dataset.open(tmp_path).kept_clips().column("clip_id").to_pylist()
    assert sorted(ids) == sorted([name_of("a/1"), name_of("a/2")])  # it is hidden already
    assert purge(dataset, clips=[name_of("a/0"), name_of("a/2")], reason="asked").clean


def test_what_is_asked_must_be_there(tmp_path):
    dataset = made(tmp_path, "a")
    tag(dataset, "one")
    with pytest.raises(UnknownName, match="knows no source or clip nobody"):
        purge(dataset, clips=["nobody"], reason="asked")
    with pytest.raises(ValueError, match="reason"):
        purge(dataset, clips=[name_of("a/0")], reason=" ")
    with pytest.raises(ReadOnly):
        purge(Dataset.open(tmp_path, "one"), clips=[name_of("a/0")], reason="asked")
    assert dataset.purged() == set()
    restored = dataset.table("ledger")
    restored.delta.delete()
    dataset.refresh()
    assert purge(dataset, clips=[name_of("a/0")], reason="only a tag has it").tags == ("one",)
    assert Dataset.open(tmp_path, "one").kept_clips().num_rows == 2


def test_complete_has_nothing_to_do_where_nothing_was_taken_down(tmp_path):
    dataset = made(tmp_path, "a")
    version = dataset.versions()
    assert purging.complete(dataset).clean
    assert Dataset.open(tmp_path).versions() == version


def test_a_stray_copy_is_told_until_it_is_gone(full):
    dataset, _every, _only_a = full
    (row,) = dataset.query(f"SELECT shard FROM clips WHERE clip_id = '{CLIP}'").to_pylist()
    stray = dataset.root.path / "copy.bin"
    stray.write_bytes((dataset.root.path / row["shard"]).read_bytes())
    first = purge(dataset, clips=[CLIP], reason="a")
    again = purge(dataset, clips=[CLIP], reason="a")
    for done in (first, again):
        assert [line.partition(":")[0] for line in done.left] == ["copy.bin"]
    (dataset.root.path / "another.bin").write_bytes(b"abc" + stray.read_bytes())
    stray.unlink()
    done = purge(dataset, clips=[CLIP], reason="a")
    assert [line.partition(":")[0] for line in done.left] == ["another.bin"]
    (dataset.root.path / "another.bin").unlink()
    assert purge(dataset, clips=[CLIP], reason="a").clean


def test_what_only_an_old_version_names_can_be_taken_down(tmp_path):
    dataset = made(tmp_path, "a")
    before = dataset.version
    add(dataset, "b")
    restore(dataset, str(before))
    done = purge(dataset, sources=[SOURCE], reason="asked")
    assert done.clean
    assert {name_of(f"b/{k}") for k in range(3)} <= set(done.clips)
    assert payload_of("b/1") not in told(dataset.root)
    assert verify(Dataset.open(tmp_path)).ok
