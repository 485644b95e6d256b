import pytest

from ingest.ledger import Fate, Unit, base_row, printable, source_id, source_row, to_table
from ingest.schema import ledger_schema
from ingest.sources import Source

SOURCE = Source(uri="/videos/\udcff\n.mp4", bytes=7, mtime_ns=0)
UNIT = Unit(unit_id="u", source=SOURCE, source_sha256="ab" * 32)


def test_a_row_says_only_what_is_known():
    row = to_table([source_row(UNIT, Fate(name="kept"), "p", "k")]).to_pylist()[0]
    assert (row["fate"], row["kind"], row["num_candidates"]) == ("kept", "source", 0)
    unknown = ("rule", "score", "threshold", "stage", "error_class", "message", "duplicate_of")
    assert all(row[name] is None for name in (*unknown, "motion", "shard"))
    assert row["source_uri"].startswith("/videos/")


def test_a_column_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="wrong_name"):
        to_table([base_row(UNIT, "p", "k") | {"wrong_name": 1}])
    assert to_table([]).schema.equals(ledger_schema())


def test_messages_are_one_printable_line():
    fate = Fate(name="failed", message="a\nb\x1b[31m\udcff" + "x" * 999)
    message = fate.columns()["message"]
    assert message.isprintable()
    assert len(message) <= 500
    assert printable("tab\there") == "tab here"


def test_an_unreadable_source_still_has_an_id():
    assert source_id(SOURCE, "ab" * 32) == "ab" * 32
    assert len(source_id(SOURCE, "")) == 64
    elsewhere = Source(uri="/other/\udcff\n.mp4", bytes=7, mtime_ns=0)
    assert source_id(SOURCE, "") == source_id(elsewhere, "")  # the folder is no part of it
