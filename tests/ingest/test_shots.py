import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest import ffmpeg, planes
from ingest.clip import Contract, Prep
from ingest.reading import Reading
from ingest.shots import CutFinder, WindowFinder, shots_of, windows

# Hard cuts checked by eye, in frames at 16 per second (INDEX and truth.json of the shared videos).
REAL_CUTS = {
    "bbb_0_30.webm": [189, 251, 368],
    "bbb_480p_30s.mp4": [190, 252, 369],
    "bbb_1080p_60fps.mp4": [6],
    "nasa_13013.mp4": [129],
    "bbb_1080p_5s.mp4": [],
    "mdn_crystal.mp4": [],
}

flags = st.lists(st.integers(0, 30).map(lambda n: n == 0), max_size=200)


def stream(cut_flags, contract, trim):
    finder, found = WindowFinder(contract, trim), []
    for is_cut in cut_flags:
        found += finder.feed(is_cut=is_cut)
    return found + finder.end(), finder


@given(flags, st.integers(1, 12), st.integers(0, 5), st.integers(1, 5))
def test_streaming_equals_the_closed_form(cut_flags, frames, trim, interval):
    contract = Contract(frames=frames, fps="native", interval=interval)
    shots = shots_of(cut_flags)
    found, finder = stream(cut_flags, contract, trim)
    assert found == windows(shots, contract, trim)
    assert finder.num_shots == len(shots)
    usable = [s.end - trim * s.cut_after - s.start - trim * s.cut_before for s in shots]
    assert finder.longest_frames == max([0, *usable])


@given(flags, st.integers(1, 12), st.integers(0, 5))
def test_windows_keep_their_distance_from_cuts(cut_flags, frames, trim):
    found, _ = stream(cut_flags, Contract(frames=frames), trim)
    cuts = [index for index, is_cut in enumerate(cut_flags) if is_cut and index]
    taken = [index for window in found for index in range(window.start, window.end)]
    assert len(taken) == len(set(taken))
    for window in found:
        assert window.end - window.start == frames
        assert 0 <= window.start < window.end <= len(cut_flags)
        for cut in cuts:
            assert cut + trim <= window.start or window.end <= cut - trim


@given(st.integers(0, 400))
def test_a_file_of_one_shot_is_used_from_its_first_frame(count):
    found, _ = stream([False] * count, Contract(), 4)
    assert [window.start for window in found] == list(range(0, count - 79, 80))


def cuts_of(frames):
    finder, found = CutFinder(Prep()), []
    for frame in frames:
        found += finder.feed(planes.luma(frame))
    found += finder.end()
    return [index for index, is_cut in enumerate(found) if is_cut], len(found)


def test_made_cuts_are_found_where_they_are(studio):
    for cut_at in ((), (30,), (20, 55), (1,), (58,)):
        found, count = cuts_of(studio.frames(60, cut_at=cut_at))
        assert (found, count) == (list(cut_at), 60)


def test_fades(studio):
    frames = studio.frames(90).astype(float)
    level = np.ones(90)
    level[:15] = np.linspace(0, 1, 15)  # in from black: the first shot
    level[40:50], level[50:55], level[55:65] = np.linspace(1, 0, 10), 0, np.linspace(0, 1, 10)
    found, _ = cuts_of((frames * level[:, None, None, None]).astype(np.uint8))
    assert len(found) == 2
    assert 46 <= found[0] <= 50
    assert 55 <= found[1] <= 58


@pytest.mark.parametrize("name", sorted(REAL_CUTS))
def test_cuts_of_real_videos(shared_videos, name):
    path = str(shared_videos / name)
    with Reading(path, ffmpeg.probe(path, Prep()), Prep()) as reading:
        found, _ = cuts_of(reading)
    assert found == REAL_CUTS[name]


def test_a_lit_figure_on_a_dark_stage_is_no_black(studio):
    """The mean of such frames hovers at black; a mean would cut at each flicker."""
    frames = studio.frames(60).astype(float) * 0.01
    frames[:, 40:70, 60:90] = 150
    flicker = np.random.default_rng(0).uniform(0.9, 1.1, 60)[:, None, None, None]
    found, _ = cuts_of((frames * flicker).clip(0, 255).astype(np.uint8))
    assert found == []
