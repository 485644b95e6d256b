"""What passes found, beside the ledger: for the very payload only, and not before it is made anew."""

import numpy as np
import pyarrow as pa
import pytest

from ingest.decide import readable
from ingest.evidence import Pending, alike, scored
from ingest.schema import embeddings_schema, scores_schema
from tests.ingest.made_shards import made, name_of

ONE, TWO, THREE = (name_of(f"a/{number}") for number in range(3))


@pytest.fixture
def dataset(tmp_path):
    return made(tmp_path, "abc")


@pytest.fixture
def payloads(dataset):
    rows = dataset.kept_clips().to_pylist()
    return {row["clip_id"]: row["payload_sha256"] for row in rows}


def score(clip, payload, value, *, producer="nice/v1", settings="s", name="aesthetic"):
    bound = {"clip_id": clip, "payload_sha256": payload, "producer": producer}
    return bound | {"settings": settings, "name": name, "value": value}


def store(dataset, name, rows, schema):
    table = pa.Table.from_pylist(rows, schema=schema)
    dataset.annotate(name, table, app_id="t", batch=dataset.next_annotation(name, "t"))


def values(dataset, names=("aesthetic",), **more):
    found = scored(dataset, readable(dataset.ledger_table), names, **more)
    rows = found.select(["id", *names]).to_pylist()
    return {row["id"]: tuple(row[name] for name in names) for row in rows}


def test_a_score_counts_for_its_payload_and_the_first_producer_is_believed(dataset, payloads):
    rows = [
        score(ONE, payloads[ONE], 2.0, producer="other/v1"),
        score(ONE, payloads[ONE], 1.0, producer="nice/v2"),
        score(ONE, payloads[ONE], 9.0, name="text_match"),
        score(TWO, "another payload", 5.0),
        score(THREE, payloads[THREE], None),
        score(name_of("nobody"), payloads[ONE], 7.0),
    ]
    store(dataset, "scores", rows, scores_schema())
    found = values(dataset, ("aesthetic", "text_match", "unheard"))
    assert found.pop(ONE) == (1.0, 9.0, None)
    assert set(found.values()) == {(None, None, None)}


def test_what_is_pending_does_not_count_yet(dataset, payloads):
    rows = [
        score(ONE, payloads[ONE], 1.0, settings="old"),
        score(TWO, payloads[TWO], 2.0, settings="new"),
    ]
    store(dataset, "scores", rows, scores_schema())
    found = values(dataset, pending=Pending(scores={"aesthetic": "new"}))
    assert (found[ONE], found[TWO]) == ((None,), (2.0,))
    found = values(dataset, pending=Pending(scores={"aesthetic": ""}))
    assert set(found.values()) == {(None,)}
    assert values(dataset)[ONE] == (1.0,)


def test_without_a_table_nothing_is_known(dataset):
    ledger = readable(dataset.ledger_table)
    assert scored(dataset, ledger, ("aesthetic",)).equals(ledger)
    assert alike(dataset, [ONE, TWO], min_cosine=0.9)(ONE, TWO)
    waits = Pending(vectors="s")
    assert not alike(dataset, [ONE, TWO], min_cosine=0.9, pending=waits)(ONE, TWO)


def vector(clip, payload, x, y, *, settings="s"):
    at = np.array([x, y]) / np.hypot(x, y)
    bound = {"clip_id": clip, "payload_sha256": payload, "producer": f"model/{settings}"}
    return bound | {"settings": settings, "dim": 2, "vector": at.astype("<f2").tobytes()}


def test_copies_must_have_near_vectors_where_both_have_some(dataset, payloads):
    rows = [
        vector(ONE, payloads[ONE], 1, 0),
        vector(TWO, payloads[TWO], 1, 0.1),
        vector(THREE, payloads[THREE], 0, 1),
        vector(THREE, payloads[THREE], 1, 0, settings="old"),
        vector(name_of("b/0"), "another payload", 0, 1),
    ]
    store(dataset, "embeddings", rows, embeddings_schema())
    names = [ONE, TWO, THREE, name_of("b/0"), "it's"]
    are = alike(dataset, names, min_cosine=0.9)
    assert are(ONE, TWO)
    assert not are(ONE, THREE)
    assert are(ONE, name_of("b/0"))  # its vector is of another payload: the hashes decide
    assert not alike(dataset, names, min_cosine=0.999)(ONE, TWO)
    waits = alike(dataset, names, min_cosine=0.9, pending=Pending(vectors="s"))
    assert waits(ONE, TWO)
    assert not waits(ONE, name_of("b/0"))
