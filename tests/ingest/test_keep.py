from dataclasses import fields, replace

import pytest

from ingest.keep import RULES, Keep

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
    assert {field.name for field in fields(Keep)} == tested == set(RULES)


def test_digest_follows_the_thresholds():
    assert Keep().digest() == Keep().digest() != Keep(min_motion=0.006).digest()
