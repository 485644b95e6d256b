"""Passes with open_clip: wiring with random weights, sense with trained ones."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ingest.caption import Captions, Coca, Tags
from ingest.conformance import check
from ingest.scorers import Aesthetic, ClipWeights, Scorers
from ingest.stage import NotAStage, load, needs_of
from ingest.store import Dataset
from pipelines import clip_stages
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
    gone = ClipWeights(model=weights.model, path=tmp_path / "gone.pt", sha256="0" * 64)
    captions = Captions(captioners=("coca",), coca=Coca())
    with pytest.raises(NotAStage, match="CoCa model"):
        passes_of(captions)
    with pytest.raises(NotAStage, match=r"tags\.vocabulary"):
        passes_of(Captions(captioners=("tags",)), Scorers(weights=weights))
    with pytest.raises(ValueError, match="needs weights"):
        Scorers(scorers=("embeddings",))
    with pytest.raises(ValueError, match="head's path"):
        Scorers(scorers=("aesthetic",), weights=weights)
    config = ClipWeights(model=str(tmp_path / "no.json"), path=gone.path, sha256="0" * 64)
    with pytest.raises(NotAStage, match=r"no\.json"):
        passes_of(Captions(), Scorers(scorers=("embeddings",), weights=config))
    with pytest.raises(NotAStage, match="each once"):
        load(
            "pipelines.clip_stages:Tags",
            {"weights": weights, "config": Tags(), "words": ("a", "a")},
            "captioner",
        )


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
