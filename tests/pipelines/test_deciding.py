"""Decide, annotate, decide again: what scorers and embedders find gives and takes back fates; no source is read."""

import pytest

from ingest.caption import Captions
from ingest.keep import Bound, Keep
from ingest.likeness import Duplicates
from ingest.scorers import Scorers
from ingest.stage import NotAStage
from ingest.store import Dataset
from pipelines.annotate import annotate
from pipelines.captioners import passes_of
from pipelines.deciding import Decider, own_of
from pipelines.passes import Pass
from tests.ingest.stages_made import Brightness, Means
from tests.pipelines.made_clips import PREP, Heard, made_clips, surroundings

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
MADE = "tests.ingest.stages_made"
HASH = "0123456789abcdef" * 3


class Twice(Brightness):
    """A later version that measures otherwise."""

    version = "v2"

    def __call__(self, clips):
        return [{"brightness": 2 * one["brightness"]} for one in super().__call__(clips)]


@pytest.fixture
def dataset(tmp_path):
    return made_clips(tmp_path / "dataset", tmp_path / "videos", frames=16)


def curated(dataset, keep, *extra, duplicates=None):
    """What a curate run does after its sources have been read."""
    passes = [*passes_of(Captions(captioners=()), Scorers()), *extra]
    own = own_of(PREP, {}, keep)
    decider = Decider(
        dataset, own, passes, keep=keep, duplicates=duplicates or Duplicates(near=False)
    )
    units = dataset.committed_units()
    assert not decider.unstored(units)
    decider.decide(units, last=False)
    told = annotate(dataset, passes, context=surroundings(), recorder=Heard())
    changed = decider.decide(units, last=True)
    dataset.refresh()
    assert Dataset.open(dataset.root).balance().ok
    return told, changed, decider


def brightness(dataset):
    rows = dataset.kept_clips().to_pylist()
    return {row["clip_id"]: row["brightness"] for row in rows}


def test_a_bound_takes_clips_and_gives_them_back(dataset):
    light = Pass(table="scores", make=Brightness, stage=Brightness())
    digest = dataset.digest()
    _, changed, decider = curated(dataset, Keep(), light)
    assert not changed
    assert not decider.strangers()
    all_clips = brightness(dataset)
    middle = sorted(all_clips.values())[3]
    strict = Keep(bounds=(Bound(score="brightness", min=middle),))
    told, _, _ = curated(dataset, strict, light)
    assert (told[0].made, told[0].clips) == (0, 3)  # decided before it
    wanted = {clip: value for clip, value in all_clips.items() if value >= middle}
    assert brightness(dataset) == wanted
    rows = [r for r in dataset.ledger().to_pylist() if r["rule"] == "min_brightness"]
    assert {row["id"]: row["score"] for row in rows} == {
        clip: value for clip, value in all_clips.items() if clip not in wanted
    }
    assert all(row["shard"] and row["threshold"] == middle for row in rows)
    version = dataset.version
    told, changed, _ = curated(dataset, strict, light)  # the same again changes nothing
    assert (changed, dataset.version, told[0].made) == (0, version, 0)
    # A score is asked for of nobody now, and still decides.
    assert curated(dataset, strict)[1] == 0
    assert brightness(dataset) == wanted
    # Another version of the scorer looks at all of them again before the bound counts.
    told, _, _ = curated(dataset, strict, Pass(table="scores", make=Twice, stage=Twice()))
    assert told[0].made == 6
    assert len(brightness(dataset)) == sum(2 * value >= middle for value in all_clips.values())
    curated(dataset, Keep(), light)
    assert brightness(dataset) == all_clips
    assert dataset.digest() == digest


def test_near_hashes_wait_for_vectors(tmp_path):
    dataset = made_clips(tmp_path / "dataset", tmp_path / "videos", frames=16, clips=1)
    rows = [
        row | ({"phash": HASH} if row["kind"] == "clip" else {})
        for row in dataset.ledger().to_pylist()
    ]
    dataset.replace_units(dataset.ledger().from_pylist(rows, schema=dataset.ledger().schema))
    curated(dataset, Keep(), duplicates=Duplicates())
    assert dataset.kept_clips().num_rows == 1  # by the hashes alone
    means = Pass(table="embeddings", make=Means, stage=Means())
    far = Duplicates(min_cosine=1.0)
    told, _, _ = curated(dataset, Keep(), means, duplicates=far)
    assert told[0].made == 3
    assert dataset.kept_clips().num_rows == 3
    version = dataset.version
    assert curated(dataset, Keep(), means, duplicates=far)[1] == 0
    assert dataset.version == version
    curated(dataset, Keep(), means, duplicates=Duplicates(min_cosine=-1.0))
    assert dataset.kept_clips().num_rows == 1


def test_what_nothing_gives_is_named(dataset):
    keep = Keep(bounds=(Bound(score="aestetic", min=4.5),))
    assert curated(dataset, keep)[2].strangers() == ["aestetic"]
    # The usual bound waits for a scorer in silence; one that was asked for does not.
    assert curated(dataset, Keep())[2].strangers() == []
    asked = Keep(bounds=(Bound(score="aesthetic", min=5.5),))
    assert curated(dataset, asked)[2].strangers() == ["aesthetic"]


def test_own_stages_are_refused_before_anything_runs():
    with pytest.raises(NotAStage, match="not a shot detector"):
        own_of(PREP, {"use": f"{MADE}:Shades"}, Keep())
    with pytest.raises(NotAStage, match="use ="):
        own_of(PREP, {"levels": 3}, Keep())
    own = own_of(PREP, {"use": f"{MADE}:Jumps", "levels": 30.0}, Keep())
    assert own.prep.digest() != PREP.digest()
    assert own.prep != own_of(PREP, {"use": f"{MADE}:Jumps"}, Keep()).prep
    assert own.detector is not None
    assert own.detector().levels == 30.0
    assert own_of(PREP, {}, Keep()).prep.digest() == PREP.digest()
