"""A worker that curates one source after the other does not grow: it lives for days."""

import subprocess
import sys
import textwrap

from tests.pipelines.conftest import CHECKOUT

SCRIPT = """
import sys
from pathlib import Path

import psutil

from ingest.clip import Prep
from ingest.keep import Keep
from ingest.sources import list_sources
from ingest.unit import curate_unit, plan_unit

source, root, prep = list_sources([sys.argv[1]])[0], Path(sys.argv[2]), Prep()
keep = Keep(min_motion=None, max_duplicate_frame_share=None)
me = psutil.Process()

def some(number):
    for turn in range(number):
        curate_unit(plan_unit(source, prep=prep), prep=prep, keep=keep, root=root / str(turn))
    return me.memory_info().rss / 2**20, me.num_fds(), me.num_threads()

print(*some(8))
print(*some(24))
"""


def test_a_long_lived_worker_does_not_grow(studio, tmp_path):
    film = studio.numbered("n24.mp4", fps="24", count=123)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(film), str(tmp_path)],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    (rss, files, threads), (later, later_files, later_threads) = (
        map(float, line.split()) for line in done.stdout.splitlines()
    )
    # A clip has 3 MiB of frames: were they kept, it would show six times over.
    assert later - rss < 12, f"{rss:.0f} MiB became {later:.0f} MiB"
    assert later_files <= files
    assert later_threads <= threads
