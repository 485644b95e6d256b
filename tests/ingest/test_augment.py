import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.augment import Frames, cut_of, draws, render
from tests.ingest.made_views import name_of, picture, stored

NAME = name_of(1, "any")
SHAPE = {"frames": 12, "width": 40, "height": 24}


def row_of(kind="raw_u8_thwc", frames=12, width=40, height=24, clip_id=NAME):
    size = {"frame_count": frames, "width": width, "height": height}
    return {"clip_id": clip_id, "payload_kind": kind, **size}


def shown(frames: Frames, *, kind="raw_u8_thwc", seed=0, epoch=0, number=3):
    stored_THWC = picture(number, **SHAPE)
    row = row_of(kind)
    cut = cut_of(row, frames, seed=seed, epoch=epoch)
    high, low = (np.empty(shape, np.uint8) for shape in frames.shapes(row["frame_count"]))
    render(stored(stored_THWC, kind), row, cut, high, low)
    return stored_THWC, cut, high, low


def test_the_draws_never_change():
    """A change here would change every training run that goes on: raise DRAWS_VERSION instead."""
    assert draws(0, 0, "00" * 32) == (
        0.9607062680787136,
        0.6323452413263837,
        0.8474351978339402,
        0.6991777596845568,
    )
    assert draws(2**64 - 1, 7, "ab" * 32) == (
        0.2349295233678227,
        0.15475214385618008,
        0.8957693189077374,
        0.6032876786335967,
    )
    assert draws(-1, 7, "ab" * 32) == draws(2**64 - 1, 7, "ab" * 32)


def test_the_draws_are_even_and_apart():
    table = np.array(
        [draws(s, e, name_of(c, "x")) for s in (0, 1) for e in range(5) for c in range(200)]
    )
    assert abs(table.mean() - 0.5) < 0.02
    assert np.abs(np.corrcoef(table.T) - np.eye(4)).max() < 0.08
    assert len({tuple(row) for row in table}) == len(table)


def test_as_stored_is_as_stored():
    stored_THWC, cut, high, low = shown(Frames(width=40, height=24))
    assert np.array_equal(high, stored_THWC)
    assert (len(low), cut.indices, cut.window, cut.flip) == (0, range(12), (0, 0, 40, 24), False)


@settings(deadline=None, max_examples=60)
@given(
    st.builds(
        dict,
        width=st.integers(1, 60),
        height=st.integers(1, 60),
        frames=st.integers(0, 12),
        stride=st.integers(1, 4),
        start=st.sampled_from(["first", "centre", "random"]),
        crop=st.sampled_from(["centre", "random"]),
        flip_share=st.sampled_from([0.0, 0.5, 1.0]),
    ),
    st.integers(0, 2**64 - 1),
)
def test_what_is_taken_is_what_was_asked(asked, seed):
    wanted = Frames(**asked)
    frames, stride = wanted.frames, wanted.stride
    row = row_of()
    if (frames - 1) * stride + 1 > 12:
        with pytest.raises(ValueError, match=f"clip {NAME}: {frames} frames at stride {stride}"):
            cut_of(row, wanted, seed=seed, epoch=0)
        return
    cut = cut_of(row, wanted, seed=seed, epoch=2)
    assert cut == cut_of(row, wanted, seed=seed, epoch=2)
    assert len(cut.indices) == wanted.count(12) == (frames or len(range(0, 12, stride)))
    assert cut.indices.step == stride
    assert 0 <= cut.indices[0] <= cut.indices[-1] < 12
    left, top, width, height = cut.window
    assert 0 <= left <= left + width <= 40
    assert 0 <= top <= top + height <= 24
    assert width == 40 or height == 24  # the largest of its aspect
    assert abs(width * wanted.height - height * wanted.width) <= max(wanted.width, wanted.height)
    if wanted.start == "first":
        assert cut.indices[0] == 0
    if wanted.crop == "centre":
        assert (left, top) == ((40 - width) // 2, (24 - height) // 2)
    if wanted.flip_share in (0.0, 1.0):
        assert cut.flip is bool(wanted.flip_share)
    assert wanted.is_random or cut == cut_of(row, wanted, seed=seed + 1, epoch=3)


def test_random_draws_reach_every_place():
    wanted = Frames(
        width=24, height=24, frames=4, stride=3, start="random", crop="random", flip_share=0.25
    )
    cuts = [cut_of(row_of(clip_id=name_of(n, "x")), wanted, seed=5, epoch=0) for n in range(800)]
    assert {cut.indices[0] for cut in cuts} == {0, 1, 2}
    assert {cut.window[0] for cut in cuts} == set(range(17))
    assert {cut.window[1:] for cut in cuts} == {(0, 24, 24)}
    assert 0.2 < np.mean([cut.flip for cut in cuts]) < 0.3


def test_frames_window_and_mirror_are_exact():
    wanted = Frames(
        width=24, height=24, frames=3, stride=2, start="random", crop="random", flip_share=1.0
    )
    for epoch in range(6):
        stored_THWC, cut, high, _low = shown(wanted, seed=1, epoch=epoch)
        left = cut.window[0]
        taken_THWC = stored_THWC[list(cut.indices), :, left : left + 24]
        assert np.array_equal(high, taken_THWC[:, :, ::-1])


def test_sizes_are_area_averages_and_so_is_the_low_pair():
    stored_THWC, _cut, high, low = shown(Frames(width=20, height=12, low=4))
    mean = stored_THWC.reshape(12, 12, 2, 20, 2, 3).mean(axis=(2, 4))
    assert np.abs(high - mean).max() <= 0.5
    assert low.shape == (12, 3, 5, 3)
    assert np.abs(low - high.reshape(12, 3, 4, 5, 4, 3).mean(axis=(2, 4))).max() <= 0.5
    mirrored = shown(Frames(width=20, height=12, low=4, flip_share=1.0))
    assert np.array_equal(mirrored[2], high[:, :, ::-1])
    assert np.array_equal(mirrored[3], low[:, :, ::-1])
    assert shown(Frames(width=80, height=48))[2].shape == (12, 48, 80, 3)  # larger than stored


def test_the_frames_of_a_video_are_those_of_the_whole():
    whole = shown(Frames(width=40, height=24), kind="h264_mp4")
    part = shown(Frames(width=40, height=24, frames=3, stride=4, start="centre"), kind="h264_mp4")
    assert np.array_equal(whole[2], whole[0])  # lossless
    assert part[1].indices == range(1, 10, 4)
    assert np.array_equal(part[2], whole[0][1:10:4])


@pytest.mark.parametrize("kind", ["raw_u8_thwc", "h264_mp4"])
def test_a_payload_that_is_not_what_its_row_says(kind):
    data, row = stored(picture(3, **SHAPE), kind), row_of(kind)
    frames = Frames(width=40, height=24)
    for wrong in ({"frame_count": 11}, {"frame_count": 13}, {"width": 24, "height": 40}):
        changed = row | wrong
        cut = cut_of(changed, frames, seed=0, epoch=0)
        high, low = (np.empty(s, np.uint8) for s in frames.shapes(changed["frame_count"]))
        if kind == "raw_u8_thwc" and "width" in wrong:
            continue  # as many bytes: nothing can tell
        with pytest.raises(ValueError, match="payload"):
            render(data, changed, cut, high, low)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"width": 0}, "sizes"),
        ({"frames": -1}, "frames"),
        ({"stride": 0}, "stride"),
        ({"start": "last"}, "start='last'"),
        ({"crop": "corner"}, "crop='corner'"),
        ({"flip_share": 1.5}, "flip_share"),
        ({"low": 3}, "low=3"),
        ({"low": 0}, "low=0"),
    ],
)
def test_what_no_clip_can_give_is_refused(wrong, named):
    with pytest.raises(ValueError, match=named) as caught:
        Frames(**({"width": 32, "height": 16} | wrong))
    assert "\n" not in str(caught.value)
    assert json.dumps(str(caught.value))
