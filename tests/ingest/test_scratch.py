"""Copies of remote sources: made once for all parts, whole or not there, and gone when nobody needs them."""

import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ingest import scratch
from ingest.clip import Contract, Prep
from ingest.objects import Root
from ingest.places import InStore
from ingest.scratch import room, shared, shared_path
from ingest.sources import list_sources
from ingest.unit import curate_unit, name_source, units_of
from tests.ingest.conftest import KEEP_ALL

PREP = Prep(max_unit_s=10, contract=Contract(frames=16, fps=8), payload_short_side_px=64)
CONTENT = b"whole" * 1000


@pytest.fixture(scope="module")
def film(studio):
    """30 s of noise: three parts of ten seconds."""
    path = studio.folder / "scratch-noise.mkv"
    noise = "testsrc2=s=160x120:r=24:d=30,noise=alls=60:allf=t"
    codec = ("-c:v", "libx264", "-qp", "4", "-preset", "ultrafast", "-g", "48")
    studio.run("-f", "lavfi", "-i", noise, *codec, path)
    return path


@pytest.mark.parametrize("kind", ["object", "member"])
def test_three_parts_take_one_hash_and_one_copy(film, kind, bucket, tmp_path, monkeypatch):
    place, uri = tmp_path / "film.tar", f"{bucket}/film.mkv"
    if kind == "object":
        Root.of(bucket).replace("film.mkv", film.read_bytes())
    else:
        uri = f"{bucket}/film.tar"
        with tarfile.open(place, "w") as tar:
            tar.add(film, "film.mkv")
        Root.of(bucket).replace("film.tar", place.read_bytes())
    (source,) = list_sources([uri])
    came = []
    inside = InStore.chunks

    def chunks(self, *where):
        for chunk in inside(self, *where):
            came.append(len(chunk))
            yield chunk

    monkeypatch.setattr(InStore, "chunks", chunks)
    room_of_it = tmp_path / "scratch"
    named = name_source(source, prep=PREP, scratch=room_of_it)
    units = units_of(source, named, prep=PREP)
    assert len(units) == 3
    for unit in units:
        assert len(list(room_of_it.iterdir())) == 1
        done = curate_unit(
            unit, prep=PREP, keep=KEEP_ALL, root=tmp_path / "out", scratch=room_of_it
        )
        assert done.stats["kept"] == 5
    assert sum(came) == 2 * film.stat().st_size
    assert not list(room_of_it.iterdir())


def fetched(path, log):
    log.append(path)
    path.write_bytes(CONTENT[:100])
    time.sleep(0.01)
    path.write_bytes(CONTENT)


def test_many_at_once_fetch_once_and_the_last_one_clears(tmp_path):
    path, log = shared_path(tmp_path, "x", ".mp4"), []

    def read(number):
        with shared(path, 1, lambda at: fetched(at, log), reading=(number, 8)):
            time.sleep(0.01 * (number % 3))
            return path.read_bytes() == CONTENT

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))
    assert len(log) == 1
    assert not list(tmp_path.iterdir())


def test_nobody_sees_half_a_copy_whatever_others_clear(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "KEPT_S", 0.0)  # idle ones go at once
    chance, log = random.Random(0), []

    def read(number):
        path = shared_path(tmp_path, str(number % 3), "")
        readings = (number, chance.choice([1, 4, 1 << 30]))
        with shared(path, 1, lambda at: fetched(at, log), reading=readings):
            time.sleep(chance.random() / 50)
            return path.read_bytes() == CONTENT

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(read, range(300)))
    with room(tmp_path):
        assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())


READER = """
import os, sys, time
from pathlib import Path
from ingest.scratch import shared, shared_path
def fetch(path):
    path.write_bytes(b"half")
    if sys.argv[2] == "fetching":
        print("here", flush=True)
        time.sleep(60)
    path.write_bytes(b"whole" * 1000)
with shared(shared_path(Path(sys.argv[1]), "x", ""), 1, fetch, reading=(0, 9)):
    print("here", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("moment", ["fetching", "reading"])
def test_what_a_killed_reader_leaves(moment, tmp_path, monkeypatch):
    command = [sys.executable, "-c", READER, str(tmp_path), moment]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"here\n"
        with room(tmp_path):  # a comer while it lives
            assert len(list(tmp_path.glob("kinoray-shared-*"))) == 1
        os.kill(child.pid, signal.SIGKILL)
    path, log = shared_path(tmp_path, "x", ""), []
    with shared(path, 1, lambda at: fetched(at, log), reading=(1, 9)):
        assert path.read_bytes() == CONTENT
    assert len(log) == (1 if moment == "fetching" else 0)
    monkeypatch.setattr(scratch, "KEPT_S", 0.0)
    with room(tmp_path):
        assert not list(tmp_path.glob("kinoray-shared-*"))


def test_idle_copies_are_bounded_and_the_oldest_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "KEPT_BYTES", 3 * len(CONTENT))
    for name in "abcde":
        with shared(shared_path(tmp_path, name, ""), 1, lambda at: fetched(at, []), reading=(0, 2)):
            pass
        time.sleep(0.02)
    with room(tmp_path):
        left = sorted(path.name[-1] for path in tmp_path.glob("kinoray-shared-*"))
    assert left == ["c", "d", "e"]


def test_what_cannot_be_fetched_leaves_nothing(tmp_path):
    def fetch(path: Path):
        path.write_bytes(b"half")
        raise ValueError("gone")

    with (
        pytest.raises(ValueError, match="gone"),
        shared(shared_path(tmp_path, "x", ""), 1, fetch, reading=(0, 9)),
    ):
        pass
    assert not list(tmp_path.iterdir())
