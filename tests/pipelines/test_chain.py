"""The whole job, once, for real: what each verb tells, what it leaves behind, and that a second run has nothing left to do."""

import json
import shutil
import sqlite3
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from cluster.session import Cluster
from ingest.decode import payload_frames
from ingest.shards import read_payload
from ingest.store import Dataset
from pipelines import chain as chains
from pipelines import curate, weights
from pipelines.maker import Maker, Roles
from pipelines.manifest import read_set
from pipelines.order import Order
from pipelines.prompts import Prompt
from pipelines.videos import frames_sha256, pixels
from tests.pipelines.conftest import kinoray

PROMISED = {
    "curate": "verb dataset version digest sources clips_kept clips_rejected failed duplicates fates_balance wall_s cpu_s",
    "base": "verb role steps loss_first loss_last checkpoint run_id",
    "sample": "verb set samples windows_per_sample frames seconds_per_sample",
    "evaluate": "verb set metrics skipped",
}

pytestmark = pytest.mark.ray


def test_the_promised_fields(chain):
    steps = chain.told["steps"]
    assert chain.told["status"] == "done"
    assert list(steps) == ["curate", "base", "ssr", "motion", "sample", "evaluate"]
    for step, names in PROMISED.items():
        assert set(names.split()) <= set(steps[step]), step
    assert steps["curate"]["fates_balance"] is True
    assert (steps["curate"]["sources"], steps["curate"]["clips_kept"]) == (3, 3)
    assert steps["sample"]["samples"] == 4
    assert steps["sample"]["windows_per_sample"] == 3


def test_every_payload_decodes_to_80_frames(chain):
    dataset = Dataset.open(chain.folder / "out" / "curate")
    rows = dataset.kept_clips().to_pylist()
    assert len(rows) == 3
    for row in rows:
        payload = read_payload(
            dataset.root, row["shard"], row["offset"], row["length"], row["crc32"]
        )
        assert payload_frames(bytes(payload)).shape == (80, 64, 64, 3)
    with pa.OSFile(str(dataset.root.path / rows[0]["shard"]), "rb") as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.schema.names[-1] == "payload"


def test_samples_are_the_frames_of_the_manifest(chain):
    folder = chain.folder / "out" / "sample"
    rows = read_set(folder)
    assert len({row["identity"] for row in rows}) == len(rows) == 4
    for row in rows:
        frames = payload_frames((folder / row["lossless_path"]).read_bytes())
        assert frames.shape == (80, 32, 32, 3)
        assert frames_sha256(frames) == row["frames_sha256"]
        assert payload_frames((folder / row["view_path"]).read_bytes()).shape == (80, 32, 32, 3)
    assert len({row["frames_sha256"] for row in rows}) == 4
    page = (folder / "contact.html").read_text()
    assert all(row["identity"][:12] in page for row in rows)


def test_a_sample_depends_on_its_order_alone(chain):
    """Made again in this process, without Ray and out of turn, a sample has the very same pixels."""
    folder = chain.folder / "out"
    row = read_set(folder / "sample")[-1]
    roles = Roles(
        base=str(folder / "base"),
        motion=str(folder / "motion"),
        ssr=str(folder / "ssr"),
        settings=json.loads(row["settings"]),
        device="cpu",
    )
    order = Order(
        identity=row["identity"],
        prompt=Prompt(text=row["prompt"]),
        negative="",
        index=row["index"],
        seed=int(row["seed"], 16),
    )
    assert order.prompt.id == row["prompt_id"]
    maker = Maker(roles)
    low = maker.low(order)
    assert frames_sha256(low) == row["base_sha256"]
    assert frames_sha256(maker.high(order, low)) == row["frames_sha256"]


def test_a_second_run_has_nothing_to_do(chain):
    again = kinoray(chain.folder, "run", "tiny.toml", "--json")
    assert again.code == 0, again.err[-2000:]
    assert "starting Ray" not in again.err
    for name, step in chain.told["steps"].items():
        assert again.told["steps"][name] == step, name


def test_the_run_tree_in_the_tracker(chain):
    with sqlite3.connect(chain.folder / ".kinoray" / "mlflow.db") as store:
        runs = dict(store.execute("select run_uuid, status from runs"))
        tags = {
            (run, key): value
            for run, key, value in store.execute("select run_uuid, key, value from tags")
        }
        params = {
            (run, key): v
            for run, key, v in store.execute("select run_uuid, key, value from params")
        }
        losses = store.execute("select run_uuid, step from metrics where key = 'loss'").fetchall()
    parent = chain.told["run_id"]
    children = [run for run in runs if tags.get((run, "mlflow.parentRunId")) == parent]
    assert set(runs.values()) == {"FINISHED"}
    assert len(children) == 6
    for name, step in chain.told["steps"].items():
        assert step["run_id"] in children, name
        assert tags[step["run_id"], "kinoray.recipe"]
    base = chain.told["steps"]["base"]
    assert params[base["run_id"], "steps"] == "2"
    assert sorted(step for run, step in losses if run == base["run_id"]) == [1, 2]
    assert tags[base["run_id"], "kinoray.dataset"] == base["dataset_digest"]
    artifacts = list((chain.folder / ".kinoray").rglob("report.html"))
    assert len(artifacts) == 1


def test_the_report_stands_alone(chain):
    page = Path(chain.folder / chain.told["report"]).read_text()
    assert page.count("<video") == 3 + 4
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page


def test_nothing_is_left_over(chain):
    events = (chain.folder / "out" / "base" / "events.jsonl").read_text().splitlines()
    assert all(json.loads(line)["time"] > 0 for line in events)
    assert not list((chain.folder / "out").rglob(".*.writing-*"))
    assert not (chain.folder / "out" / "base" / "ray-train").exists()


def test_an_incomplete_set_is_refused(chain, tmp_path):
    shutil.copytree(chain.folder / "out" / "sample", tmp_path / "set")
    asked = json.loads((tmp_path / "set" / "asked.json").read_text())
    asked["identities"].append("0" * 64)
    (tmp_path / "set" / "asked.json").write_text(json.dumps(asked))
    recipe = tmp_path / "e.toml"
    recipe.write_text('sets = ["set"]\nout = "e"\n')
    ran = kinoray(tmp_path, "evaluate", "e.toml", "--json", "--quiet")
    assert ran.code == 3
    assert "1 of 5 samples are missing" in ran.told["error"]


def test_another_recipe_in_the_same_folder_is_refused(chain):
    ran = kinoray(chain.folder, "run", "tiny.toml", "steps.base.steps=3", "--json", "--quiet")
    assert ran.code == 2
    assert "was made by another recipe (steps.base.steps was 2, is 3)" in ran.told["error"]
    assert "--no-resume" in ran.told["next"]
    loaded = weights.load(chain.folder / "out" / "base", "base")
    assert loaded.digest == chain.told["steps"]["base"]["digest"]


def test_needs_are_checked_before_anything_starts(tmp_path):
    made = curate.Config(source=("x",), out=tmp_path)
    steps = [
        chains.Step(name=n, verb="curate", config=made, needs=w)
        for n, w in [("a", ("b",)), ("b", ("a",))]
    ]
    with pytest.raises(ValueError, match="circle"):
        chains.Config(out=tmp_path, steps=tuple(steps), cluster=Cluster())
    with pytest.raises(ValueError, match="@c is not a step"):
        list(chains.ordered((chains.Step(name="a", verb="curate", config=made, needs=("c",)),)))


def test_pixels_round_trip():
    x = torch.linspace(-1, 1, 256).reshape(1, 1, 1, 1, 256).expand(1, 3, 1, 1, 256)
    assert pixels(x)[0, 0, :, 0].tolist() == list(range(256))


def test_other_videos_are_refused_before_anything_is_touched(chain):
    before = Dataset.open(chain.folder / "out" / "curate").digest()
    ran = kinoray(chain.folder, "run", "tiny.toml", "source=elsewhere", "--json", "--quiet")
    assert ran.code == 2
    assert "steps.curate.source was" in ran.told["error"]
    assert Dataset.open(chain.folder / "out" / "curate").digest() == before


def test_a_removed_video_is_made_again(chain, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(chain.folder, folder, ignore=shutil.ignore_patterns(".kinoray"))
    row = read_set(folder / "out" / "sample")[0]
    lost = folder / "out" / "sample" / row["view_path"]
    lost.unlink()
    again = kinoray(folder, "run", "tiny.toml", "--json")
    assert again.code == 0, again.err[-2000:]
    assert lost.exists()
    assert again.told["steps"]["sample"]["digest"] == chain.told["steps"]["sample"]["digest"]
