import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.annotate import BadAnnotation, annotate_file
from ingest.select import Selection
from ingest.sheets import NotASheet
from ingest.store import Dataset, ReadOnly
from tests.ingest.made import digest, label, made


@pytest.fixture
def dataset(tmp_path):
    return made(tmp_path / "dataset", sources=3, clips=2)


def sheet(path, rows, suffix="csv"):
    path = path / f"said.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        names = list(rows[0])
        lines = [",".join(names), *(",".join(str(row.get(n, "")) for n in names) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    return path


def said(dataset, *names):
    """What the clips of each source are said to be, by the number of the source."""
    found = {}
    for row in dataset.kept_clips().to_pylist():
        number = int(row["source_uri"].rpartition("/")[2].removesuffix(".mp4"))
        found.setdefault(number, set()).add(tuple(row[name] for name in names))
    return {number: sorted(values) for number, values in found.items()}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_labels_of_sources_reach_all_their_clips_once(suffix, dataset, tmp_path):
    rows = [
        {"source_uri": "/videos/0.mp4", "label": "walking"},
        {"source_uri": "1.mp4", "label": "running "},
        {"source_uri": "nowhere.mp4", "label": "flying"},
        {"source_uri": "/elsewhere/2.mp4", "label": "swimming"},
    ]
    path = sheet(tmp_path, rows, suffix)
    done = annotate_file(dataset, path, name="labels")
    assert (done.rows, done.named, done.unknown, done.added) == (4, 4, 2, 4)
    assert done.examples == ("nowhere.mp4", "/elsewhere/2.mp4")
    assert said(dataset, "label") == {0: [("walking",)], 1: [("running",)], 2: [("",)]}
    assert {row["producer"] for row in dataset.annotation("labels").to_pylist()} == {
        f"file:said.{suffix}"
    }
    versions = dataset.versions()
    again = annotate_file(Dataset.open(dataset.root), path, name="labels")
    assert (again.added, again.changed, again.unknown) == (0, 0, 2)
    dataset.refresh()
    assert dataset.versions() == versions | {"log": dataset.versions()["log"]}
    (logged,) = dataset.history()
    assert logged["operation"] == "annotate"
    assert logged["detail"]["unknown"] == 2


def test_the_same_file_counts_for_clips_that_came_later(dataset, tmp_path):
    path = sheet(tmp_path, [{"source_uri": f"{n}.mp4", "label": "walking"} for n in range(5)])
    assert annotate_file(dataset, path, name="labels").unknown == 2
    later = made(dataset.root, sources=2, clips=2, first=3)
    done = annotate_file(later, path, name="labels")
    assert (done.unknown, done.added) == (0, 4)
    assert set(map(tuple, said(later, "label").values())) == {(("walking",),)}


def test_a_producer_corrects_itself_and_nobody_else(dataset, tmp_path):
    label(dataset, "guessed", producer="zebra")
    for word in ("walking", "running"):
        done = annotate_file(
            dataset, sheet(tmp_path, [{"source_uri": "0.mp4", "label": word}]), name="labels"
        )
        assert (done.added, done.changed) == ((2, 0) if word == "walking" else (0, 2))
    assert said(dataset, "label") == {0: [("running",)], 1: [("guessed",)], 2: [("guessed",)]}
    rows = dataset.annotation("labels").to_pylist()
    assert sum(row["label"] == "guessed" for row in rows) == 6


def test_captions_of_clips_go_before_those_of_curation(dataset, tmp_path):
    clips = dataset.kept_clips().column("clip_id").to_pylist()
    path = sheet(
        tmp_path, [{"clip_id": clip, "caption": f"clip  {n}"} for n, clip in enumerate(clips)]
    )
    assert annotate_file(dataset, path, name="captions", producer="me").added == 6
    rows = dataset.kept_clips().to_pylist()
    assert [row["caption"] for row in rows] == [f"clip {n}" for n in range(6)]
    assert {row["caption_producer"] for row in rows} == {"me"}
    assert dataset.captions().num_rows == 12
    annotate_file(dataset, path, name="captions", producer="meek", rank=5)
    assert {row["caption_producer"] for row in dataset.kept_clips().to_pylist()} == {"me"}


def test_the_statement_of_rights_made_last_holds(dataset, tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
    first = sheet(
        tmp_path / "a", [{"source_sha256": digest("source 0"), "license": "cc0"}], "jsonl"
    )
    second = sheet(
        tmp_path / "b", [{"source_uri": "0.mp4", "licence": "mit", "consent": "given"}], "jsonl"
    )
    third = sheet(tmp_path / "c", [{"source_uri": "0.mp4", "consent": "refused"}], "parquet")
    wanted = [(first, "cc0", ""), (second, "mit", "given"), (third, "mit", "refused"),
              (first, "cc0", "refused")]  # fmt: skip
    for count, (path, licence, consent) in enumerate(wanted, 1):
        for added in (1, 0):
            assert annotate_file(dataset, path, name="rights").added == added
        assert said(dataset, "licence", "consent")[0] == [(licence, consent)]
        assert dataset.annotation("rights").num_rows == count
    assert dataset.select(Selection(licences=("cc0",))).num_rows == 2
    assert dataset.select(Selection(consents=("given",))).num_rows == 0
    future = {"source_sha256": digest("source 1"), "producer": "x", "at": "2999-01-01T00:00:00.000000+00:00",
              "licence": "cc0", "consent": ""}  # fmt: skip
    batch = dataset.next_annotation("rights", "x")
    dataset.annotate("rights", pa.Table.from_pylist([future]), app_id="x", batch=batch)
    path = sheet(tmp_path, [{"source_uri": "1.mp4", "licence": "none"}])
    annotate_file(dataset, path, name="rights")
    assert said(dataset, "licence")[1] == [("none",)]


def test_names_of_files_must_mean_one_source(tmp_path):
    dataset = made(tmp_path / "dataset", sources=1, clips=1)
    rows = dataset.ledger().to_pylist()
    assert {row["source_uri"] for row in rows} == {"/videos/0.mp4"}
    from ingest.upkeep import replace_rows  # noqa: PLC0415

    twin = made(tmp_path / "twin", sources=1, clips=1, first=1).ledger().to_pylist()
    moved = [row | {"source_uri": "/more/0.mp4"} for row in twin]
    table = dataset.table("ledger")
    replace_rows(table, pa.Table.from_pylist(rows + moved, schema=dataset.ledger().schema))
    assert (
        annotate_file(
            dataset, sheet(tmp_path, [{"source_uri": "0.mp4", "label": "x"}]), name="labels"
        ).unknown
        == 1
    )
    done = annotate_file(
        dataset, sheet(tmp_path, [{"source_uri": "more/0.mp4", "label": "x"}]), name="labels"
    )
    assert (done.named, done.added) == (1, 1)


BROKEN = {
    "differently": [
        {"source_uri": "0.mp4", "label": "a"},
        {"source_uri": "/videos/0.mp4", "label": "b"},
    ],
    r"said\.jsonl:2.*names no clip": [{"source_uri": "0.mp4", "label": "a"}, {"label": "b"}],
    "no column label": [{"source_uri": "0.mp4", "caption": "a"}],
    "not text, or empty": [{"source_uri": "0.mp4", "label": "  "}],
    "label is not text": [{"source_uri": "0.mp4", "label": ["a"]}],
    "names no clip and": [{"source_uri": 5, "label": "a"}],
}


@pytest.mark.parametrize("words", BROKEN)
def test_a_file_that_makes_no_sense_is_refused_whole(words, dataset, tmp_path):
    good = {"source_uri": "1.mp4", "label": "good"}
    path = sheet(tmp_path, [*BROKEN[words], good], "jsonl")
    with pytest.raises(BadAnnotation, match=words):
        annotate_file(dataset, path, name="labels")
    assert dataset.annotation("labels").num_rows == 0


def test_files_that_are_no_tables(dataset, tmp_path):
    path = tmp_path / "said.csv"
    for text, kind, words in (
        ("source_uri,label\n0.mp4\n", BadAnnotation, "not 2 columns"),
        ("label,label\na,b\n", NotASheet, "named twice"),
        ("source_uri,label\n\xff\n", NotASheet, "cannot be read"),
    ):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(kind, match=words):
            annotate_file(dataset, path, name="labels")
    for name in ("said.txt", "said.parquet"):
        (tmp_path / name).write_text("no")
        with pytest.raises(NotASheet, match="said"):
            annotate_file(dataset, tmp_path / name, name="labels")
    with pytest.raises(FileNotFoundError):
        annotate_file(dataset, tmp_path / "absent.csv", name="labels")
    with pytest.raises(BadAnnotation, match="labels, captions, rights"):
        annotate_file(dataset, path, name="latents")


def test_old_versions_are_not_written_to(dataset, tmp_path):
    path = sheet(tmp_path, [{"source_uri": "0.mp4", "label": "x"}])
    with pytest.raises(ReadOnly):
        annotate_file(Dataset.open(dataset.root, "1"), path, name="labels")
