"""Passes that look at frames, on a real Ray session: what is asked of a clip depends on it alone."""

import numpy as np
import pytest

from ingest.caption import Captions, OpenAI
from ingest.scorers import Scorers
from ingest.stage import Needs
from ingest.store import Dataset
from pipelines.annotate import annotate
from pipelines.annotator import Annotator, BadAnswers, middles
from pipelines.captioners import passes_of
from pipelines.openai import EndpointRefused
from pipelines.passes import Pass
from tests.ingest.stages_made import Brightness, Means, Shades
from tests.pipelines.made_clips import Heard, made_clips, surroundings
from tests.pipelines.test_openai import Server, completion

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
MADE = "tests.ingest.stages_made"


@pytest.fixture
def dataset(tmp_path):
    return made_clips(tmp_path / "dataset", tmp_path / "videos", frames=16)


def run(dataset, *captioners, scorers=(), extra=(), heard=None):
    passes = passes_of(Captions(captioners=captioners), Scorers(scorers=scorers))
    told = annotate(dataset, [*passes, *extra], context=surroundings(), recorder=heard or Heard())
    for one in told:
        assert one.made + one.unchanged + one.failed + one.silent + one.skipped == one.clips
    return {one.producer: one for one in told}


def shades(**settings):
    return {"use": f"{MADE}:Shades", **settings}


def test_only_what_changed_is_made_again(dataset):
    means = Pass(table="embeddings", make=Means, stage=Means())
    light = {"use": f"{MADE}:Brightness"}
    told = run(dataset, shades(), "name", scorers=(light,), extra=[means])
    assert [told[p].made for p in ("shades/v1", "brightness/v1", "means/v1")] == [6, 6, 6]
    assert told["name/v1"].skipped == 6
    clips = dataset.kept_clips().to_pylist()
    assert {row["caption"] for row in clips} <= {"a light clip", "a dark clip"}
    assert all(0 < row["brightness"] < 255 for row in clips)
    facts = dataset.query("SELECT DISTINCT name, unit, range, direction FROM scores").to_pylist()
    assert facts == [
        {"name": "brightness", "unit": "grey level", "range": "[0, 255]", "direction": "middle"}
    ]
    for row in dataset.annotation("embeddings").to_pylist():
        vector = np.frombuffer(row["vector"], "<f2")
        assert len(vector) == row["dim"] == 3
        assert abs(np.linalg.norm(vector.astype(float)) - 1) < 1e-2

    told = run(Dataset.open(dataset.root), shades(), "name", scorers=(light,), extra=[means])
    assert [one.made for one in told.values()] == [0, 0, 0, 0]
    told = run(dataset, shades(prompt="it is {shade}"), "name", scorers=(light,), extra=[means])
    assert [one.made for one in told.values()] == [6, 0, 0, 0]
    dataset.refresh()
    again = dataset.kept_clips().to_pylist()
    assert {row["caption"] for row in again} <= {"it is light", "it is dark"}
    assert [row["brightness"] for row in again] == [row["brightness"] for row in clips]
    assert dataset.captions().num_rows == 6


def test_one_bad_clip_costs_only_itself(dataset):
    heard = Heard()
    told = run(dataset, shades(fail_on="car 1"), "name", heard=heard)
    one = told["shades/v1"]
    assert (one.made, one.failed) == (4, 2)
    assert sum("cannot look at car 1" in text for text in heard.warnings) == 2
    failed = [row for row in dataset.captions().to_pylist() if row["status"] == "failed"]
    assert {(row["caption"], row["settings"]) for row in failed} == {("", None)}
    assert {row["message"] for row in failed} == {"RuntimeError: cannot look at car 1"}
    assert told["name/v1"].made == 2  # the next in the chain is asked
    # Tried again, and a later failure takes no caption away: it stands behind all others.
    assert run(dataset, shades())["shades/v1"].made == 2
    assert run(dataset, shades(fail_on="car", prompt="new {shade}"))["shades/v1"].failed == 6
    dataset.refresh()
    assert {row["status"] for row in dataset.captions().to_pylist()} == {"ok"}


def test_a_damaged_payload_is_that_clips_failure(dataset):
    clip = dataset.kept_clips().to_pylist()[0]
    path = dataset.root.path / clip["shard"]
    data = bytearray(path.read_bytes())
    data[clip["offset"] + 40] ^= 255
    path.write_bytes(data)
    told = run(dataset, shades(), scorers=({"use": f"{MADE}:Brightness"},))
    assert (told["shades/v1"].made, told["shades/v1"].failed) == (5, 1)
    assert (told["brightness/v1"].made, told["brightness/v1"].failed) == (5, 1)
    row = dataset.query("SELECT * FROM captions WHERE status = 'failed'").to_pylist()[0]
    assert row["message"].startswith("CorruptPayload: ")


class Costly(Brightness):
    needs = Needs(frames=1, costly=True, num_gpus=1.0, batch_clips=1)


class Wrong(Brightness):
    needs = Needs(frames=1)

    def settings(self):
        return {"wrong": True}

    def __call__(self, clips):
        return [{"other": 1.0} for _ in clips]


class TooMany(Shades):
    def __call__(self, clips):
        return ["a"] * (len(clips) + 1)


def test_costly_stages_share_actors_and_wrong_answers_are_failures(dataset):
    costly = Pass(table="scores", make=Costly, stage=Costly())  # without a GPU: on CPUs
    assert run(dataset, extra=[costly])["brightness/v1"].made == 6
    wrong = Pass(table="scores", make=Wrong, stage=Wrong())
    assert run(dataset, extra=[wrong])["brightness/v1"].failed == 6
    assert (
        dataset.annotation("scores").num_rows == 0
    )  # what older settings measured says nothing now
    with pytest.raises(BadAnswers, match="2 answers for 1 clips"):
        Annotator(TooMany, dataset.root)(dataset.kept_clips().slice(0, 1).to_pylist())


def test_an_endpoint_that_refuses_ends_the_run_and_the_next_goes_on(dataset):
    with Server.serving() as server:
        openai = OpenAI(url=server.url, model="eyes", key_env="", concurrency=1)
        passes = passes_of(Captions(captioners=("openai", "name"), openai=openai))
        around = surroundings()
        server.steps = [*[{"body": completion(f"caption {n}")} for n in range(4)], {"status": 401}]
        with pytest.raises(EndpointRefused, match="the key is refused"):
            annotate(dataset, passes, context=around, recorder=Heard())
        dataset.refresh()
        assert dataset.captions().num_rows == 4  # paid for, and kept
        server.steps, before = [{"body": completion("at last")}], len(server.asked)
        told = annotate(dataset, passes, context=around, recorder=Heard())
    assert (told[0].made, told[0].unchanged, len(server.asked) - before) == (2, 4, 2)
    dataset.refresh()
    said = sorted(row["caption"] for row in dataset.kept_clips().to_pylist())
    assert said == ["at last", "at last", *[f"caption {n}" for n in range(4)]]


def test_frames_are_the_middles_of_equal_parts():
    assert middles(80, 8) == [5, 15, 25, 35, 45, 55, 65, 75]
    assert middles(80, 1) == [40]
    assert middles(3, 8) == [0, 1, 2]


def test_a_stopped_run_leaves_the_rest(dataset):
    around = surroundings()
    around.stop.requested = True
    assert annotate(dataset, passes_of(Captions()), context=around, recorder=Heard()) == []
    assert dataset.captions().num_rows == 0


class Stopping(Brightness):
    """Asks for an end with its second batch."""

    needs = Needs(frames=1, batch_clips=2, inline=True)

    def __init__(self, stop) -> None:
        self._stop, self._batches = stop, 0

    def __call__(self, clips):
        self._batches += 1
        self._stop.requested = self._batches == 2
        return super().__call__(clips)


def test_a_stop_keeps_what_is_finished(dataset):
    around = surroundings()
    one = Pass(table="scores", make=lambda: Stopping(around.stop), stage=Stopping(around.stop))
    (told,) = annotate(dataset, [one], context=around, recorder=Heard())
    assert (told.clips, told.made, told.left) == (6, 4, 2)
    around.stop.requested = False
    (told,) = annotate(dataset, [one], context=around, recorder=Heard())
    assert (told.unchanged, told.made, told.left) == (4, 2, 0)
