"""Scores and failed captions of annotation passes, as `clips` tells of them."""

import pyarrow as pa
import pytest

from ingest import compare, passport, schema, upkeep, versions
from ingest.schema import captions_schema, scores_schema
from ingest.select import Selection
from ingest.store import Dataset
from tests.ingest.made import made, said


def add(dataset, name, rows):
    make, _key = schema.ANNOTATIONS[name]
    batch = dataset.next_annotation(name, "test")
    table = pa.Table.from_pylist(rows, schema=make())
    dataset.annotate(name, table, app_id="test", batch=batch)


def test_every_score_is_a_column(tmp_path):
    dataset = made(tmp_path / "d", sources=2)
    first, second, *_ = kept = dataset.kept_clips().to_pylist()
    assert "beauty" not in first
    digest = dataset.digest()
    old = said(first | {"id": first["clip_id"]}, "b/v1")
    rows = [
        old | {"name": "beauty", "value": 4.0},
        old | {"name": "beauty", "value": 7.0, "producer": "a/v1"},
        old | {"name": "calm", "value": 0.5},
        old | {"name": "motion", "value": 9.0},  # the ledger's own column stays what it is
        old | {"name": "x'; --", "value": 9.0},
        said(second | {"id": second["clip_id"]}, "b/v1") | {"name": "beauty", "value": None},
        {**old, "clip_id": second["clip_id"], "payload_sha256": "other", "name": "calm", "value": 1.0},
    ]  # fmt: skip
    add(dataset, "scores", rows)
    found = Dataset.open(tmp_path / "d").kept_clips().to_pylist()
    assert [row["clip_id"] for row in found] == [row["clip_id"] for row in kept]
    assert [(row["beauty"], row["calm"]) for row in found[:2]] == [(7.0, 0.5), (None, None)]
    assert found[0]["motion"] == kept[0]["motion"]
    assert dataset.query("SELECT count(*) AS n FROM clips WHERE beauty > 5").to_pylist() == [
        {"n": 1}
    ]
    assert dataset.digest() == digest


def test_a_failed_caption_is_none(tmp_path):
    dataset = made(tmp_path / "d", sources=1, clips=2)
    before = dataset.kept_clips().to_pylist()
    versions.tag(dataset, "before")
    failed = {"caption": "", "rank": -5, "status": "failed", "message": "Timeout: 3 s"}
    add(
        dataset, "captions", [said(row | {"id": row["clip_id"]}, "m/v1") | failed for row in before]
    )
    assert dataset.kept_clips().to_pylist() == before
    assert compare.diff(Dataset.open(dataset.root, "before"), dataset).same
    told = passport.passports(dataset, Selection()).column("captions").to_pylist()
    assert not any("m/v1" in text for text in told)


def test_an_older_table_is_widened(tmp_path):
    dataset = made(tmp_path / "d", sources=1)
    table = dataset.table("annotations/captions")
    upkeep.widen(table, captions_schema())
    version = table.version
    upkeep.widen(table, captions_schema())
    assert table.version == version
    wider = pa.schema([*captions_schema(), pa.field("new", pa.float64())])
    upkeep.widen(table, wider)
    assert table.schema().names == wider.names
    assert table.rows().column("new").null_count == 3


@pytest.mark.parametrize("name", ["scores", "embeddings"])
def test_absent_tables_can_be_asked(tmp_path, name):
    dataset = made(tmp_path / "d", sources=1)
    assert dataset.query(f"SELECT * FROM {name}").num_rows == 0
    assert scores_schema().names[-1] == "value"
