"""Rows that take the place of others, in one commit and in whatever file they are."""

import pyarrow as pa

from ingest.annotate import annotate_file
from ingest.purge import purge
from ingest.restate import key_of, restate
from ingest.schema import captions_schema
from ingest.store import Dataset
from ingest.tables import Table
from tests.ingest.made import made


def test_rows_take_the_place_of_their_keys(tmp_path):
    dataset = made(tmp_path / "d", sources=2)
    made(tmp_path / "d", sources=2, first=2)  # a second file
    dataset.refresh()
    rows = sorted(dataset.captions().to_pylist(), key=lambda row: row["clip_id"])
    changed = [row | {"caption": "new", "settings": "s"} for row in rows[::3]]
    stranger = changed[0] | {"producer": "nobody/v1"}
    version = dataset.versions()["annotations/captions"]
    restate(dataset, "captions", [*changed, stranger], retract=[key_of("captions", rows[1])])
    assert dataset.versions()["annotations/captions"] == version + 1
    found = {row["clip_id"]: row for row in Dataset.open(tmp_path / "d").captions().to_pylist()}
    expected = {row["clip_id"]: row for row in rows} | {row["clip_id"]: row for row in changed}
    del expected[rows[1]["clip_id"]]
    assert found == expected


def test_an_older_table_and_what_was_taken_down(tmp_path):
    dataset = made(tmp_path / "d", sources=1)
    table = dataset.table("annotations/captions")
    before = table.rows()
    old = pa.schema(list(captions_schema())[:5])
    older = Table.create(
        dataset.root, "annotations/labels", old, key="clip_id,producer,payload_sha256"
    )
    older.append_missing(before.select(old.names))
    dataset.refresh()
    dataset._tables["annotations/captions"] = older
    rows = [row | {"caption": "new", "status": "ok"} for row in before.to_pylist()]
    restate(dataset, "captions", rows[:1])
    assert older.rows().num_rows == 3
    assert sorted(older.rows().column("caption").to_pylist())[-1] == "new"
    del dataset._tables["annotations/captions"]
    purge(dataset, clips=[rows[0]["clip_id"]], reason="asked to")
    restate(dataset, "captions", rows)
    assert sorted(r["clip_id"] for r in dataset.captions().to_pylist()) == sorted(
        r["clip_id"] for r in rows[1:]
    )


def test_a_file_of_captions_corrects_itself_in_an_older_table(tmp_path):
    dataset = made(tmp_path / "d", sources=1, clips=1)
    clip = dataset.kept_clips().column("clip_id").to_pylist()[0]
    for words in ("first", "second"):
        (tmp_path / "said.csv").write_text(f"clip_id,caption\n{clip},{words}\n")
        annotate_file(dataset, tmp_path / "said.csv", name="captions")
    assert Dataset.open(dataset.root).kept_clips().to_pylist()[0]["caption"] == "second"
