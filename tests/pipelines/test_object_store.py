"""From videos to a training step with the dataset in an S3 store: curated into it, mixed, trained from it."""

import pytest

from ingest.store import Dataset
from tests.pipelines.conftest import CHECKOUT, kinoray
from tests.pipelines.test_curate import KEEP

RECIPES = CHECKOUT / "jobs" / "recipes"
pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
TINY = [
    *(
        "steps=2",
        "global_batch=2",
        "num_workers=1",
        "checkpoint_every=2",
        "optimizer.warmup_steps=1",
    ),
    *("model.sample_px=16", "model.widths=[8, 16, 16]", "model.text_dim=16", "frames=2"),
]


def test_curated_into_a_store_and_trained_from_it(bucket, tiny, tiny_videos, tmp_path):
    place = f"{bucket}/clips"
    words = ["curate", str(RECIPES / "curate.toml"), f"source={tiny_videos}", f"out={place}", *KEEP]
    words.append("prep.payload_short_side_px=64")
    made = kinoray(tmp_path, *words, "--json")
    assert made.code == 0, made.err[-2000:]
    assert made.told["digest"] == tiny.dataset.digest()  # where a dataset lies changes nothing
    assert kinoray(tmp_path, *words, "--json").told["version"] == made.told["version"]
    assert Dataset.open(place).kept_clips().num_rows == 3
    refused = kinoray(tmp_path, *words, "--no-resume", "--json")
    assert (refused.code, "object store" in refused.told["error"]) == (2, True)

    mixed = f'mix=[{{dataset = "{tiny.root}", weight = 2, select = {{where = "caption LIKE \'%red%\'"}}}}]'
    trained = kinoray(
        tmp_path,
        "train",
        str(RECIPES / "base.toml"),
        f"dataset={place}",
        mixed,
        "out=base",
        *TINY,
        "--json",
    )
    assert trained.code == 0, trained.err[-2000:]
    assert trained.told["steps"] == 2
