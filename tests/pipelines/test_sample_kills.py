"""A set whose driver and one of whose actors are killed is the set of an undisturbed run; `make faults` kills twenty times."""

import pytest

from tests.faults import sample_kills
from tests.pipelines.conftest import kinoray


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_two_kills_lose_and_double_nothing(tmp_path):
    place = sample_kills.recipe(tmp_path, prompts=5)
    words = ["sample", str(place), "--json"]
    calm = kinoray(tmp_path, *words, "out=calm")
    assert calm.code == 0, calm.err[-2000:]
    kills = [("driver", 3, 0.2), ("worker", 2, 0.3)]
    sample_kills.campaign(tmp_path, [*words, "out=out"], kills, actors=2)
    assert not (tmp_path / "out").exists(), "it went on after its actor's death, and was checked"
