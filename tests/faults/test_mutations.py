"""The campaign of damaged videos: hundreds of seeded mutations, each with exactly one fate."""

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.ingest.mutations import outcome

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]
SEEDS = range(1000, 1360)
VIDEOS = Path(__file__).resolve().parents[3] / "shared" / "videos"


@pytest.mark.skipif(not VIDEOS.is_dir(), reason="../shared/videos is absent: no real videos")
def test_every_damaged_video_has_one_fate(tmp_path):
    run = partial(outcome, folder=VIDEOS, scratch=tmp_path)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(run, SEEDS, chunksize=4))
    print(Counter(one.fate for one in found), max(one.seconds for one in found))  # noqa: T201
    assert not [one for one in found if one.fault]
    assert len({one.fate.split()[0] for one in found}) == 3  # all three fates were met
