"""kill -9 for real: the chain is killed in the middle of training, run again, and ends where an undisturbed one ended."""

import pytest

from ingest.store import Dataset
from tests.pipelines.conftest import RECIPE, killed_when, kinoray

pytestmark = pytest.mark.ray


@pytest.mark.faults
def test_killed_in_training_and_run_again(chain, tmp_path, tiny_videos):
    (tmp_path / "tiny.toml").write_text(RECIPE.format(videos=tiny_videos))
    words = ("run", "tiny.toml", "--json")
    said = killed_when(tmp_path, "train base: 1 of 2", *words)
    assert "step 2 of 6" in said
    assert not (tmp_path / "out" / "base" / "result.json").exists()
    again = kinoray(tmp_path, *words)
    assert again.code == 0, again.err[-2000:]
    assert again.told["steps"]["curate"]["digest"] == chain.told["steps"]["curate"]["digest"]
    for step in ("base", "motion", "ssr", "sample"):
        # Equal digests of weights and of decoded frames: two runs of one seed are one.
        assert again.told["steps"][step]["digest"] == chain.told["steps"][step]["digest"], step
    ledger = Dataset.open(tmp_path / "out" / "curate").ledger()
    keys = list(zip(*(ledger.column(n).to_pylist() for n in ("kind", "id")), strict=True))
    assert len(keys) == len(set(keys)) == 6
