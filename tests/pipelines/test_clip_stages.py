"""Passes with open_clip: wiring with random weights, sense with trained ones."""

import hashlib
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ingest import conformance
from ingest.caption import Captions, Coca, Tags
from ingest.conformance import check
from ingest.scorers import Aesthetic, ClipWeights, Scorers
from ingest.stage import Needs, NotAStage, ScoreFact, load, needs_of
from ingest.store import Dataset
from pipelines import clip_stages, pinned
from pipelines.annotate import annotate
from pipelines.captioners import passes_of
from tests.models.tiny_clip import (
    CLIP_CONFIG,
    COCA_CONFIG,
    SCENES,
    render,
    trained_clip,
    trained_coca,
    untrained,
)
from tests.pipelines.made_clips import Heard, made_clips, surroundings

NUM = 6
DIM = CLIP_CONFIG["embed_dim"]
SHOWN = SCENES[:: len(SCENES) // NUM][:NUM]


def recipe(weights) -> ClipWeights:
    return ClipWeights(model=weights.model, path=weights.path, sha256=weights.sha256)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return recipe(untrained(tmp_path_factory.mktemp("clip"), CLIP_CONFIG))


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    path = tmp_path_factory.mktemp("head") / "head.pt"
    torch.save({"weight": torch.ones(1, DIM), "bias": torch.full((1,), 5.0)}, path)
    return Aesthetic(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def dataset(tmp_path):
    return made_clips(
        tmp_path / "dataset",
        tmp_path / "videos",
        sources=NUM,
        clips=1,
        frames=16,
        picture=lambda number: render(SHOWN[number], 7, px=64),
    )


def run(dataset, captions, scorers, *, here=False):
    passes = passes_of(captions, scorers)
    for one in passes if here else ():  # without Ray, whose workers take long to load torch
        one.stage.needs = replace(needs_of(one.stage), inline=True)
    told = annotate(dataset, passes, context=surroundings(), recorder=Heard())
    dataset.refresh()
    return {one.producer.partition("/")[0]: one for one in told}


def test_they_conform(weights, head, tmp_path):
    coca = Coca(weights=recipe(untrained(tmp_path, COCA_CONFIG)), max_tokens=6, num_beams=2)
    assert check("embedder", clip_stages.Embeddings(weights, 4)) == ()
    assert check("scorer", clip_stages.TextMatch(weights), dim=DIM) == ()
    assert check("scorer", clip_stages.Aesthetic(weights, head), dim=DIM) == ()
    tags = clip_stages.Tags(weights, Tags(count=2), ("a dog", "a car", "the sea"))
    assert check("captioner", tags, dim=DIM) == ()
    assert check("captioner", clip_stages.Coca(coca)) == ()


def test_scores_come_from_stored_embeddings(dataset, weights, head):
    scorers = Scorers(scorers=("text_match", "aesthetic"), weights=weights, aesthetic=head)
    told = run(dataset, Captions(), scorers, here=True)
    assert [told[name].made for name in ("open_clip", "text_match", "aesthetic")] == [NUM] * 3
    vectors = {
        row["clip_id"]: np.frombuffer(row["vector"], "<f2").astype(float)
        for row in dataset.annotation("embeddings").to_pylist()
    }
    for row in dataset.kept_clips().to_pylist():
        assert row["aesthetic"] == pytest.approx(5 + vectors[row["clip_id"]].sum(), abs=0.01)
        assert -1 <= row["text_match"] <= 1
    # A new caption is matched again, its clip alone; nothing is embedded again.
    video = dataset.kept_clips().to_pylist()[0]["source_uri"]
    Path(video).with_suffix(".txt").write_text("another caption")
    told = run(Dataset.open(dataset.root), Captions(), scorers, here=True)
    made = {name: one.made for name, one in told.items()}
    assert made == {"open_clip": 0, "manifest": 0, "sidecar": 1, "name": 0, "text_match": 1, "aesthetic": 0}  # fmt: skip


def test_other_embeddings_give_other_tags(dataset, weights, tmp_path):
    (tmp_path / "words").write_text("a dog\na car\nthe sea\n")
    captions = Captions(captioners=("tags",), tags=Tags(vocabulary=tmp_path / "words"))
    for frames, made in ((4, NUM), (4, 0), (2, NUM)):
        told = run(dataset, captions, Scorers(weights=weights, frames=frames), here=True)
        assert (told["open_clip"].made, told["tags"].made) == (made, made)


def test_recipes_that_cannot_be(weights, tmp_path):
    captions = Captions(captioners=("coca",), coca=Coca())
    with pytest.raises(NotAStage, match="CoCa model"):
        passes_of(captions)
    with pytest.raises(NotAStage, match=r"tags\.vocabulary"):
        passes_of(Captions(captioners=("tags",)), Scorers(weights=weights))
    with pytest.raises(ValueError, match="needs weights"):
        Scorers(scorers=("embeddings",))
    with pytest.raises(ValueError, match="head's path"):
        Scorers(scorers=("aesthetic",), weights=weights)
    config = replace(weights, model=str(tmp_path / "no.json"))
    with pytest.raises(NotAStage, match=r"no\.json"):
        passes_of(Captions(), Scorers(scorers=("embeddings",), weights=config))
    with pytest.raises(NotAStage, match="each once"):
        load(
            "pipelines.clip_stages:Tags",
            {"weights": weights, "config": Tags(), "words": ("a", "a")},
            "captioner",
        )


def copied(weights, folder, name="weights.safetensors"):
    path = folder / name
    path.write_bytes(weights.path.read_bytes())
    return replace(weights, path=path)


def test_missing_weights_are_told_at_once(weights, head, tmp_path):
    scorers = Scorers(scorers=("aesthetic",), weights=weights, aesthetic=head)
    coca = Captions(captioners=("coca",), coca=Coca(weights=replace(weights, path=Path("no.pt"))))
    words = tmp_path / "words"
    words.write_text("dog\n")
    tags = Captions(captioners=("tags",), tags=Tags(vocabulary=words))
    gone = replace(weights, path=tmp_path / "gone.pt")
    begun_s = time.monotonic()
    for captions, wanted, said in (
        (Captions(), replace(scorers, weights=gone), "no weights at .*gone"),
        (tags, Scorers(weights=gone), "no weights at .*gone"),
        (coca, None, "no weights at no.pt"),
        (Captions(), replace(scorers, weights=replace(weights, sha256="x")), "64 lower-case hex"),
        (Captions(), replace(scorers, aesthetic=replace(head, path=gone.path)), "at .*gone"),
        (Captions(), replace(scorers, aesthetic=replace(head, sha256="x")), "64 lower-case hex"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=said):
            passes_of(captions, wanted)
    assert time.monotonic() - begun_s < 1


def test_other_weights_are_told_before_anything_runs_and_read_once(
    weights, head, tmp_path, monkeypatch
):
    shown, read = [], []
    hashed = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda f, how: read.append(f.name) or hashed(f, how)
    )
    monkeypatch.setattr(pinned, "LARGE_BYTES", 1)
    mine = copied(weights, tmp_path)
    scorers = Scorers(scorers=("aesthetic",), weights=mine, aesthetic=head)
    for _ in range(2):
        passes_of(Captions(), scorers, show=shown.append)
    assert read.count(str(mine.path)) == 1
    assert "sha256 of 2 files of weights" in shown[0]["text"]
    clip_stages.Embeddings(mine).model  # noqa: B018  a load in the same process reads no hash again
    assert read.count(str(mine.path)) == 1
    for wrong in (
        replace(scorers, weights=replace(mine, sha256="0" * 64)),
        replace(scorers, aesthetic=replace(head, sha256="0" * 64)),
    ):
        with pytest.raises(ValueError, match="is not the file that was pinned"):
            passes_of(Captions(), wrong)
    mine.path.write_bytes(b"other")  # and a file that changed is read again
    with pytest.raises(ValueError, match="is not the file that was pinned"):
        passes_of(Captions(), scorers)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_model_that_an_actor_cannot_load_ends_the_pass(dataset, weights, tmp_path):
    """With one message: not a failure of each clip."""
    mine = copied(weights, tmp_path)
    passes = passes_of(Captions(captioners=()), Scorers(scorers=("embeddings",), weights=mine))
    mine.path.unlink()
    heard = Heard()
    with pytest.raises(clip_stages.NotLoaded, match=r"cannot be loaded on .*no weights at"):
        annotate(dataset, passes, context=surroundings(), recorder=heard)
    assert heard.warnings == []


def test_a_head_that_cannot_be_loaded_ends_the_pass(dataset, weights, head, tmp_path):
    mine = copied(head, tmp_path, "head.pt")
    scorers = Scorers(scorers=("aesthetic",), weights=weights, aesthetic=mine)
    passes = passes_of(Captions(captioners=()), scorers)
    for one in passes:
        one.stage.needs = replace(needs_of(one.stage), inline=True)
    mine.path.unlink()
    with pytest.raises(clip_stages.NotLoaded, match=r"head cannot be loaded on .*no weights at"):
        annotate(dataset, passes, context=surroundings(), recorder=Heard())


def test_a_stage_that_a_worker_cannot_have_ends_the_pass(tmp_path, monkeypatch):
    (tmp_path / "soon_gone.py").write_text("from tests.ingest.stages_made import Shades")
    monkeypatch.syspath_prepend(tmp_path)
    (one,) = passes_of(Captions(captioners=({"use": "soon_gone:Shades"},)))
    monkeypatch.setitem(sys.modules, "soon_gone", None)
    with pytest.raises(NotAStage, match="cannot be imported") as raised:
        one.make()
    assert raised.value.fatal


def test_the_head_is_read_once_for_all_batches(weights, head, tmp_path):
    mine = copied(head, tmp_path, "once.pt")
    stage = clip_stages.Aesthetic(weights, mine)
    seen = conformance.made_clips(stage, dim=DIM)
    first = stage(seen)
    mine.path.unlink()
    assert stage(seen) == first


def test_who_asked_for_no_gpu_takes_none(weights, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    tags = clip_stages.Tags(weights, Tags(), ("a dog",))
    for stage in (tags, clip_stages.TextMatch(weights)):
        assert clip_stages.device_of(stage.needs) == "cpu"
        assert stage.model.device.type == "cpu"
    assert clip_stages.device_of(clip_stages.Embeddings(weights).needs) == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert clip_stages.device_of(clip_stages.Embeddings(weights).needs) == "cpu"


class Spread:
    """A scorer of somebody's own that reads embeddings."""

    name, version = "spread", "v1"
    needs = Needs(frames=0, embedding=True, inline=True)
    scores = (ScoreFact(name="spread", unit="1", range="[0, 1]", direction="higher"),)

    def settings(self):
        return {}

    def __call__(self, clips):
        return [{"spread": float(np.std(clip.facts["embedding"]))} for clip in clips]


def test_own_stages_are_given_embeddings(dataset, weights):
    own = {"use": f"{__name__}:Spread"}
    told = run(dataset, Captions(), Scorers(scorers=(own,), weights=weights), here=True)
    assert (told["open_clip"].made, told["spread"].made) == (NUM, NUM)
    spreads = [row["spread"] for row in dataset.kept_clips().to_pylist()]
    assert all(0 < spread < 1 for spread in spreads)
    assert len(set(spreads)) == NUM
    # Those of the own embedder, where there is one: other vectors, so all are scored again.
    means = {"use": "tests.ingest.stages_made:Means"}
    scorers = Scorers(scorers=(own,), weights=weights, embedder=means)
    told = run(dataset, Captions(), scorers, here=True)
    assert set(told) >= {"means", "spread"}
    assert "open_clip" not in told
    assert (told["means"].made, told["spread"].made) == (NUM, NUM)
    vectors = {
        row["clip_id"]: np.frombuffer(row["vector"], "<f2").astype(float)
        for row in dataset.annotation("embeddings").to_pylist()
        if row["producer"] == "means/v1"
    }
    for row in dataset.kept_clips().to_pylist():
        assert row["spread"] == pytest.approx(np.std(vectors[row["clip_id"]]), abs=1e-3)
    told = run(dataset, Captions(), scorers, here=True)
    assert (told["means"].made, told["spread"].made) == (0, 0)
    # Ours go on reading ours.
    (match,) = [
        one
        for one in passes_of(Captions(), replace(scorers, scorers=("text_match",)))
        if one.stage.name == "text_match"
    ]
    assert match.vectors.stage.name == "open_clip"
    with pytest.raises(NotAStage, match=r"spread: needs embeddings: give scorers\.embedder"):
        passes_of(Captions(), Scorers(scorers=(own,)))
    with pytest.raises(NotAStage, match=r"name an embedder with scorers\.embedder"):
        passes_of(Captions(), Scorers(scorers=(means,)))


@pytest.mark.trained
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_trained_models_say_what_is_there(dataset, tmp_path):
    videos = sorted({row["source_uri"] for row in dataset.kept_clips().to_pylist()})
    scenes = dict(zip(videos, SHOWN, strict=True))
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("\n".join(scene.caption for scene in SCENES))
    captions = Captions(
        captioners=("tags", "coca"),
        several=True,
        tags=Tags(vocabulary=vocabulary, count=1, template="{}"),
        coca=Coca(weights=recipe(trained_coca())),
    )
    scorers = Scorers(scorers=("text_match",), weights=recipe(trained_clip()))
    told = run(dataset, captions, scorers)
    assert (told["tags"].made, told["coca"].made, told["text_match"].made) == (NUM, NUM, NUM)
    right = {"tags": 0, "coca": 0}
    clips = {row["clip_id"]: row for row in dataset.kept_clips().to_pylist()}
    for row in dataset.captions().to_pylist():
        scene = scenes[clips[row["clip_id"]]["source_uri"]]
        words = f"a {scene.colour} {scene.shape}"
        right[row["producer"].partition("/")[0]] += row["caption"].startswith(words)
    assert right["tags"] >= NUM - 1
    assert right["coca"] >= NUM - 2
    good = np.mean([row["text_match"] for row in clips.values()])
    for number, video in enumerate(videos):  # the caption of another scene
        Path(video).with_suffix(".txt").write_text(SHOWN[number - 3].caption)
    told = run(dataset, Captions(captioners=("sidecar",)), scorers, here=True)
    assert (told["open_clip"].made, told["text_match"].made) == (0, NUM)
    wrong = np.mean([row["text_match"] for row in dataset.kept_clips().to_pylist()])
    assert good > wrong + 0.3
