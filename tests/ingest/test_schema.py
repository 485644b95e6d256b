"""The stored columns are frozen: a change has to be made here too, where a reader sees it.

The golden file was written by `python -m tests.ingest.test_schema`.
"""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from ingest import schema

GOLDEN = Path(__file__).parents[1] / "golden" / "schema_v1.json"
MAKERS = {
    name: getattr(schema, f"{name}_schema")
    for name in (
        *("payload", "ledger", "captions", "labels", "rights", "latents", "scores", "embeddings"),
        *("log", "view"),
    )
}


def told(columns: pa.Schema) -> list[list]:
    """Return a schema as plain values."""
    return [
        [
            f.name,
            str(f.type),
            f.nullable,
            {k.decode(): v.decode() for k, v in (f.metadata or {}).items()},
        ]
        for f in columns
    ]


@pytest.mark.parametrize("name", MAKERS)
def test_columns_are_those_of_the_golden_file(name):
    assert told(MAKERS[name]()) == json.loads(GOLDEN.read_text())[name]


def test_scores_say_what_they_are():
    for field in schema.SCORE_FIELDS:
        assert {b"kinoray.unit", b"kinoray.range", b"kinoray.direction"} <= field.metadata.keys()
    assert schema.payload_schema().names[-1] == "payload"


def test_older_rows_get_what_they_lack():
    old = schema.labels_schema().remove(4).remove(3).empty_table()
    rows = schema.conformed(
        pa.Table.from_pylist(
            [{"clip_id": "a", "producer": "b", "payload_sha256": "c"}], old.schema
        ),
        schema.rights_schema().append(pa.field("clip_id", pa.utf8())),
    )
    assert rows.column("clip_id").to_pylist() == ["a"]
    assert rows.column("licence").to_pylist() == [None]


if __name__ == "__main__":
    GOLDEN.write_text(
        json.dumps({name: told(make()) for name, make in MAKERS.items()}, indent=1) + "\n"
    )
