from dataclasses import fields, replace

import pytest

from ingest.keep import RULES, Bound, Keep, own_rules
from ingest.stage import NotAStage, Objection
from tests.ingest.stages_made import NotStill

MADE = "tests.ingest.stages_made"

GOOD = {
    "motion": 0.1,
    "duplicate_frame_share": 0.0,
    "luma_mean": 100.0,
    "luma_range": 80.0,
    "sharpness": 50.0,
    "flicker": 1.0,
}


@pytest.mark.parametrize(
    ("rule", "name", "score"),
    [
        ("min_motion", "motion", 0.004),
        ("max_motion", "motion", 0.51),
        ("max_duplicate_frame_share", "duplicate_frame_share", 0.11),
        ("min_luma", "luma_mean", 15.0),
        ("max_luma", "luma_mean", 241.0),
        ("min_luma_range", "luma_range", 19.0),
        ("min_sharpness", "sharpness", 5.0),
        ("max_flicker", "flicker", 9.0),
    ],
)
def test_each_rule_rejects_beyond_its_threshold_only(rule, name, score):
    keep = Keep(min_sharpness=10.0, max_flicker=8.0)
    assert keep.decide(GOOD).name == "kept"
    fate = keep.decide(GOOD | {name: score})
    assert (fate.name, fate.rule, fate.score) == ("rejected", rule, score)
    assert fate.threshold == getattr(keep, rule)
    assert keep.decide(GOOD | {name: fate.threshold}).name == "kept"  # the bound itself is inside
    assert replace(keep, **{rule: None}).decide(GOOD | {name: score}).name == "kept"
    assert keep.decide(GOOD | {name: None}).name == "kept"


def test_a_still_is_judged_by_what_it_has():
    """It has no motion and repeats nothing: rules about those say nothing of it, others do."""
    still = GOOD | {"motion": None, "duplicate_frame_share": None}
    strict = Keep(min_motion=0.2, max_motion=0.3, max_duplicate_frame_share=0.0)
    assert strict.decide(still).name == "kept"
    fate = strict.decide(still | {"luma_mean": 3.0})
    assert (fate.name, fate.rule) == ("rejected", "min_luma")


def test_every_threshold_has_its_rule():
    tested = {"min_motion", "max_motion", "max_duplicate_frame_share", "min_luma", "max_luma"}
    tested |= {"min_luma_range", "min_sharpness", "max_flicker"}
    assert {field.name for field in fields(Keep)} - {"bounds", "own"} == tested == set(RULES)


def test_digest_follows_the_thresholds():
    assert Keep().digest() == Keep().digest() != Keep(min_motion=0.006).digest()


def test_a_bound_is_a_rule_over_any_score():
    keep = Keep(bounds=(Bound(score="aesthetic", min=4.5), Bound(score="text_match", max=0.9)))
    assert keep.decide(GOOD).name == "kept"  # nothing is known against it
    assert keep.decide(GOOD | {"aesthetic": None, "text_match": 0.9}).name == "kept"
    fate = keep.decide(GOOD | {"aesthetic": 4.4, "text_match": 0.95})
    assert (fate.rule, fate.score, fate.threshold) == ("min_aesthetic", 4.4, 4.5)
    fate = keep.decide(GOOD | {"aesthetic": 4.5, "text_match": 0.95})
    assert (fate.rule, fate.score, fate.threshold) == ("max_text_match", 0.95, 0.9)
    assert Keep().decide(GOOD | {"aesthetic": 4.4}).rule == "min_aesthetic"
    assert Keep(bounds=()).decide(GOOD | {"aesthetic": 4.4}).name == "kept"
    assert keep.digest() != Keep().digest()


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ([{"score": "aesthetic"}], "give min or max"),
        ([{"score": "motion", "min": 0.1}], "write keep.min_motion"),
        ([{"score": "caption", "min": 0.1}], "'caption' is no score"),
        ([{"score": "Nice", "min": 0.1}], "'Nice' is no score"),
        ([{"score": "a", "min": 0.1}, {"score": "a", "max": 1.0}], "a is bounded twice"),
    ],
)
def test_a_bound_that_cannot_be_meant(bounds, said):
    with pytest.raises(ValueError, match=said):
        Keep(bounds=tuple(Bound(**one) for one in bounds))


class Truths(NotStill):
    def __call__(self, rows):
        return [row["motion"] is None for row in rows]


class Comparing(NotStill):
    def __call__(self, rows):
        return [Objection() if row["motion"] < 0.1 else None for row in rows]


class Forgetful(NotStill):
    def __call__(self, rows):
        return [None for _ in rows[1:]]


def test_own_rules_are_loaded_and_have_names_of_their_own():
    own = own_rules(Keep(own=({"use": f"{MADE}:NotStill"},)))
    assert [rule.name for rule in own] == ["not_still"]
    with pytest.raises(ValueError, match="use ="):
        Keep(own=({"class": "x"},))
    for table in ({"use": f"{MADE}:Jumps"}, {"use": f"{MADE}:NotStill", "level": 1}):
        with pytest.raises(NotAStage, match="use = "):
            own_rules(Keep(own=(table,)))
    for name, words in (
        ("Truths", "use = .*answers with bool; .*Objection"),
        ("Comparing", "asked of scores None, .* it raises TypeError"),
        ("Forgetful", "3 answers for 4 clips"),
    ):
        with pytest.raises(NotAStage, match=words):
            own_rules(Keep(own=({"use": f"{__name__}:{name}"},)))
    with pytest.raises(NotAStage, match="there is a rule 'not_still' already"):
        own_rules(Keep(own=({"use": f"{MADE}:NotStill"},) * 2))
