"""`make faults`: evaluation sets under twenty kills, on one, two and three actors and on a line of two kinds."""

import random

import pytest

from tests.faults import sample_kills
from tests.pipelines.conftest import kinoray

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(3600)]
NUM_KILLS = 20
SHAPES = {"one": (1, 0), "two": (2, 0), "three": (3, 0), "a line": (1, 2)}


@pytest.mark.parametrize("shape", SHAPES)
def test_twenty_kills_lose_and_double_nothing(tmp_path, shape):
    actors, ssr_actors = SHAPES[shape]
    place = sample_kills.recipe(tmp_path, prompts=8, actors=actors, ssr_actors=ssr_actors)
    # logical cores: three actors take turns on a machine of two
    words = ["sample", str(place), "cluster.num_cpus=4", "--json"]
    calm = kinoray(tmp_path, *words, "out=calm")
    assert calm.code == 0, calm.err[-2000:]
    draw = random.Random(shape)
    kills = [
        (sample_kills.VICTIMS[n % 3], draw.randrange(0, 6), draw.uniform(0, 1.0))
        for n in range(NUM_KILLS // len(SHAPES))
    ]
    told = sample_kills.campaign(
        tmp_path, [*words, "out=out"], kills, actors + ssr_actors + (1 if ssr_actors else 0)
    )
    print("", *told, sep="\n  ")  # noqa: T201  figures for the note
    ended = kinoray(tmp_path, *words, "out=out")
    assert ended.code == 0, ended.err[-2000:]
    assert ended.told["digest"] == calm.told["digest"]
    sample_kills.check(tmp_path / "out", tmp_path / "calm")
