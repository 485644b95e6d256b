"""Stages of others: loaded by name with one clear error, and held to their promises."""

import random

import numpy as np
import pytest

from ingest.conformance import check
from ingest.stage import (
    Failure,
    Needs,
    NotAStage,
    ScoreFact,
    decided,
    load,
    producer_of,
    settings_digest,
)
from tests.ingest.stages_made import BRIGHTNESS, Brightness, Jumps, Means, NotStill, Shades

MADE = "tests.ingest.stages_made"
KINDS = {
    "captioner": Shades(),
    "scorer": Brightness(),
    "embedder": Means(),
    "shot_detector": Jumps(),
    "keep_rule": NotStill(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_good_stages_conform_and_load(kind):
    stage = KINDS[kind]
    assert check(kind, stage) == ()
    again = load(f"{MADE}:{type(stage).__name__}", {}, kind)
    assert producer_of(again) == f"{stage.name}/v1"
    for other in KINDS.keys() - {kind}:
        if {kind, other} != {"captioner", "embedder"} and kind != "scorer":
            assert check(other, stage) != ()


def test_settings_decide_the_digest():
    one = load(f"{MADE}:Shades", {"prompt": "x"}, "captioner")
    assert settings_digest(one) == settings_digest(Shades("x"))
    assert settings_digest(one) != settings_digest(Shades("y"))
    assert settings_digest(one) != settings_digest(one, {"clean": 1})
    assert decided(one, {}) == ""


@pytest.mark.parametrize(
    ("use", "settings", "words"),
    [
        ("nothing", {}, "package.module:Class"),
        ("no.such.place:Thing", {}, "no.such.place cannot be imported"),
        (f"{MADE}:Absent", {}, "has no Absent"),
        (f"{MADE}:Shades", {"promt": "x"}, "keys do not fit.*promt"),
        (f"{MADE}:BRIGHTNESS", {}, "do not fit"),
        ("pathlib:Path", {}, "not a captioner: it needs a text 'name'"),
        (f"{MADE}:NotStill", {}, ""),
    ],
)
def test_what_is_no_stage_is_refused_in_a_line(use, settings, words):
    if not words:
        words = "not a scorer: it needs a tuple of ingest.stage.ScoreFact"
        with pytest.raises(NotAStage, match=words):
            load(use, settings, "scorer")
        return
    with pytest.raises(NotAStage, match=words) as raised:
        load(use, settings, "captioner")
    assert "\n" not in str(raised.value)


class Drifts(Shades):
    def __call__(self, clips):
        return [str(random.random()) for _ in clips]


class SeesNeighbours(Shades):
    def __call__(self, clips):
        return [f"one of {len(clips)}" for _ in clips]


class Short(Shades):
    def __call__(self, clips):
        return ["a"] * (len(clips) - 1)


class Numbers(Shades):
    def __call__(self, clips):
        return [None for _ in clips]


class Paints(Shades):
    def __call__(self, clips):
        for clip in clips:
            if clip.frames_THWC.flags.writeable:
                clip.frames_THWC[:] = 0
        return [""] * len(clips)


class Locked(Shades):
    def __init__(self):
        super().__init__()
        self.call = lambda: 0


class Breaks(Shades):
    def __call__(self, clips):
        raise ZeroDivisionError(len(clips))


class Refuses(Shades):
    def __call__(self, clips):
        return [Failure(error_class="Dark", message="too dark") for _ in clips]


class Nan(Brightness):
    def __call__(self, clips):
        return [{"brightness": float("nan")} for _ in clips]


class Whole(Brightness):
    def __call__(self, clips):
        return [{"brightness": np.float32(1)} for _ in clips]


class Clash(Brightness):
    scores = (ScoreFact(name="caption", unit="", range="", direction=""),)


class Long(Means):
    def __call__(self, clips):
        return [np.ones(4, np.float32) for _ in clips]


class Late(Jumps):
    def look(self, small_HW, at_s):
        return super().look(small_HW, at_s)[1:]


class Greedy(NotStill):
    needs = 3


@pytest.mark.parametrize(
    ("kind", "stage", "words"),
    [
        ("captioner", Drifts(), "not deterministic"),
        ("captioner", SeesNeighbours(), "depends on the batch"),
        ("captioner", Short(), "4 answers for 5 clips"),
        ("captioner", Numbers(), "NoneType"),
        ("captioner", Paints(), "changes the clips"),
        ("captioner", Locked(), "cannot be pickled"),
        ("captioner", Breaks(), "raises ZeroDivisionError"),
        ("scorer", Nan(), "what cannot be had is None"),
        ("scorer", Whole(), "is float32, not float"),
        ("scorer", Clash(), "is a column already"),
        ("embedder", Long(), "of length 1"),
        ("shot_detector", Late(), "0 flags for 60 frames"),
        ("keep_rule", Greedy(), "no ingest.stage.Needs"),
    ],
)
def test_broken_promises_are_named(kind, stage, words):
    problems = check(kind, stage)
    assert any(words in problem for problem in problems), problems


def test_a_failure_is_an_answer():
    assert check("captioner", Refuses()) == ()
    assert BRIGHTNESS in Brightness.scores
    with pytest.raises(ValueError, match="batch_clips"):
        Needs(batch_clips=0)
