"""A few of the seeded mutations of real videos; the campaign is tests/faults/test_mutations.py."""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import pytest

from tests.ingest.mutations import mutate, outcome


@pytest.fixture(scope="module")
def apart():
    """A process of its own: what memory its decoders take is not that of the whole suite."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("seed", range(12))
def test_damaged_real_videos(shared_videos, apart, tmp_path, seed):
    found = apart.submit(outcome, seed, shared_videos, tmp_path).result()
    assert not found.fault, found


def test_the_same_seed_makes_the_same_damage(shared_videos, tmp_path):
    made = partial(damaged, shared_videos, tmp_path)
    assert made(5) == made(5) != made(6)


def damaged(folder, scratch, seed):
    what = mutate(seed, folder, scratch / "m")
    return what, (scratch / "m").read_bytes()
