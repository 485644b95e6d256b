import pickle

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from ingest.files import StorageError
from ingest.objects import Root
from ingest.tables import NotATable, NotOurs, Table

SCHEMA = pa.schema([("a", pa.utf8()), ("b", pa.utf8()), ("n", pa.int64())])


def rows(*names, b="x"):
    return pa.table({"a": list(names), "b": [b] * len(names), "n": range(len(names))}, SCHEMA)


def make(path, key="a"):
    return Table.create(
        Root.of(path.parent), path.name, SCHEMA, key=key, settings={"colour": "blue"}
    )


def listed(table):
    return sorted(table.rows().column("a").to_pylist())


def test_a_batch_lands_once(tmp_path):
    table = make(tmp_path / "t")
    assert table.next_batch("run") == 1
    version = table.commit(rows("p", "q"), app_id="run", batch=1)
    assert table.commit(rows("p", "q"), app_id="run", batch=1) == version  # a repeat is nothing
    assert table.commit(rows("q", "r"), app_id="run", batch=2) == version + 1
    assert listed(table) == ["p", "q", "r"]
    again = Table.open(Root.of(tmp_path), "t")
    assert (again.next_batch("run"), again.next_batch("other")) == (3, 1)
    assert again.keys() == {"p", "q", "r"}
    assert again.settings["colour"] == "blue"


def test_two_runs_of_one_recipe_collide(tmp_path):
    first, second = make(tmp_path / "t"), make(tmp_path / "t")
    batch = first.next_batch("run"), second.next_batch("run")
    first.commit(rows("p"), app_id="run", batch=batch[0])
    with pytest.raises(NotOurs, match="another run"):
        second.commit(rows("q"), app_id="run", batch=batch[1])
    assert listed(second) == ["p"]


def test_runs_of_different_recipes_append_side_by_side(tmp_path):
    first, second = make(tmp_path / "t"), make(tmp_path / "t")
    for n in range(1, 6):
        first.commit(rows(f"f{n}", "shared"), app_id="one", batch=n)
        second.commit(rows(f"s{n}", "shared"), app_id="two", batch=n)
    assert len(listed(first)) == 10
    assert listed(Table.open(Root.of(tmp_path), "t")).count("shared") == 1


def test_a_rival_between_look_and_write_is_noticed(tmp_path, monkeypatch):
    first, second = make(tmp_path / "t"), make(tmp_path / "t")
    real, raced = Table._append, []

    def race(self, fresh, transaction):
        if self is second and not raced:
            raced.append(first.commit(rows("p", "q"), app_id="one", batch=1))
        real(self, fresh, transaction)

    monkeypatch.setattr(Table, "_append", race)
    second.commit(rows("q", "r"), app_id="two", batch=1)
    assert raced
    assert listed(second) == ["p", "q", "r"]
    monkeypatch.setattr(Table, "_append", lambda *a: _lose(a, first, real))
    with pytest.raises(NotOurs, match="lost against others"):
        second.commit(rows("s"), app_id="two", batch=2)


def _lose(arguments, rival, real):
    rival.refresh()
    number = rival.version
    real(rival, rows(f"rival{number}"), None)
    real(*arguments)


def test_a_key_of_several_columns(tmp_path):
    table = make(tmp_path / "t", key="a,b")
    table.append_missing(rows("p", b="x"))
    table.append_missing(rows("p", "q", b="x"))
    table.append_missing(rows("p", b="y"))
    assert listed(table) == ["p", "p", "q"]


def test_what_is_no_table(tmp_path):
    with pytest.raises(NotATable):
        Table.open(Root.of(tmp_path), "absent")
    write_deltalake(tmp_path / "foreign", rows("p"))
    with pytest.raises(NotATable, match="marks"):
        Table.open(Root.of(tmp_path), "foreign")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        make(tmp_path / "file")
    assert str(pickle.loads(pickle.dumps(NotOurs("x")))) == "x"
