import shutil
import time

import pyarrow as pa
import pytest

from ingest import upkeep
from ingest.compare import diff
from ingest.refs import NoSuchVersion, TagTaken, read_tag, tags
from ingest.schema import captions_schema
from ingest.store import Dataset, ReadOnly
from ingest.versions import restore, tag, untag
from tests.ingest.dying import dies
from tests.ingest.made_shards import add, annotate, contents, made, name_of


@pytest.fixture(params=["folder", "store"])
def place(request, tmp_path):
    return tmp_path / "d" if request.param == "folder" else request.getfixturevalue("bucket")


def test_a_tag_names_what_is_said_now(place):
    dataset = made(place, "ab")
    digest = dataset.digest()
    one = tag(dataset, "one")
    assert (one.digest, set(one.tables)) == (digest, {"ledger", "annotations/captions"})
    add(dataset, "c")
    assert dataset.digest() != digest
    old = Dataset.open(place, "one")
    assert (old.digest(), old.kept_clips().num_rows) == (digest, 6)
    with pytest.raises(TagTaken, match="exists"):
        tag(dataset, "one")
    add(dataset, "d", 1)
    restore(dataset, "one")
    assert Dataset.open(place).digest() == digest
    again = tag(old, "again")  # an old version may be named too
    assert (again.digest, dict(again.tables)) == (digest, dict(one.tables))
    untag(dataset, "one")
    with pytest.raises(NoSuchVersion, match="its tags: again"):
        Dataset.open(place, "one")
    log = [row for row in dataset.history() if row["operation"] != "restore"]
    done = [(row["operation"], row["detail"]["name"]) for row in log]
    assert done == [("tag", "one"), ("tag", "again"), ("untag", "one")]
    with pytest.raises(NoSuchVersion, match="a tag is a word"):
        tag(dataset, "12")


def test_going_back_gives_the_content_of_the_tag(tmp_path):
    place = tmp_path
    dataset = made(place, "ab")
    one = tag(dataset, "one")
    old = contents(dataset)
    add(dataset, "c")
    annotate(dataset, "abc")
    two = tag(dataset, "two")
    names = ("captions", "labels", "latents", "rights")
    assert restore(dataset, "one", dry_run=True).tables == restore(dataset, "one").tables
    assert Dataset.open(place).digest() == dataset.digest() == one.digest
    assert contents(dataset) == old
    assert [dataset.annotation(name).num_rows for name in names] == [6, 0, 0, 0]
    assert restore(dataset, "one").tables == ()  # nothing is left to do
    changed = restore(dataset, "two").tables
    assert set(changed) == {"ledger", *(f"annotations/{name}" for name in names)}
    assert Dataset.open(place).digest() == two.digest
    assert [dataset.annotation(name).num_rows for name in names] == [9, 9, 9, 3]
    assert dataset.balance().ok
    add(dataset, "d")  # and it is written to as before
    assert dataset.kept_clips().num_rows == 12


def test_killed_while_going_back_and_run_again(tmp_path):
    dataset = made(tmp_path, "ab")
    one = tag(dataset, "one")
    add(dataset, "c")
    annotate(dataset, "abc")
    for when in ("after", "before"):
        step = ("ingest.versions", "_go_back", when)
        assert dies("tests.ingest.test_versions:open_and_restore", str(tmp_path), at=step)
    dead = Dataset.open(tmp_path)
    assert dead.digest() != one.digest
    assert dead.balance().ok
    restore(dead, "one")
    assert Dataset.open(tmp_path).digest() == one.digest


def open_and_restore(place):
    restore(Dataset.open(place), "one")


def test_a_unit_that_was_undone_can_be_committed_again(tmp_path):
    dataset = made(tmp_path, "a")
    tag(dataset, "one")
    add(dataset, "b")
    both = dataset.digest()
    restore(dataset, "one")
    assert len(dataset.committed_units()) == 1
    add(dataset, "b")
    assert dataset.digest() == both


def test_going_back_by_number(tmp_path):
    dataset = made(tmp_path, "ab")
    digest, version = dataset.digest(), dataset.version
    add(dataset, "c")
    annotate(dataset)
    restore(dataset, str(version))
    assert dataset.digest() == digest
    assert dataset.annotation("labels").num_rows == 0


def test_a_version_whose_files_are_gone_is_refused_before_anything_changes(tmp_path):
    dataset = made(tmp_path, "ab")
    tag(dataset, "one")
    shard = dataset.kept_clips().column("shard")[0].as_py()
    add(dataset, "c")
    before = {name: dataset.versions()[name] for name in ("ledger", "annotations/captions")}
    data = dataset.root.read(shard)
    dataset.root.delete(shard)
    with pytest.raises(NoSuchVersion, match=f"1 of its shards are gone: {shard}"):
        restore(dataset, "one")
    dataset.root.replace(shard, data)
    table = Dataset.open(tmp_path, "one").table("annotations/captions")
    dataset.root.delete(min(upkeep.files(table)))
    with pytest.raises(NoSuchVersion, match=r"parquet is gone"):
        restore(dataset, "one")
    with pytest.raises(NoSuchVersion, match="name a tag"):
        restore(dataset, "")
    with pytest.raises(NoSuchVersion, match="no tag 'two'"):
        restore(dataset, "two")
    with pytest.raises(ReadOnly):
        restore(Dataset.open(tmp_path, "one"), "one")
    dataset.refresh()
    assert {name: dataset.versions()[name] for name in before} == before


def test_a_tag_of_a_version_that_goes_is_not_left_behind(tmp_path, monkeypatch):
    dataset = made(tmp_path, "ab")
    for name in list(dataset.root.names("ledger")):
        if name.name.endswith(".parquet"):
            file = name.name
    monkeypatch.setattr(Dataset, "digest", lambda _self: dataset.root.delete(file) or "x")
    with pytest.raises(NoSuchVersion, match="is gone"):
        tag(dataset, "one")
    assert tags(dataset.root) == []


def test_times_of_files_do_not_matter(tmp_path):
    """A dataset that was copied has files of other times."""
    dataset = made(tmp_path, "ab")
    version = dataset.version
    time.sleep(0.01)
    add(dataset, "c")
    for entry in list(dataset.root.names()):
        (tmp_path / entry.name).touch()
    assert Dataset.open(tmp_path, str(version)).captions().num_rows == 6


def test_what_changed(tmp_path):
    dataset = made(tmp_path, "ab")
    tag(dataset, "one")
    before = Dataset.open(tmp_path, "one")
    assert diff(before, dataset).same
    add(dataset, "c")
    annotate(dataset, "a")
    better = {"producer": "best", "caption": "better", "rank": -1}
    wanted = [name_of("a/0"), name_of("a/1")]
    rows = [r | better for r in dataset.captions().to_pylist() if r["clip_id"] in wanted]
    said = pa.Table.from_pylist(rows, captions_schema())
    dataset.annotate("captions", said, app_id="better", batch=1)
    ledger = dataset.table("ledger")
    ledger.delta.update(
        updates={"fate": "'rejected'", "rule": "'min_motion'"}, predicate=f"id = '{name_of('b/0')}'"
    )
    ledger.delta.update(updates={"payload_sha256": "'other'"}, predicate=f"id = '{name_of('b/1')}'")
    found = diff(before, Dataset.open(tmp_path))
    assert (found.clips_before, found.clips_after, found.same) == (8, 12, False)
    assert found.added.ids == tuple(sorted(name_of(f"c/{n}") for n in (0, 1, 2, "bad0")))
    assert (found.removed.total, found.sources_removed.total) == (0, 0)
    assert found.sources_added.ids == (name_of("c"),)
    assert found.refated.ids == (name_of("b/0"),)
    assert (found.refated.before, found.refated.after) == (("kept",), ("rejected",))
    assert found.payload_changed.ids == (name_of("b/1"),)
    assert found.relabelled.total == 3
    said = dict(zip(found.recaptioned.ids, found.recaptioned.after, strict=True))
    # The caption of b/1 is of other bytes than it has now.
    assert said == {name_of("a/0"): "better", name_of("a/1"): "better", name_of("b/1"): ""}
    motion = found.scores["motion"]
    assert (sum(motion.before), sum(motion.after)) == (6, 8)
    assert (motion.edges[0], motion.edges[-1]) == (0.0, 0.2)
    assert (found.scores["sharpness"].edges, found.scores["sharpness"].unknown_after) == ((), 8)
    back = diff(Dataset.open(tmp_path), before, max_listed=1)
    assert (back.removed.total, len(back.removed.ids)) == (4, 1)
    assert back.removed.ids == found.added.ids[:1]


def test_a_clip_of_two_units_is_one_clip(tmp_path):
    dataset = made(tmp_path, "a")
    one = tag(dataset, "one")
    add(dataset, "a", 0, rejected=0, note="again")  # nothing of it is kept by another rule
    rows = dataset.ledger().to_pylist()
    twin = [row | {"unit_id": "x", "fate": "rejected"} for row in rows if row["kind"] == "clip"]
    schema = dataset.ledger().schema
    dataset.table("ledger").append_missing(dataset.ledger().from_pylist(twin, schema))
    found = diff(Dataset.open(tmp_path, "one"), Dataset.open(tmp_path))
    assert found.same
    assert read_tag(dataset.root, "one") == one


@pytest.mark.parametrize("name", ["a b", "ü#?", "x'y"])
def test_a_folder_of_any_name(small_dataset, tmp_path, name):
    place = tmp_path / name
    shutil.copytree(small_dataset.root.path, place)
    (tmp_path / "link").symlink_to(place)
    for spelled in (place, place / ".." / name, tmp_path / "link"):
        dataset = Dataset.open(spelled)
        made = tag(dataset, f"t{len(dataset.history())}")
        restore(dataset, made.name)
        assert dataset.digest() == small_dataset.digest()
