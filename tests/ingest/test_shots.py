from hypothesis import given
from hypothesis import strategies as st

from ingest.clip import Contract
from ingest.shots import WindowFinder, shots_of, windows

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
    borders = [index for index, is_cut in enumerate(cut_flags) if is_cut and index]
    taken = [index for window in found for index in range(window.start, window.end)]
    assert len(taken) == len(set(taken))
    for window in found:
        assert window.end - window.start == frames
        assert 0 <= window.start < window.end <= len(cut_flags)
        for border in borders:
            assert border + trim <= window.start or window.end <= border - trim


@given(st.integers(0, 400))
def test_a_file_of_one_shot_is_used_from_its_first_frame(count):
    found, _ = stream([False] * count, Contract(), 4)
    assert [window.start for window in found] == list(range(0, count - 79, 80))


def test_flags_in_a_row_are_one_border_and_no_shot():
    cut_flags = [False] * 10 + [True] * 5 + [False] * 9
    assert [(shot.start, shot.end) for shot in shots_of(cut_flags)] == [(0, 10), (14, 24)]
    stills, finder = stream(cut_flags, Contract(frames=1, fps="native"), 0)
    assert {window.start for window in stills} == {*range(10), *range(14, 24)}
    assert (finder.num_shots, finder.longest_frames) == (2, 10)
