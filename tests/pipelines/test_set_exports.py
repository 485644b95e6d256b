"""Sets as others' evaluations want them: what is named how, and what cannot be."""

import json

import pyarrow as pa
import pytest

from ingest.objects import Root
from ingest.tables import Table
from pipelines.manifest import FOLDER, KEY, SCHEMA, Asked, Incomplete
from pipelines.output import WrongInput
from pipelines.set_exports import export


def made(folder, prompts, *, seeds=2, names=(), more="{}"):
    """Write a set whose videos are a few bytes: they are copied as they are."""
    rows = []
    for number, prompt in enumerate(prompts):
        for index in range(seeds):
            identity = f"{number:032x}{index:032x}"
            path = f"videos/{number}-{index}.mp4"
            (folder / "videos").mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(f"{prompt} {index}")
            row = {
                KEY: identity,
                "identity": identity,
                "status": "done",
                "prompt_id": f"{number:016x}",
                "prompt": prompt,
                "prompt_name": names[number] if names else "",
                "more": more,
                "index": index,
                "seed": "0",
                "view_path": path,
            }
            rows.append(row)
    table = Table.create(Root.of(folder), FOLDER, SCHEMA, key=KEY)
    table.commit(
        pa.Table.from_pylist(rows, schema=SCHEMA), app_id="test", batch=table.next_batch("test")
    )
    Asked(tuple(row["identity"] for row in rows)).write(folder)
    return folder


def test_vbench_finds_every_video_by_its_prompt(tmp_path):
    more = json.dumps({"dimension": ["color"], "auxiliary_info": {"color": {"color": "red"}}})
    folder = made(tmp_path / "set", ["a red boat", "ein schöner Tag"], more=more)
    assert export(folder, "vbench", tmp_path / "out") == 4
    names = {path.name for path in (tmp_path / "out").glob("*.mp4")}
    assert names == {f"{p}-{i}.mp4" for p in ("a red boat", "ein schöner Tag") for i in (0, 1)}
    assert (tmp_path / "out" / "a red boat-1.mp4").read_text() == "a red boat 1"
    told = json.loads((tmp_path / "out" / "full_info.json").read_text())
    assert [one["prompt_en"] for one in told] == ["a red boat", "ein schöner Tag"]
    assert told[0]["dimension"] == ["color"]
    assert told[0]["auxiliary_info"] == {"color": {"color": "red"}}
    assert told[0]["video_list"] == ["a red boat-0.mp4", "a red boat-1.mp4"]


def test_evalcrafter_finds_the_first_of_each_number(tmp_path):
    folder = made(tmp_path / "set", ["one", "two"], names=["0000", "0001"])
    assert export(folder, "evalcrafter", tmp_path / "out") == 2
    assert (tmp_path / "out" / "0001.mp4").read_text() == "two 0"
    twice = made(tmp_path / "twice", ["one"], names=["0007"], more='{"names": ["0007", "0100"]}')
    assert export(twice, "evalcrafter", tmp_path / "both") == 2
    assert (tmp_path / "both" / "0100.mp4").read_text() == "one 0"


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (["a cat", "A Cat"], r"4 videos would have the name of another, but for case \('A Cat-0.mp4'.*next:"),
        (["a/b", "c"], r"2 prompts cannot be names of files \('a/b-0.mp4'.*next:"),
        (["../up"], "cannot be names of files"),
        (["x" * 300], "cannot be names of files"),
        (["two\nlines"], "cannot be names of files"),
    ],
)  # fmt: skip
def test_names_that_cannot_be_are_refused_before_anything_is_written(tmp_path, prompts, said):
    folder = made(tmp_path / "set", prompts)
    with pytest.raises(WrongInput, match=said):
        export(folder, "vbench", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_what_is_not_whole_or_not_known_is_refused(tmp_path):
    folder = made(tmp_path / "set", ["a"])
    with pytest.raises(
        WrongInput, match="layout: 'vbnch' is not known; next: vbench or evalcrafter"
    ):
        export(folder, "vbnch", tmp_path / "out")
    with pytest.raises(WrongInput, match="no number of EvalCrafter"):
        export(folder, "evalcrafter", tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(WrongInput, match="is there already; next: another folder"):
        export(folder, "vbench", tmp_path / "there")
    asked = Asked.read(folder)
    assert asked is not None
    Asked((*asked.identities, "f" * 64)).write(folder)
    with pytest.raises(Incomplete, match="1 of 3 samples are missing"):
        export(folder, "vbench", tmp_path / "out")
