"""Passes over what people said: no Ray, no frames; a changed text changes its own clips."""

import json
import shutil
import tomllib
from dataclasses import dataclass, replace

import pytest

from ingest.annotate import annotate_file
from ingest.caption import Captions
from ingest.caption_clean import Clean
from ingest.purge import purge
from ingest.scorers import Scorers
from ingest.sources import Source
from ingest.stage import NotAStage
from ingest.store import Dataset
from jobs import config
from pipelines.annotate import annotate
from pipelines.captioners import passes_of
from tests.pipelines.made_clips import Heard, made_clips, surroundings


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("said")
    return folder, made_clips(folder / "dataset", folder / "videos", frames=16)


@pytest.fixture
def place(made, tmp_path):
    """A dataset and its videos for one test, without encoding again."""
    shutil.copytree(made[0] / "dataset", tmp_path / "dataset")
    for text in made[0].glob("videos/*.txt"):
        text.unlink()
    return made[0] / "videos", Dataset.open(tmp_path / "dataset")


def run(dataset, captions, sources=(), scorers=None):
    heard = Heard()
    around = surroundings(ray_is_open=False)
    told = annotate(dataset, passes_of(captions, scorers, sources), context=around, recorder=heard)
    for one in told:
        assert (
            one.made + one.unchanged + one.failed + one.silent + one.skipped + one.left == one.clips
        )
    return {one.producer: one for one in told}


def said(dataset):
    rows = dataset.query("SELECT source_uri, start_s, caption, caption_producer AS by FROM clips ORDER BY 1, 2")  # fmt: skip
    return [(row["caption"], row["by"].partition("/")[0]) for row in rows.to_pylist()]


def test_side_files_then_names(place):
    videos, dataset = place
    (videos / "red car 1.txt").write_text("The video shows two dogs. See https://dogs.example")
    captions = Captions(captioners=("sidecar", "name"))
    told = run(dataset, captions)
    assert (told["sidecar/v1"].made, told["sidecar/v1"].silent) == (2, 4)
    assert (told["name/v1"].made, told["name/v1"].skipped) == (4, 2)
    assert told["sidecar/v1"].rules == {"prefix": 2, "url": 2}
    car, dogs = ("red car", "name"), ("Two dogs. See", "sidecar")
    assert said(dataset) == [car, car, dogs, dogs, car, car]
    versions = dataset.versions()
    told = run(Dataset.open(dataset.root), captions)
    assert sum(one.made for one in told.values()) == 0
    assert Dataset.open(dataset.root).versions() == versions


def test_a_changed_side_file_changes_its_own_clips(place):
    videos, dataset = place
    captions = Captions(captioners=("sidecar", "name"))
    (videos / "red car 1.txt").write_text("dogs")
    run(dataset, captions)
    (videos / "red car 1.txt").write_text("cats")
    assert run(dataset, captions)["sidecar/v1"].made == 2
    assert said(dataset)[2:4] == [("cats", "sidecar")] * 2
    (videos / "red car 0.txt").write_text("birds")
    assert run(dataset, captions)["sidecar/v1"].made == 2
    (videos / "red car 1.txt").unlink()
    told = run(dataset, captions)
    assert (told["sidecar/v1"].made, told["name/v1"].made) == (0, 2)
    expected = [("birds", "sidecar")] * 2 + [("red car", "name")] * 4
    assert said(dataset) == expected
    # A run without its history says the same.
    rows = dataset.captions().to_pylist()
    assert len({(r["clip_id"], r["producer"]) for r in rows}) == len(rows)


def test_what_cannot_be_seen_from_here_stays(place, tmp_path):
    videos, dataset = place
    (videos / "red car 1.txt").write_text("dogs")
    run(dataset, Captions(captioners=("sidecar",)))
    away = tmp_path / "away"
    hidden = videos.rename(away)
    told = run(dataset, Captions(captioners=("sidecar", "name")))
    hidden.rename(videos)
    assert (told["sidecar/v1"].unchanged, told["sidecar/v1"].silent) == (2, 4)
    assert said(dataset)[2] == ("dogs", "sidecar")
    assert told["name/v1"].skipped == 2


def test_the_order_of_preference_can_change_alone(place):
    videos, dataset = place
    (videos / "red car 1.txt").write_text("dogs")
    both = Captions(captioners=("sidecar", "name"), several=True)
    assert run(dataset, both)["name/v1"].made == 6
    assert said(dataset)[2] == ("dogs", "sidecar")
    told = run(dataset, Captions(captioners=("name", "sidecar"), several=True))
    assert [one.made for one in told.values()] == [0, 0]
    assert said(dataset)[2] == ("red car", "name")
    assert dataset.captions().num_rows == 8


def test_the_recipe_of_now_decides_whatever_was_said_before(place):
    videos, dataset = place
    (videos / "red car 1.txt").write_text("dogs")
    dogs, car = ("dogs", "sidecar"), ("red car", "name")
    for captioners, expected in (
        (("name", "sidecar"), car),
        (("sidecar", "name"), dogs),
        (("name", "sidecar"), car),
        (("sidecar",), dogs),
        (("name",), car),
        (("sidecar", "name"), dogs),
    ):
        told = run(dataset, Captions(captioners=captioners))
        dataset.refresh()
        assert said(dataset)[2] == expected, captioners
        fresh = dataset.captions().to_pylist()
        assert len({(row["clip_id"], row["producer"]) for row in fresh}) == len(fresh)
    assert sum(one.made for one in told.values()) == 0  # nothing was lost on the way


def test_what_people_stated_in_a_file_is_never_demoted(place, tmp_path):
    _videos, dataset = place
    clip = dataset.kept_clips().column("clip_id").to_pylist()[0]
    (tmp_path / "said.csv").write_text(f"clip_id,caption\n{clip},by hand\n")
    annotate_file(dataset, tmp_path / "said.csv", name="captions")
    run(dataset, Captions(captioners=("name",)))
    dataset.refresh()
    assert dataset.kept_clips().to_pylist()[0]["caption"] == "by hand"


def test_clean_up_can_refuse_and_the_next_is_asked(place):
    videos, dataset = place
    (videos / "red car 1.txt").write_text("две собаки")
    captions = Captions(captioners=("sidecar", "name"), clean=Clean(scripts=("latin",)))
    told = run(dataset, captions)
    assert told["sidecar/v1"].failed == 2
    assert told["sidecar/v1"].rules == {"refused: language": 2}
    assert said(dataset)[2] == ("red car", "name")
    again = run(dataset, captions)
    assert (again["sidecar/v1"].failed, again["sidecar/v1"].rules) == (2, {})  # not tried again
    failed = [row for row in dataset.captions().to_pylist() if row["status"] == "failed"]
    assert {row["message"] for row in failed} == {"Unclean: clean-up refused it: language"}
    assert run(dataset, Captions(captioners=("sidecar",)))["sidecar/v1"].made == 2


@pytest.mark.parametrize("by", ["new rules", "a new text"])
def test_what_is_refused_later_is_the_caption_no_more(place, by):
    videos, dataset = place
    both = Captions(captioners=("sidecar", "name"))
    strict = replace(both, clean=Clean(scripts=("latin",)))
    before, text = (both, "две собаки") if by == "new rules" else (strict, "dogs")
    (videos / "red car 1.txt").write_text(text)
    assert run(dataset, before)["sidecar/v1"].made == 2
    assert said(dataset)[2] == (text, "sidecar")
    (videos / "red car 1.txt").write_text("две собаки")
    assert run(dataset, strict)["sidecar/v1"].failed == 2
    assert said(dataset)[2] == ("red car", "name")
    again = run(dataset, strict)
    assert (again["sidecar/v1"].failed, again["sidecar/v1"].rules) == (2, {})  # not tried again


@dataclass(frozen=True)
class Words:
    text: str
    start_s: float = 0.0
    end_s: float = float("inf")


@dataclass(frozen=True)
class Told:
    captions: tuple = ()
    label: str = ""


class Listed(Source):
    """A source of a listing that says something of it."""

    __slots__ = ("said",)

    def __init__(self, uri, said):
        super().__init__(uri=uri, bytes=0, mtime_ns=0)
        object.__setattr__(self, "said", said)


def test_manifests_give_captions_and_labels(place):
    videos, dataset = place
    words = Told((Words("first", 0, 5), Words("then", 5, 10)), label="cars")
    sources = [
        Listed(str(videos / "red car 0.mp4"), words),
        Listed(str(videos / "red car 1.mp4"), Told()),
    ]
    captions = Captions()
    told = run(dataset, captions, sources)
    assert said(dataset)[:3] == [("first", "manifest"), ("then", "manifest"), ("red car", "name")]
    labels = dataset.query("SELECT label FROM clips ORDER BY source_uri, start_s").to_pylist()
    assert [row["label"] for row in labels] == ["cars", "cars", "", "", "", ""]
    changed = [Listed(str(videos / "red car 0.mp4"), Told((Words("other"),), label="bikes"))]
    told = run(dataset, captions, changed)
    assert told["manifest/v1"].made == 2
    assert said(dataset)[:2] == [("other", "manifest")] * 2
    assert set(dataset.annotation("labels").column("label").to_pylist()) == {"bikes"}
    run(dataset, captions, sources[1:])  # a listing without the source takes nothing away
    assert said(dataset)[0] == ("other", "manifest")
    assert set(dataset.annotation("labels").column("label").to_pylist()) == {"bikes"}
    run(dataset, captions, [Listed(str(videos / "red car 0.mp4"), Told())])
    assert dataset.annotation("labels").num_rows == 0  # nobody says so any more
    assert said(dataset)[0] == ("red car", "name")


def test_rows_of_a_caption_file_go_to_their_own_videos(place, tmp_path):
    """Of equal names in two folders each has its own row, and a video that is not listed keeps its words."""
    videos, dataset = place
    file = tmp_path / "rows.jsonl"
    sources = [Listed(str(videos / f"red car {n}.mp4"), Told()) for n in range(3)]

    def written(*rows):
        told = [{"video": str(name), "caption": text} for name, text in rows]
        file.write_text("\n".join(map(json.dumps, told)))
        return Captions(captioners=("sidecar", "name"), caption_file=file)

    rows = [(f"{videos.name}/red car 0.mp4", "by path"), ("red car 1.mp4", "by name")]
    run(dataset, written(*rows), sources)
    words = [("by path", "sidecar"), ("by name", "sidecar"), ("red car", "name")]
    assert said(dataset)[::2] == words
    twin = Listed(str(tmp_path / "elsewhere" / "red car 1.mp4"), Told())
    assert run(dataset, written(*rows), sources[2:])["sidecar/v1"].unchanged == 4
    assert said(dataset)[::2] == words
    run(dataset, written(*rows), [*sources, twin])  # now the name alone is nobody's
    assert said(dataset)[::2] == [words[0], ("red car", "name"), words[2]]


def test_what_was_taken_down_is_not_captioned_again(place):
    _videos, dataset = place
    first = dataset.kept_clips().column("clip_id").to_pylist()[0]
    purge(dataset, clips=[first], reason="asked")
    run(dataset, Captions())
    assert first not in dataset.captions().column("clip_id").to_pylist()
    assert dataset.captions().num_rows == 5


def test_recipes_that_cannot_be(tmp_path):
    for captioners, words in (
        (("oracle",), "unknown"),
        (("name", "name"), "named twice"),
        (({"prompt": "x"},), "needs|named by a table"),
    ):
        with pytest.raises(ValueError, match=words):
            Captions(captioners=captioners)
    own = {"use": "tests.ingest.stages_made:Shades"}
    with pytest.raises(NotAStage, match="called 'shades'"):
        passes_of(Captions(captioners=(own, own)))
    with pytest.raises(NotAStage, match="weights"):
        passes_of(Captions(captioners=("tags",)))
    with pytest.raises(FileNotFoundError):
        passes_of(Captions(caption_file=tmp_path / "absent"))


def test_in_an_object_store(bucket, tmp_path):
    dataset = made_clips(bucket, tmp_path / "videos", sources=2, clips=1, frames=16)
    (tmp_path / "videos" / "red car 1.txt").write_text("dogs")
    assert run(dataset, Captions())["sidecar/v1"].made == 1
    (tmp_path / "videos" / "red car 1.txt").write_text("cats")
    assert run(Dataset.open(bucket), Captions())["sidecar/v1"].made == 1
    assert said(Dataset.open(bucket)) == [("red car", "name"), ("cats", "sidecar")]


def test_a_recipe_in_words(tmp_path):
    (tmp_path / "words").write_text("a\n")
    table = tomllib.loads(
        """
        captioners = ["manifest", {use = "tests.ingest.stages_made:Shades", prompt = "{shade}"}, "openai"]
        several = true
        clean = {scripts = ["latin"], max_chars = 300}
        openai = {url = "http://127.0.0.1:8000/v1", model = "eyes", requests_a_minute = 60}
        """
    )
    captions = config.build(Captions, table, name="recipe")
    made = passes_of(captions)
    assert [(one.producer, one.rank, one.chained) for one in made] == [
        ("manifest/v1", 0, False), ("shades/v1", 1, False), ("openai/v1", 2, False)
    ]  # fmt: skip
    assert made[1].stage.prompt == "{shade}"
    assert len({one.settings for one in made}) == 3
    with pytest.raises(
        config.ConfigError, match=r"openai\.promt: unknown key; did you mean openai\.prompt"
    ):
        config.build(Captions, {"openai": {"promt": "x"}}, name="recipe")
    with pytest.raises(config.ConfigError, match="oracle"):
        config.build(Captions, {"captioners": ["oracle"]}, name="recipe")
    scorers = {"scorers": ["embeddings"], "weights": {"model": "ViT-B-32"}}
    with pytest.raises(config.ConfigError, match="path and sha256, or a tag"):
        config.build(Scorers, scorers, name="recipe")
