"""Curation killed twice, its driver and a worker, ends as an undisturbed one does; make faults does it fifty times."""

import random

import pytest

from ingest.store import Dataset
from tests.faults.curate_kills import killed_once
from tests.pipelines.conftest import kinoray
from tests.pipelines.test_curate import KEEP, RECIPE

pytestmark = pytest.mark.ray


@pytest.mark.timeout(600)
def test_two_kills_lose_and_double_nothing(tmp_path, tiny_videos):
    words = ["curate", RECIPE, f"source={tiny_videos}", *KEEP, "--json"]
    place, draw = tmp_path / "killed", random.Random(3)
    for victim in ("driver", "worker"):
        done = killed_once(tmp_path, [*words, "out=killed"], victim, draw.uniform(0, 0.5), place)
        assert done == "killed"
    ended = kinoray(tmp_path, *words, "out=killed")
    assert ended.code == 0, ended.err[-1500:]
    calm = kinoray(tmp_path, *words, "out=calm")
    assert ended.told["digest"] == calm.told["digest"]
    rows = Dataset.open(tmp_path / "killed").ledger().select(["kind", "id"]).to_pylist()
    assert len(rows) == len({(row["kind"], row["id"]) for row in rows})
    assert ended.told["fates_balance"]
