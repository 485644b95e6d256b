"""The guard: what is bad, what follows, and that a continuation decides as the whole run would have."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.guard import Guard, Watch

BAD = math.nan


def verdicts(watch: Watch, losses: list[float]) -> list[str]:
    return [watch.judge(loss, 1.0) for loss in losses]


def test_ordinary_losses_are_good_and_early_ones_may_fall_fast():
    assert set(verdicts(Watch(Guard()), [100.0, 1.0, 50.0, *[1.0] * 50])) == {"good"}


def test_a_spike_is_skipped_and_is_not_what_the_next_is_measured_by():
    watch = Watch(Guard(spike=10.0))
    verdicts(watch, [1.0] * 20)
    assert verdicts(watch, [11.0, 11.0, 1.0, 9.0, 11.0]) == ["skip", "skip", "good", "good", "good"]
    assert watch.usual() == 1.0
    # control: without spikes only what is not finite is bad
    finite = Watch(Guard(spike=0.0))
    verdicts(finite, [1.0] * 20)
    assert verdicts(finite, [1e9, BAD]) == ["good", "skip"]


def test_losses_that_spread_wide_are_no_spikes():
    """As an SSR's at two clips a step: one in ten is above ten times the median."""
    chance = random.Random(0)
    losses = [math.exp(chance.gauss(-4.0, 1.8)) for _ in range(3000)]
    usual = sorted(losses)[1500]
    assert sum(loss > 10 * usual for loss in losses) > 250
    found = verdicts(Watch(Guard()), losses)
    assert found.count("skip") <= 15  # where ten times the median leaves out 300
    assert "roll back" not in found
    # control: what a divergence looks like is seen
    watch = Watch(Guard())
    verdicts(watch, losses)
    assert verdicts(watch, [30.0, 60.0, 100.0]) == ["skip", "skip", "roll back"]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_bad_from_the_first_step(number):
    assert Watch(Guard()).judge(number, 1.0) == "skip"
    assert Watch(Guard()).judge(1.0, number) == "skip"


def test_after_patience_it_goes_back_and_after_its_rollbacks_it_stops():
    watch = Watch(Guard(patience=2, rollbacks=1))
    assert verdicts(watch, [BAD] * 4) == ["skip", "roll back", "skip", "stop"]
    assert watch.rolled_back == 1
    assert verdicts(Watch(Guard(patience=1, rollbacks=0)), [BAD]) == ["stop"]


LOSSES = st.lists(st.sampled_from([1.0, 1.5, 2.0, 500.0, math.nan, math.inf]), max_size=80)


@given(losses=LOSSES, cut=st.integers(0, 80))
def test_a_continuation_decides_as_the_whole_run(losses, cut):
    guard = Guard(window=5, patience=2, rollbacks=3)
    whole, first = Watch(guard), Watch(guard)
    expected = verdicts(whole, losses)
    found = verdicts(first, losses[:cut])
    found += verdicts(Watch(guard, first.state_dict()), losses[cut:])
    assert found == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spike": 1.0}, "spike"),
        ({"window": 1}, "window"),
        ({"patience": 0}, "patience"),
        ({"rollbacks": -1}, "rollbacks"),
    ],
)
def test_settings_without_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Guard(**change)
