"""Wrong inputs of a training, by the command line: one line and exit code 2, before anything is started or claimed."""

import json
import re
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ingest.clip import Contract, Prep
from ingest.order import Mixture
from ingest.select import Selection
from ingest.store import Dataset
from jobs import config
from jobs.__main__ import _guarded
from models import checkpoint
from pipelines import training
from pipelines.alone import alone
from pipelines.output import WrongInput, claim
from pipelines.shelves import Mixed, freeze
from pipelines.train_config import Config
from pipelines.train_spec import base_of, inputs_of, spec_of
from tests.models import tiny_unet
from tests.pipelines.test_training import ALONE, NETWORK, Posts, job

HEAD = """
verb = "train"
role = "{role}"
dataset = "{dataset}"
out = "out"
steps = 6
global_batch = 2
frames = 2
"""
RECIPES = {
    "base": HEAD
    + "model = {{sample_px = 16, widths = [8, 16], temporal_factor = [2], text_dim = 16, head_dim = 8}}",
    "motion": HEAD + 'base = "{lab}/base"',
    "ssr": HEAD + "ssr = {{sample_px = 32, widths = [8, 16], text_dim = 16, head_dim = 8}}",
    "public": HEAD + 'image = "{lab}/public"',
}
CLIP = 'kind = "open_clip", model = "ViT-B-32"'
ZEROS = "0" * 64
# (recipe, overrides, what the line says); {lab} is the folder of prepared inputs.
WRONG: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    # nothing to draw from
    "nothing selected": (
        "base",
        ("select.where=motion > 99",),
        "no clip is selected.*next: .*`select`",
    ),
    "a licence nobody stated": ("base", ("select.licences=cc-by",), "no clip is selected.*next:"),
    "no kept clip": ("base", ("dataset={lab}/none",), "none: no clip is selected.*next:"),
    "no dataset": ("base", ("dataset=nowhere",), "nowhere: not a dataset; curate into it first"),
    "one of a mixture": ("base", ('mix=[{dataset = "nowhere"}]',), "nowhere: not a dataset"),
    "a strange column": ("base", ("select.where=motio > 1",), "motio.*Did you mean.*motion"),
    "no such tag": ("base", ("at=v9",), "no tag 'v9'; its tags: none"),
    "no such version": ("base", ("at=999",), "version 999 is not there yet; the newest is"),
    # weights that are not there, or not these
    "no base": (
        "motion",
        ("base=nowhere",),
        "base: nowhere holds no checkpoint; next: .*finished base",
    ),
    "an unfinished base": (
        "motion",
        ("base={lab}/unfinished",),
        "base: .*came to step 1 and did not finish; next: the command that began it",
    ),
    "a motion as base": (
        "motion",
        ("base={lab}/motion",),
        "base: .*a motion checkpoint where a base.*next:",
    ),
    "a damaged base": (
        "motion",
        ("base={lab}/damaged",),
        "params.safetensors is missing or damaged.*next: copy",
    ),
    "a damaged index": ("motion", ("base={lab}/cut",), "checkpoint.json is damaged.*next: copy"),
    "a start of another version": (
        "motion",
        ("base={lab}/base", "start={lab}/older"),
        "start: .*another version trained it: its .* is not there and this .*of shape.*next: .*train it again",
    ),
    "no start": ("base", ("start=nowhere",), "start: nowhere holds no checkpoint; next:"),
    "start of another role": (
        "base",
        ("start={lab}/motion",),
        "start: .*holds a motion checkpoint.*next:",
    ),
    "start of another shape": (
        "base",
        ("start={lab}/base", "model.widths=[8, 24]"),
        "start: .*does not fit the network: .* is 16 there, 24 here; next:",
    ),
    "start over another base": (
        "motion",
        ("start={lab}/motion", "base={lab}/other"),
        "start: .* was trained over base [0-9a-f]{12}, .*/other is [0-9a-f]{12}; next: name its own base",
    ),
    "no image model": (
        "public",
        ("image=nowhere",),
        "image: no image model in nowhere.*next: name a diffusers",
    ),
    "an image model without weights": (
        "public",
        ("image={lab}/bare",),
        "image: no .*safetensors in .*: download",
    ),
    "a pickled image model": (
        "public",
        ("image={lab}/pickled",),
        "image: .*as a pickle .*save_pretrained",
    ),
    "a cut image model": (
        "public",
        ("image={lab}/short",),
        "image: .*cannot be read.*; copy the file again",
    ),
    "another config": (
        "public",
        ("image={lab}/misfit",),
        "image: .*does not fit the network.*next: copy",
    ),
    "an image model with a tensor less": (
        "public",
        ("image={lab}/lacking",),
        "is absent there, .*next: copy",
    ),
    "no schedule": ("public", ("image={lab}/timeless",), "image: .*scheduler_config.json.*next:"),
    "no T5": (
        "base",
        ('text={kind = "t5", folder = "nowhere"}',),
        "text: no nowhere/text_encoder/config.json: copy",
    ),
    "T5 without weights": (
        "base",
        ('text={kind = "t5", folder = "{lab}/t5"}',),
        "text: no .*/model.safetensors: copy the pipeline's",
    ),
    "T5 nowhere named": ("base", ('text={kind = "t5"}',), "text: .*folder is missing"),
    "no CLIP": (
        "base",
        (f'text={{{CLIP}, path = "no.safetensors", sha256 = "{ZEROS}"}}',),
        "text: no weights at no.safetensors: put the file there",
    ),
    "CLIP unpinned": (
        "base",
        (f'text={{{CLIP}, path = "no.safetensors"}}',),
        "text: .*path needs sha256",
    ),
    # sizes
    "frames that do not divide": (
        "motion",
        ("base={lab}/thirds",),
        "clips of 80 frames do not divide by the 3 of the base's temporal_factor; next:",
    ),
    "px that do not divide": ("base", ("model.sample_px=17",), "sample_px: 17 must divide by 2"),
    "px that the scale does not divide": (
        "ssr",
        ("ssr.sample_px=33",),
        "33 does not divide by scale 2",
    ),
    "px of too many levels": (
        "ssr",
        ("ssr.sample_px=34", "ssr.widths=[8, 8, 16]"),
        "34 must divide by 4",
    ),
    "frames beyond the clip": (
        "ssr",
        ("frames=99",),
        "frames: 99 is more than the 80 of a clip; next:",
    ),
    "fewer clips than workers": ("base", ("num_workers=3",), "global_batch: at least num_workers"),
}


@pytest.fixture(scope="module")
def lab(tiny, tmp_path_factory) -> Path:
    """Inputs of every kind, whole ones and wrong ones."""
    folder = tmp_path_factory.mktemp("lab")
    prep = Prep(contract=Contract(), payload_short_side_px=64)
    Dataset.create(folder / "none", prep.contract, prep)
    _train(tiny, folder)
    _publish(folder)
    (folder / "t5" / "text_encoder").mkdir(parents=True)
    (folder / "t5" / "text_encoder" / "config.json").write_text('{"d_model": 16}')
    return folder


def _train(tiny, folder: Path) -> None:
    training.train(job(tiny, folder / "base", "base", steps=1), ALONE, Posts())
    training.train(job(tiny, folder / "other", "base", steps=1, seed=9), ALONE, Posts())
    thirds = job(tiny, folder / "thirds", "base", steps=1)
    network = replace(NETWORK, temporal_factor=(3,))
    training.train(replace(thirds, spec=replace(thirds.spec, network=network)), ALONE, Posts())
    base = str(folder / "base")
    training.train(job(tiny, folder / "motion", "motion", steps=1, base=base), ALONE, Posts())
    torch.use_deterministic_algorithms(mode=False)
    for name in ("unfinished", "damaged", "cut"):
        shutil.copytree(folder / "base", folder / name)
    shutil.copytree(folder / "motion", folder / "older")
    _age(folder / "older")
    shutil.rmtree(folder / "unfinished" / "checkpoint")
    halve(folder / "damaged" / "checkpoint" / "params.safetensors")
    halve(folder / "cut" / "checkpoint" / "checkpoint.json")


def _age(folder: Path) -> None:
    """Make the checkpoint one of a version whose network had a tensor less."""
    told = checkpoint.load(folder / "checkpoint")
    state = told.tensors["params"]
    state.pop(max(state))
    shutil.rmtree(folder / "checkpoint")
    more = {"role": told.role, "spec": told.spec, "parents": told.parents, "meta": told.meta}
    checkpoint.save(folder / "checkpoint", tensors={"params": state}, **more)


def _publish(folder: Path) -> None:
    names = ("public", "bare", "pickled", "short", "misfit", "lacking", "timeless")
    inner = {name: tiny_unet.save("deepfloyd-1", folder / name) / "unet" for name in names}
    weights = {name: path / "diffusion_pytorch_model.safetensors" for name, path in inner.items()}
    for name in names:
        if name != "timeless":
            (folder / name / "scheduler").mkdir()
            told = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"}
            (folder / name / "scheduler" / "scheduler_config.json").write_text(json.dumps(told))
    weights["bare"].unlink()
    weights["pickled"].rename(weights["pickled"].with_suffix(".bin"))
    halve(weights["short"])
    state = load_file(weights["lacking"])
    del state["conv_out.bias"]
    save_file(state, weights["lacking"])
    config = inner["misfit"] / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"block_out_channels": [16, 32, 48]}))


def halve(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


@pytest.fixture
def here(tiny, lab, tmp_path, monkeypatch) -> Path:
    """A folder with a recipe of each kind, where the command line is called."""
    for name, text in RECIPES.items():
        role = "base" if name == "public" else name
        (tmp_path / f"{name}.toml").write_text(text.format(role=role, dataset=tiny.root, lab=lab))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, *words: str) -> str:
    """Run `kinoray train`; return its one line of refusal, which comes before any cluster."""
    assert _guarded(["train", *words]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    hello, *lines = streams.err.splitlines()
    assert hello.startswith("kinoray: loading libraries")
    assert len(lines) == 1, streams.err
    assert lines[0].startswith("kinoray: ")
    return lines[0]


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_one_line_before_anything_starts(here, lab, capsys, name):
    recipe, overrides, said = WRONG[name]
    words = [word.replace("{lab}", str(lab)) for word in overrides]
    assert re.search(said, refused(capsys, f"{recipe}.toml", *words))
    # neither a folder claimed nor a run on record: once it is put right, the same command begins
    assert not (here / "out").exists()
    assert not (here / ".kinoray" / "mlflow.db").exists()


def test_the_tiny_inputs_are_right_but_for_what_is_wrong(here, lab):
    """The negative control: what the cases change is all that is wrong with them."""
    for name in RECIPES:
        made = config.build(Config, _table(here / f"{name}.toml"), name=name)
        shelves = freeze((Mixed(dataset=made.dataset),))
        base = base_of(made)
        assert inputs_of(made, base, spec_of(made, shelves, base)).keys() == _wanted(name)
    start = {**_table(here / "motion.toml"), "start": str(lab / "motion"), "masks": {}}
    made = config.build(Config, start, name="motion")
    base = base_of(made)
    spec = spec_of(made, freeze((Mixed(dataset=made.dataset),)), base)
    # masks are learned from the start: they may be lacking there
    assert inputs_of(made, base, spec).keys() == {"base", "start"}


def _table(path: Path) -> dict[str, Any]:
    return {key: value for key, value in config.read(path).items() if key != "verb"}


def _wanted(name: str) -> set[str]:
    return {"motion": {"base"}, "public": {"image"}}.get(name, set())


def begun(here: Path, name: str) -> Path:
    """Claim the output folder as the command does that ends right behind it; return the folder."""
    made = config.build(Config, _table(here / f"{name}.toml"), name=name)
    shelves, base = freeze((Mixed(dataset=made.dataset),)), base_of(made)
    inputs = shelves.inputs | inputs_of(made, base, spec_of(made, shelves, base))
    return claim(made.out, "train", made, inputs=inputs, resume=True).folder


def test_a_motion_goes_on_over_its_own_base_only(here, lab, capsys):
    before = (begun(here, "motion") / "recipe.json").read_bytes()
    line = refused(capsys, "motion.toml", f"base={lab}/other")
    assert re.search(r"out: was made by another recipe .*input base was '[0-9a-f]{12}'", line)
    assert (here / "out" / "recipe.json").read_bytes() == before


def test_a_folder_in_which_another_run_trains_is_refused(here, capsys):
    out = begun(here, "base")
    half = out / "checkpoints" / ".step-0000006.writing-1-abcd"
    half.mkdir(parents=True)
    (half / "params.safetensors").write_bytes(b"half")
    with alone(out, scratch=out / "ray-train") as cleared:
        assert cleared == 4
        assert not half.exists()
        half.mkdir()
        assert "another run is at work in it; next: wait" in refused(capsys, "base.toml")
        # nor is it moved aside under the one that works in it
        line = refused(capsys, "base.toml", "--no-resume")
        assert "another run is at work in it; next: wait" in line
        assert [path.name for path in here.glob("out*")] == ["out"]
        assert half.exists(), "what a living run writes was cleared"


def test_a_batch_of_more_clips_than_there_are_is_defined_and_said(tiny):
    shelves = freeze((Mixed(dataset=str(tiny.root)),))
    assert shelves.sizes == (3,)
    assert shelves.crowded(3) == ""
    said = f"a batch takes 64 clips of {tiny.root}, which has 3: each step sees them 21.3 times; next: a smaller"
    assert shelves.crowded(64).startswith(said)
    one = Selection(where="caption = 'a red square'")
    both = freeze(
        (Mixed(dataset=str(tiny.root)), Mixed(dataset=str(tiny.root), select=one, weight=3))
    )
    assert "takes 3 clips of" in both.crowded(4)
    assert both.crowded(1) == ""
    order = Mixture(sizes=(3,), weights=(1,)).draws(np.arange(64), seed=0)
    counts = np.bincount(order.indices)
    assert counts.max() - counts.min() <= 1, "a batch over several epochs has each clip as often"


def test_of_runs_that_start_together_one_has_the_folder(here):
    made = config.build(Config, _table(here / "base.toml"), name="base")
    together, tried = threading.Barrier(4), threading.Barrier(4)

    def start(out: Path) -> bool:
        together.wait(60)
        claim(out, "train", made, inputs={}, resume=True)
        try:
            with alone(out, scratch=out / "ray-train"):
                tried.wait(60)
                return True
        except WrongInput:
            tried.wait(60)
            return False

    for number in range(5):
        outs = [here / f"together-{number}"] * 4
        with ThreadPoolExecutor(4) as threads:
            assert sum(threads.map(start, outs)) == 1
