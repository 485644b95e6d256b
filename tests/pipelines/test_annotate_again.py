"""What is asked again, what never, and what an answer that did not come leaves behind; on a real Ray session."""

import hashlib
import re
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import deltalake
import pyarrow as pa
import pytest

from ingest.caption import Captions, OpenAI
from ingest.caption_clean import Clean
from ingest.schema import captions_schema
from ingest.stage import Failure, Needs, NotKnownHere
from ingest.store import Dataset
from pipelines.annotate import annotate
from pipelines.captioners import passes_of
from pipelines.due import DEMOTED, due
from pipelines.openai import Endpoint
from pipelines.passes import Pass
from tests.ingest.stages_made import Brightness, Means, Shades
from tests.pipelines.made_clips import Heard, made_clips, surroundings
from tests.pipelines.test_annotate import run, shades
from tests.pipelines.test_openai import Server, completion

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
HERE = "tests.pipelines.test_annotate_again"


@pytest.fixture
def dataset(tmp_path):
    return made_clips(tmp_path / "dataset", tmp_path / "videos", frames=16)


def preferred(dataset):
    dataset.refresh()
    return [row["caption"] for row in dataset.kept_clips().to_pylist()]


def passed(dataset, *passes, **settings):
    told = annotate(dataset, passes, context=surroundings(), recorder=Heard(), **settings)
    dataset.refresh()
    return told


def test_a_refusal_takes_the_older_caption_and_is_not_asked_again(dataset):
    with Server.serving() as server:

        def asked(prompt):
            openai = OpenAI(url=server.url, model="eyes", key_env="", prompt=prompt)
            before = len(server.asked)
            told = passed(
                dataset, *passes_of(Captions(captioners=("openai", "name"), openai=openai))
            )
            return told[0], len(server.asked) - before

        server.steps = [{"body": completion("an old caption")}]
        assert asked("one")[1] == 6
        server.steps = [{"body": completion(None, refusal="I cannot look at this")}]
        told, requests = asked("two")
        assert (told.failed, told.final, requests) == (6, 6, 6)
        assert preferred(dataset) == ["red car"] * 6
        told, requests = asked("two")
        assert (told.failed, told.final, requests) == (6, 6, 0)


def test_a_passing_failure_puts_older_words_behind_all_others(dataset):
    run(dataset, shades())
    light = preferred(dataset)
    told = run(dataset, shades(prompt="new", fail_on="car"), "name")
    assert (told["shades/v1"].failed, told["name/v1"].made) == (6, 6)
    assert preferred(dataset) == ["red car"] * 6
    ranks = {row["rank"] for row in dataset.captions().to_pylist() if "clip" in row["caption"]}
    assert ranks == {DEMOTED}  # they were paid for
    versions = dataset.versions()
    assert run(dataset, shades(prompt="new", fail_on="car"), "name")["shades/v1"].failed == 6
    dataset.refresh()
    assert dataset.versions() == versions  # tried again, and nothing changed
    assert run(dataset, shades(), "name")["shades/v1"].unchanged == 6  # the older recipe again
    assert preferred(dataset) == light


class Weighted(Brightness):
    """Of the weights "new" it fails, for ever or for now."""

    needs = Needs(frames=0, inline=True)
    calls = 0

    def __init__(self, weights="old", *, final=False):
        self._weights, self._final = weights, final

    def settings(self):
        return {"weights": self._weights}

    def __call__(self, clips):
        Weighted.calls += len(clips)
        failure = Failure(error_class="Blind", message="sees nothing", final=self._final)
        return [{"brightness": 5.0} if self._weights == "old" else failure for _ in clips]


@pytest.mark.parametrize("final", [True, False])
def test_scores_of_older_weights_decide_nothing_after_a_failure(dataset, final):
    def scored(*weights):
        one = Weighted(*weights, final=final)
        (told,) = passed(dataset, Pass(table="scores", make=lambda: one, stage=one))
        return told, [row.get("brightness") for row in dataset.kept_clips().to_pylist()]

    assert scored()[1] == [5.0] * 6
    told, scores = scored("new")
    assert (told.failed, told.final) == (6, 6 if final else 0)
    assert not any(scores)
    before = Weighted.calls
    scored("new")
    assert Weighted.calls - before == (0 if final else 6)  # tried again unless final
    assert scored("old")[1] == [5.0] * 6


class Logged(Shades):
    """Writes down each clip that it is asked for."""

    name = "logged"

    def __init__(self, log, text="See https://a.example собака и кот"):
        self.log, self.text = log, text

    def settings(self):
        return {"text": self.text}

    def __call__(self, clips):
        with Path(self.log).open("a") as file:
            file.writelines(f"{clip.clip_id}\n" for clip in clips)
        return [self.text for _ in clips]


def test_other_clean_up_asks_nobody_again(dataset, tmp_path):
    log = tmp_path / "log"

    def cleaned(text="See https://a.example собака и кот", **rules):
        own = {"use": f"{HERE}:Logged", "log": str(log), "text": text}
        captions = Captions(captioners=(own, "name"), clean=Clean(**rules))
        log.write_text("")
        told = passed(dataset, *passes_of(captions))[0]
        return told, len(log.read_text().split())

    assert cleaned()[1] == 6
    assert preferred(dataset) == ["See собака и кот"] * 6
    told, calls = cleaned(urls=False)
    assert (told.made, calls) == (6, 0)
    assert preferred(dataset) == ["See https://a.example собака и кот"] * 6
    told, calls = cleaned(urls=False, max_chars=3)
    assert (told.made, calls, preferred(dataset)) == (6, 0, ["See"] * 6)
    told, calls = cleaned(scripts=("latin",))
    assert (told.failed, calls, told.rules) == (
        6,
        0,
        {"refused: language": 6, "url": 6, "whitespace": 6},
    )
    assert preferred(dataset) == ["red car"] * 6
    assert cleaned(scripts=("latin",))[0].rules == {}  # settled
    told, calls = cleaned()
    assert (told.made, calls, preferred(dataset)) == (6, 0, ["See собака и кот"] * 6)
    assert cleaned(text="a cat")[1] == 6  # another answer is another matter
    assert {row["raw"] for row in dataset.captions().to_pylist()} == {None}  # it was clean


def test_captions_without_the_new_columns_are_read_and_asked_once(dataset, tmp_path):
    """As written before the answer itself was stored."""
    root = tmp_path / "dataset" / "annotations" / "captions"
    one = Pass(table="captions", make=Means, stage=Shades(), rank=0, clean=Clean())
    clips = dataset.kept_clips().to_pylist()
    rows = [
        {**{k: clip[k] for k in ("clip_id", "payload_sha256")}, "producer": one.producer,
         "caption": "old", "rank": 0, "settings": one.settings, "status": "ok"}
        for clip in clips
    ]  # fmt: skip
    old = pa.schema([field for field in captions_schema() if field.name not in ("raw", "asked")])
    deltalake.write_deltalake(
        str(root), pa.Table.from_pylist(rows, schema=old), mode="overwrite", schema_mode="overwrite"
    )
    dataset = Dataset.open(dataset.root)
    assert "raw" not in dataset.table("annotations/captions").schema().names
    assert preferred(dataset) == ["old"] * 6
    assert run(dataset, shades())["shades/v1"].unchanged == 6
    captions = Captions(captioners=(shades(),), clean=Clean(max_chars=7))
    assert passed(dataset, *passes_of(captions))[0].made == 6
    assert set(preferred(dataset)) <= {"a light", "a dark"}


class Older(Shades):
    name = "older"
    needs = Needs(frames=0, inline=True)

    def __call__(self, clips):
        return [self.version for _ in clips]


class Newer(Older):
    version = "v2"


class First(Older):
    name = "zz_new"


def test_an_older_version_stands_behind_the_first_of_the_chain(dataset):
    def chain(*stages):
        return [
            Pass(table="captions", make=made, stage=made(), rank=rank, chained=True, clean=Clean())
            for rank, made in enumerate(stages)
        ]

    passed(dataset, *chain(Older))
    told = passed(dataset, *chain(First, Newer))
    assert [one.made for one in told] == [6, 0]
    rows = dataset.kept_clips().to_pylist()
    assert {row["caption_producer"] for row in rows} == {"zz_new/v1"}


class Watching(Shades):
    """With its second batch it waits until the first one is stored, and says how much it saw."""

    name = "watching"
    needs = Needs(frames=0, batch_clips=3, costly=True, max_workers=1)

    def __init__(self, root, prompt):
        self.root, self.prompt, self.batches = root, prompt, 0

    def __call__(self, clips):
        self.batches += 1
        seen, until_s = 0, time.monotonic() + 8
        while self.batches == 2 and seen < 3 and time.monotonic() < until_s:
            time.sleep(0.1)
            said = Dataset.open(self.root).captions().column("caption").to_pylist()
            seen = sum(text.startswith(self.prompt) for text in said)
        return [f"{self.prompt} {seen}" for _ in clips]


def test_what_is_answered_is_stored_while_the_next_is_asked(dataset):
    for prompt in ("first", "second"):  # new rows, then rows in place of those
        own = {"use": f"{HERE}:Watching", "root": str(dataset.root), "prompt": prompt}
        assert run(dataset, own)["watching/v1"].made == 6
        assert sorted(preferred(dataset)) == [f"{prompt} 0"] * 3 + [f"{prompt} 3"] * 3
    openai = OpenAI(url="http://127.0.0.1:1/v1", model="eyes", key_env="", concurrency=5)
    assert Endpoint(openai).needs.batch_clips == 5  # of what is paid for, a kill loses no more


class Hanging(Shades):
    """Comes to no end with one clip, and lets no other thread of its process run either."""

    name = "hanging"
    needs = Needs(frames=0, batch_clips=2)

    def __call__(self, clips):
        if any("car 1" in c.facts["source_uri"] and not c.facts["start_s"] for c in clips):
            re.match("(a+)+$", "a" * 50 + "b")  # for years, and holding the interpreter's lock
        return ["said" for _ in clips]


@pytest.mark.parametrize("costly", [True, False])
def test_a_call_that_hangs_costs_only_its_clip(dataset, costly):
    one = Pass(table="captions", make=Hanging, stage=Hanging(), call_timeout_s=1.0)
    one.stage.needs = replace(Hanging.needs, costly=costly, max_workers=1)
    heard, begun_s = Heard(), time.monotonic()
    (told,) = annotate(dataset, [one], context=surroundings(), recorder=heard, max_attempts=1)
    assert time.monotonic() - begun_s < 40
    assert (told.made, told.failed) == (5, 1)
    words = "CallTimeout: hanging/v1: no answer within call_timeout_s = 1; its worker was ended"
    assert sum(words in text for text in heard.warnings) == 1
    assert sorted(preferred(dataset)) == ["", *["said"] * 5]


class Deciding(Older):
    """What decides is told by a function of the facts."""

    name = "deciding"

    def __init__(self, tell):
        super().__init__()
        self.decides = tell


def test_only_the_protocols_signal_means_that_nobody_knows(dataset):
    def told(tell):
        heard = Heard()
        one = Pass(table="captions", make=lambda: Deciding(tell), stage=Deciding(tell))
        (found,) = annotate(dataset, [one], context=surroundings(), recorder=heard)
        return found, heard.warnings

    def unknown(_facts):
        raise NotKnownHere("not from here")

    found, warnings = told(lambda facts: facts["no such fact"])
    assert (found.made, found.failed) == (0, 6)
    assert "KeyError: decides: 'no such fact'" in warnings[0]
    assert told(lambda facts: facts["clip_id"])[0].made == 6
    found, warnings = told(unknown)
    assert (found.unchanged, warnings) == (6, [])
    found, _ = told(lambda facts: facts["no such fact"])
    assert found.failed == 6
    assert preferred(dataset) == ["v1"] * 6  # nothing is known against it


def test_looking_for_what_is_due_holds_only_that_in_memory(dataset):
    count = 60_000
    ids = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]
    one = Pass(table="captions", make=Shades, stage=Shades())
    same = {"producer": one.producer, "settings": one.settings, "caption": "a", "rank": 0}
    columns = {name: [value] * count for name, value in same.items()}
    columns |= {"clip_id": ids, "payload_sha256": ids}
    empty = {name: [None] * count for name in captions_schema().names if name not in columns}
    rows = pa.table(columns | empty, schema=captions_schema())
    number = dataset.next_annotation("captions", "many")
    dataset.annotate("captions", rows, app_id="many", batch=number)
    tracemalloc.start()
    found = due(dataset, one)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 6
    assert most_bytes < 20e6  # a dict for each row took twice that


def test_scores_without_vectors_are_told_failures(dataset):
    means = Pass(table="embeddings", make=Means, stage=Means())
    light = Pass(table="scores", make=Brightness, stage=Brightness(), vectors=means)
    heard = Heard()
    (told,) = annotate(dataset, [light], context=surroundings(), recorder=heard)
    assert (told.made, told.failed) == (0, 6)
    assert "NoEmbedding: means/v1 has none of it" in heard.warnings[0]
