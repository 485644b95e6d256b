import os
import time

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ingest import rewrite as rewriting
from ingest import upkeep
from ingest.objects import Root
from ingest.rewrite import rewrite
from ingest.tables import NotOurs, Table

SCHEMA = pa.schema([("a", pa.utf8()), ("n", pa.int64())])


@pytest.fixture(params=["folder", "store"])
def table(request, tmp_path):
    root = Root.of(
        str(tmp_path) if request.param == "folder" else request.getfixturevalue("bucket")
    )
    made = Table.create(root, "t", SCHEMA, key="a")
    for name in "xyz":
        made.append_missing(rows(f"{name}0", f"{name}1"))
    return made


def rows(*names, n=0):
    return pa.table({"a": list(names), "n": [n] * len(names)}, SCHEMA)


def doubled(name, then=None):
    """A change of one row, and something that happens while it is made."""

    def change(rows):
        if then:
            then()
        hit = pc.call_function("equal", [rows.column("a"), pa.scalar(name)])
        index = pc.call_function("if_else", [hit, pa.scalar(7, pa.int64()), rows.column("n")])
        return rows.set_column(1, "n", index)

    return change


def change(table, name, then=None):
    return rewrite(
        table,
        doubled(name, then),
        reads=["a"],
        touches=lambda rows: name in rows.column("a").to_pylist(),
    )


def listed(table):
    fresh = Table.open(table.root, "t").rows().to_pylist()
    return sorted((row["a"], row["n"]) for row in fresh)


def test_only_the_files_with_the_rows_are_replaced(table):
    before = upkeep.files(table)
    assert change(table, "y1") == 1
    assert len(before & upkeep.files(table)) == 2
    assert ("y1", 7) in listed(table)
    assert sum(n for _, n in listed(table)) == 7
    version = table.version
    assert change(table, "nobody") == 0
    assert rewrite(table, lambda rows: rows, reads=["a"], touches=lambda _rows: True) == 0
    assert table.refresh() == version
    assert rewrite(table, lambda r: r.slice(0, 0), reads=["a"], touches=lambda _r: True) == 3
    assert listed(table) == []
    table.append_missing(rows("x0"))
    assert listed(table) == [("x0", 0)]
    assert upkeep.committed_at_s(table, version) > 1e9


def test_who_appends_meanwhile_is_not_lost_and_does_not_stop_it(table):
    other = Table.open(table.root, "t")
    later = iter(range(100))

    def append():
        for _ in range(3):
            number = next(later)
            other.commit(rows(f"new{number}"), app_id="other", batch=number + 1)

    change(table, "y1", append)
    assert {name for name, _ in listed(table)} >= {"new0", "new1", "new2", "x0"}
    assert ("y1", 7) in listed(table)
    other.commit(rows("late", "y1", "x1"), app_id="other", batch=4)  # its keys are known
    assert len(listed(table)) == 10
    upkeep.vacuum(table, retention_hours=0, leftovers=False)
    upkeep.forget_history(table)
    other.commit(rows("later"), app_id="other", batch=5)
    table.compact()
    assert len(listed(table)) == 11


def test_who_replaces_the_same_file_meanwhile_is_seen(table):
    other = Table.open(table.root, "t")
    todo = ["y0"]
    change(table, "y1", lambda: change(other, todo.pop()) if todo else None)
    assert [row for row in listed(table) if row[1]] == [("y0", 7), ("y1", 7)]
    stored = [e.name for e in table.root.names("t") if e.name.endswith(".parquet")]
    assert len(stored) == 3 + 2  # what lost was removed

    def always():
        Table.open(table.root, "t").delta.optimize.compact()
        upkeep.replace_rows(other, other.rows())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewriting, "ATTEMPTS", 2)
        with pytest.raises(NotOurs, match="2 commits lost"):
            change(table, "y1", always)


def test_statistics_of_what_is_gone_are_forgotten(tmp_path):
    table = Table.create(Root.of(tmp_path), "t", SCHEMA, key="a")
    table.append_missing(rows("a secret", "b"))
    table.append_missing(rows("c"))
    tagged = table.version
    for name in "defg":
        table.append_missing(rows(name))
    table.delta.create_checkpoint()
    rewrite(
        table,
        lambda rows: rows.filter(
            pc.call_function("not_equal", [rows.column("a"), pa.scalar("a secret")])
        ),
        reads=["a"],
        touches=lambda rows: "a secret" in rows.column("a").to_pylist(),
    )
    upkeep.vacuum(table, retention_hours=0, leftovers=False)
    upkeep.forget_history(table)
    for entry in list(table.root.names()):
        assert b"secret" not in table.root.read(entry.name)
    assert [name for name, _ in listed(table)] == list("bcdefg")
    assert b"maxValues" in table.root.read(f"t/_delta_log/{tagged:020d}.json")
    table.append_missing(rows("a", "b"))
    assert len(listed(table)) == 7


def test_a_version_is_kept_where_it_is_named(tmp_path):
    table = Table.create(Root.of(tmp_path), "t", SCHEMA, key="a")
    for name in "abc":
        table.append_missing(rows(name))
    keep = table.version
    change(table, "b")
    assert upkeep.vacuum(table, keep=[keep], retention_hours=0, dry_run=True) == []
    upkeep.vacuum(table, keep=[keep], retention_hours=0)
    upkeep.forget_history(table)
    assert Table.open(table.root, "t", keep).rows().num_rows == 3
    assert len(upkeep.vacuum(table, retention_hours=0)) == 1


def test_tags_do_not_end_with_the_logs(tmp_path):
    """The library drops logs of more than a month, unless the table says otherwise."""
    often = {"delta.checkpointInterval": "5"}
    table = Table.create(Root.of(tmp_path), "t", SCHEMA, key="a", settings=often)
    old = time.time() - 60 * 86400
    for number in range(1, 16):
        table.append_missing(rows(str(number)))
        if number == 8:
            for path in (tmp_path / "t" / "_delta_log").iterdir():
                os.utime(path, (old, old))
    assert Table.open(table.root, "t", 3).rows().num_rows == 3
