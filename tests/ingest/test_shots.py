from collections.abc import Iterable
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from ingest.clip import Contract
from ingest.shots import Window, WindowFinder

flags = st.lists(st.integers(0, 30).map(lambda n: n == 0), max_size=200)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """Frames [start, end); whether a border that was found (and not an end of the file) bounds it."""

    start: int
    end: int
    cut_before: bool
    cut_after: bool


def shots_of(cut_flags: Iterable[bool]) -> list[Shot]:
    """Return the shots of a sequence of per-frame flags: a run of them is one border."""
    flags = list(cut_flags)
    if not flags:
        return []
    flags[0] = False  # a file begins with a shot whatever is said of its first frame
    around = [*flags, False]
    starts = [0, *(n for n in range(1, len(flags)) if flags[n] and not around[n + 1])]
    ends = [*(n for n in range(1, len(flags)) if flags[n] and not flags[n - 1]), len(flags)]
    return [
        Shot(start=start, end=end, cut_before=start > 0, cut_after=end < len(flags))
        for start, end in zip(starts, ends, strict=True)
    ]


def windows(shots: Iterable[Shot], contract: Contract, trim: int) -> list[Window]:
    """Return all clip windows of known shots: the closed form that WindowFinder streams."""
    found = []
    for index, shot in enumerate(shots):
        first = shot.start + trim * shot.cut_before
        last = shot.end - trim * shot.cut_after - contract.span
        found += [
            Window(start=start, end=start + contract.span, shot_index=index)
            for start in range(first, last + 1, contract.frames * contract.step)
        ]
    return found


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
