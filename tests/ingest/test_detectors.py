"""A shot detector of somebody's own inside the one pass; what it breaks is the source's fate."""

from dataclasses import replace
from functools import partial

import pytest

from ingest.clip import Prep
from ingest.detectors import made_by
from tests.ingest.stages_made import Jumps

AT = 40  # frames at 16 a second


class Timed:
    """Says that a shot begins when 2.5 seconds have passed."""

    name, version = "timed", "v1"

    def __init__(self, at_s=2.5, late=0, lost=0, raises=""):
        self.at_s, self.late, self.lost, self.raises = at_s, late, lost, raises
        self.held, self.was_s = [], None

    def settings(self):
        return {"at_s": self.at_s}

    def look(self, small_HW, at_s):
        assert small_HW.shape[0] <= 64
        assert small_HW.dtype == "uint8"
        if self.raises:
            raise RuntimeError(self.raises)
        was_s, self.was_s = self.was_s, at_s
        self.held.append(was_s is not None and was_s < self.at_s <= at_s)
        return [self.held.pop(0)] if len(self.held) > self.late else []

    def end(self):
        return self.held[: len(self.held) - self.lost]


@pytest.fixture(scope="module")
def one_shot(studio):
    return studio.numbered("one_shot.mp4", fps="16", count=260)


def own(prep, **keys):
    make = partial(Timed, **keys)
    return {"prep": replace(prep, detector="d" * 64), "detector": make}


@pytest.mark.parametrize("contract", [{}, {"fps": "native"}, {"frames": 40, "fps": 8}])
@pytest.mark.parametrize("late", [0, 7])
def test_its_borders_are_kept(one_shot, curate, tmp_path, contract, late):
    prep = Prep(contract=replace(Prep().contract, **contract))
    result = curate(one_shot, tmp_path, **own(prep, late=late))
    clips = [row for row in result.rows.to_pylist() if row["kind"] == "clip"]
    assert len(clips) == 2
    for row in clips:
        assert not row["start_s"] < 2.5 < row["end_s"]
        assert row["shot_index"] == 1  # the first shot is too short
    ours = curate(one_shot, tmp_path, prep=prep).rows.to_pylist()
    assert {row["id"] for row in clips}.isdisjoint(row["id"] for row in ours)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"raises": "out of ideas"}, "RuntimeError: out of ideas"),
        ({"late": 5, "lost": 2}, "timed: 258 flags for 260 frames"),
        ({"wrong": 1}, "TypeError"),
    ],
)
def test_what_it_breaks_is_the_fate_of_the_source(one_shot, curate, tmp_path, keys, said):
    (row,) = curate(one_shot, tmp_path, **own(Prep(), **keys)).rows.to_pylist()
    assert (row["fate"], row["stage"], row["error_class"]) == ("failed", "shots", "BrokenDetector")
    assert said in row["message"]


def test_digests():
    assert made_by({}) == (None, "")
    table = {"use": "tests.ingest.stages_made:Jumps"}
    make, digest = made_by(table)
    assert isinstance(make(), Jumps)
    assert digest != made_by(table | {"levels": 30.0})[1]
    assert Prep(detector=digest).digest() != Prep().digest()
