import os
import time

import pytest

from ingest import collect as collecting
from ingest.collect import collect
from ingest.compact import compact
from ingest.refs import write_tag
from ingest.store import Dataset, ReadOnly
from ingest.tables import NotATable
from ingest.verify import verify
from ingest.versions import restore, tag, untag
from ingest.views import open_view
from tests.ingest.made_shards import add, annotate, contents, made, name_of, unit

TARGET = 32_000


def age(place, names=None, days=8.0):
    """Make files look older."""
    then = time.time() - days * 86400
    for entry in list(Dataset.open(place).root.names()):
        if names is None or entry.name in names:
            os.utime(place / entry.name, (then, then))


def shards(dataset):
    return {entry.name for entry in dataset.root.names("data")}


def test_only_what_is_old_and_named_by_nothing_goes(tmp_path):
    dataset = made(tmp_path, "abc")
    annotate(dataset, "ab")
    view = dataset.freeze_view()
    tag(dataset, "one")
    add(dataset, "d")
    before = shards(dataset)
    compact(dataset, target_bytes=TARGET)
    packed, old = shards(dataset) - before, contents(dataset)
    only_d = {
        s
        for s in before
        if s not in set(Dataset.open(tmp_path, "one").ledger().column("shard").to_pylist())
    }
    latents = set(Dataset.open(tmp_path, "one").annotation("latents").column("shard").to_pylist())
    (lone,) = only_d - latents
    unit(dataset.root, "w", 2)  # a writer's, not committed yet
    (young,) = shards(dataset) - before - packed
    trash = tmp_path / "views" / ".x.arrow.writing-1-a"
    trash.write_bytes(b"x")
    assert collect(dataset).shards == ()  # nothing is a week old
    age(tmp_path)
    age(tmp_path, {young}, days=6)
    wanted = collect(dataset, dry_run=True)
    assert trash.exists()
    assert shards(dataset) == before | packed | {young}
    # Versions of the last week still name it: somebody may be reading them.
    assert (wanted.shards, wanted.temporaries) == ((), ("views/.x.arrow.writing-1-a",))
    done = collect(dataset)
    assert (done.shards, done.temporaries, trash.exists()) == ((), wanted.temporaries, False)
    age(tmp_path)
    dry = collect(dataset, older_than_s=0, dry_run=True)
    assert (tmp_path / lone).exists()
    done = collect(dataset, older_than_s=0)
    assert (done.shards, done.table_files, done.bytes) == (dry.shards, dry.table_files, dry.bytes)
    assert set(done.shards) == {lone, young}
    assert done.bytes > 9000
    assert contents(dataset) == old
    assert open_view(dataset.root, view.digest)[0].num_rows == 9
    assert verify(dataset, how="sha256").ok
    assert verify(Dataset.open(tmp_path, "one"), how="sha256").ok
    assert dataset.history()[-1]["operation"] == "gc"
    again = collect(dataset, older_than_s=0)
    assert (again.shards, again.temporaries) == ((), ())
    restore(dataset, "one")
    assert dataset.kept_clips().num_rows == 9
    untag(dataset, "one")
    restored = contents(dataset)
    collect(dataset, older_than_s=0)
    assert contents(dataset) == restored


def test_a_view_keeps_its_shards(tmp_path):
    dataset = made(tmp_path, "ab")
    view = dataset.freeze_view()
    dataset.table("ledger").delta.delete(f"source_sha256 = '{name_of('a')}'")
    dataset.refresh()
    assert collect(dataset, older_than_s=0).shards == ()
    (tmp_path / view.name).unlink()
    assert len(collect(dataset, older_than_s=0).shards) == 1


def test_a_tag_keeps_its_shards_and_its_tables(tmp_path):
    dataset = made(tmp_path, "ab")
    tag(dataset, "one")
    for name in ("ledger", "annotations/captions"):
        dataset.table(name).delta.delete()
    dataset.refresh()
    add(dataset, "c")
    collect(dataset, older_than_s=0)
    old = Dataset.open(tmp_path, "one")
    assert (old.kept_clips().num_rows, old.captions().num_rows) == (6, 6)
    assert verify(old).ok
    untag(dataset, "one")
    assert len(collect(dataset, older_than_s=0).shards) == 2
    assert len(shards(dataset)) == 1
    assert verify(dataset).ok


def test_what_a_removed_tag_had_of_its_own_goes(tmp_path):
    dataset = made(tmp_path, "ab")
    lost = "tags/gone/ledger/part-0.parquet"
    dataset.root.replace(lost, b"x")
    assert lost not in collect(dataset).table_files
    age(tmp_path)
    assert lost in collect(dataset).table_files
    assert not dataset.root.exists(lost)


def test_a_tag_that_cannot_be_read_stops_it(tmp_path):
    dataset = made(tmp_path, "ab")
    one = tag(dataset, "one")
    tables = dict(one.tables)
    tables["ledger"] = type(tables["ledger"])(path="ledger", version=99)
    write_tag(dataset.root, type(one)(name="two", at=one.at, digest="", tables=tables))
    before = {entry.name for entry in dataset.root.names()}
    with pytest.raises((NotATable, Exception), match="99"):
        collect(dataset, older_than_s=0)
    assert {entry.name for entry in dataset.root.names()} == before
    with pytest.raises(ReadOnly):
        collect(Dataset.open(tmp_path, "one"))


def test_a_shard_that_is_written_again_meanwhile_stays(tmp_path, monkeypatch):
    dataset = made(tmp_path, "a")
    unit(dataset.root, "b")
    age(tmp_path)
    real = collecting.shards_in_files

    def late(root, **named):
        used = real(root, **named)
        rows, said = unit(root, "b")  # the same bytes, so the same name
        dataset.commit(rows, said, app_id="late", batch=1)
        return used

    monkeypatch.setattr(collecting, "shards_in_files", late)
    collect(dataset)
    assert verify(dataset).ok
    assert dataset.kept_clips().num_rows == 6


def test_in_an_object_store(bucket):
    dataset = made(bucket, "ab")
    tag(dataset, "one")
    old = contents(dataset)
    compact(dataset, target_bytes=TARGET)
    assert collect(dataset, older_than_s=0).shards == ()
    untag(dataset, "one")
    assert len(collect(dataset, older_than_s=0).shards) == 2
    assert contents(Dataset.open(bucket)) == old
