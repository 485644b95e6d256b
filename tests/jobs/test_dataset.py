"""`kinoray dataset ...` as a person uses it, on a copy of the tiny dataset."""

import json
import shutil
from pathlib import Path

import pytest

from ingest.store import Dataset
from jobs.__main__ import _guarded


@pytest.fixture
def place(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny.root, tmp_path / "mine")
    return "mine"


def guarded(*words):
    try:
        return _guarded(list(words))
    except SystemExit as end:
        return end.code


@pytest.fixture
def told(capsys):
    def run(*words, code=0):
        capsys.readouterr()
        assert guarded("dataset", *words, "--json") == code
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def test_a_person_looks_into_a_dataset(place, told, capsys):
    info = told("info", place)
    assert (info["clips_kept"], info["contract"], info["tags"]) == (3, "80 frames at 16 fps", [])
    found = told("query", place, "SELECT caption FROM clips WHERE caption LIKE '%red%'")
    assert found == {"columns": ["caption"], "rows": [{"caption": "a red square"}]}
    assert told("verify", place, "how=decode")["problems"] == []
    assert (
        _guarded(["dataset", "query", place, "SELECT fate, count(*) AS n FROM ledger GROUP BY 1"])
        == 0
    )
    assert "kept  6" in capsys.readouterr().out
    page = told("report", place)["report"]
    text = Path(page).read_text(encoding="utf-8")
    assert text.count("<video") == 3
    assert "a red square" in text
    assert "http" not in text


def test_versions(place, told):
    assert [t["name"] for t in told("tag", place, "v1")["tags"]] == ["v1"]
    assert "exists" in told("tag", place, "v1", code=2)["error"]
    clip = told("query", place, "SELECT clip_id FROM clips")["rows"][0]["clip_id"]
    with Path("labels.csv").open("w", encoding="utf-8") as file:
        file.write(f"clip_id,label\n{clip},square\n{'0' * 64},nobody\n")
    assert told("import", place, "labels.csv", "as=labels", code=3)["unknown"] == 1
    assert told("diff", place, "v1")["relabelled"]["total"] == 1
    assert told("info", place, "at=v1")["digest"] != told("info", place)["digest"]
    told("restore", place, "v1")
    assert told("diff", place, "v1")["relabelled"]["total"] == 0
    assert told("tag", place, "v1", "remove=true")["tags"] == []
    assert "no tag" in told("info", place, "at=v1", code=2)["error"]


def test_a_dataset_is_packed_shared_and_brought_back(place, told):
    digest = told("info", place)["digest"]
    assert told("compact", place, "--dry-run")["shards_after"] == 1
    assert told("compact", place)["shards_after"] == 1
    assert told("gc", place, "older_than_s=0")["bytes"] > 0
    assert told("info", place)["digest"] == digest
    assert (
        told("export", place, "out", "format=folder", "select.where=caption LIKE '%red%'")["clips"]
        == 1
    )
    assert told("import", "theirs", "out")["kept"] == 1
    assert told("sync", place, "copy")["digest"] == digest
    assert told("verify", "copy", "how=sha256")["clips"] == 3


def test_takedown(place, told):
    red = told("query", place, "SELECT clip_id, source_sha256 FROM clips ORDER BY caption DESC")
    gone = red["rows"][0]
    assert "reason" in told("delete", place, f"clip={gone['clip_id']}", code=2)["error"]
    done = told("delete", place, f"source={gone['source_sha256']}", "reason=asked for")
    assert (done["clips"], done["left"], done["saw"]) == ([gone["clip_id"]], [], [])
    assert told("info", place)["clips_kept"] == 2
    assert Dataset.open(place).purged() == {gone["clip_id"], gone["source_sha256"]}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["info", "nowhere"], 2, "not a dataset"),
        (["info", "MINE", "at=9999"], 2, "9999"),
        (["query", "MINE", "DELETE FROM ledger"], 2, "one SELECT"),
        (["query", "MINE", "SELECT 1; SELECT 2"], 2, "one SELECT"),
        (["verify", "MINE", "how=hard"], 2, "how"),
        (["verify", "MINE", "hwo=crc"], 2, "did you mean how"),
        (["delete", "MINE", "reason=x"], 2, "name what is to be taken down"),
        (["delete", "MINE", "clip=abc", "reason=x"], 2, "abc"),
        (["export", "MINE", "out", "select.split=tset"], 2, "select.split"),
        (["export", "MINE", "out", "select.where=nix = 1"], 2, "nix"),
        (["import", "MINE", "nowhere"], 2, "nowhere"),
        (["sync", "MINE", "s3://bucket"], 2, "a prefix in it"),
        (["restore", "MINE", "v9"], 2, "no tag"),
        (["gc", "MINE", "older_than_s=-1"], 2, "at least 0"),
    ],
)
def test_one_line_for_each_mistake(words, code, said, place, told):
    assert said in told(*[place if word == "MINE" else word for word in words], code=code)["error"]
