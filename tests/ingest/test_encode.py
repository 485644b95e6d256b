import io
from fractions import Fraction

import av
import numpy as np
import pytest

from ingest.clip import Contract, Prep
from ingest.decode import check_payload, payload_frames
from ingest.encode import encode_clip, encode_still, encode_video, poster


def test_the_same_frames_give_the_same_bytes(studio):
    frames = studio.frames(80)
    payload = encode_clip(frames, Prep())
    assert payload == encode_clip(frames, Prep())
    assert payload != encode_clip(frames, Prep(crf=19))


def test_a_payload_decodes_to_its_frames_in_order(studio, read_numbers):
    frames = studio.frames(80)
    payload = encode_clip(frames, Prep())
    check_payload(payload, Prep().contract, reference=frames)
    assert read_numbers(payload_frames(payload)) == list(range(80))
    picks = [79, 3, 40, 17, 16, 15]
    assert read_numbers(payload_frames(payload, indices=picks)) == picks


def test_planar_frames_reach_the_encoder_untouched():
    """With crf 0 the codec loses nothing, so that any difference were a conversion on the way."""
    frames = np.random.default_rng(0).integers(16, 236, (80, 96, 64), np.uint8)
    payload = encode_clip(frames, Prep(crf=0))
    with av.open(io.BytesIO(payload)) as opened:
        stream = opened.streams.video[0]
        decoded = [np.array(frame.to_ndarray()) for frame in opened.decode(stream)]
        told = stream.codec_context
        assert (told.colorspace, told.color_primaries, told.color_trc, told.color_range) == (
            *(1, 1, 1),  # BT.709
            1,  # TV range
        )
    assert np.array_equal(np.stack(decoded), frames)


def test_colours_survive():
    colours = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200], [120, 120, 120]], np.uint8)
    frames = np.broadcast_to(colours.repeat(32, 0)[None, :, None], (80, 128, 96, 3)).copy()
    decoded = payload_frames(encode_clip(frames, Prep()))
    error = np.abs(decoded[:, 8::32].astype(int) - frames[:, 8::32].astype(int))
    assert error.max() <= 6  # a swapped matrix or range is off by 15 and more


@pytest.mark.parametrize("shape", [(10, 64, 64, 3), (7, 33, 47, 3)])
def test_lossless_is_exact(shape):
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert np.array_equal(payload_frames(encode_video(frames, 16, lossless=True)), frames)


def test_viewing_form_plays_and_drops_odd_edges():
    frames = np.full((10, 33, 47, 3), 90, np.uint8)
    decoded = payload_frames(encode_video(frames, 16, lossless=False))
    assert decoded.shape == (10, 32, 46, 3)
    assert abs(int(decoded.mean()) - 90) <= 2


def test_poster_is_a_jpeg():
    assert poster(np.full((32, 48, 3), 200, np.uint8)).startswith(b"\xff\xd8\xff")


def test_other_arrays_are_refused():
    with pytest.raises(ValueError, match="uint8 THWC"):
        encode_clip(np.zeros((80, 16, 16, 3), np.float32), Prep())
    with pytest.raises(ValueError, match="uint8 THWC"):
        encode_still(np.zeros((16, 16), np.uint8))


def test_a_rate_that_nobody_tells_is_refused(studio):
    native = Prep(contract=Contract(frames=8, fps="native"))
    for fps in (None, 0, Fraction(0)):
        with pytest.raises(ValueError, match="own rate"):
            encode_clip(studio.frames(8), native, fps=fps)


def test_any_rational_rate_is_written_exactly(studio):
    frames = studio.frames(8)
    assert encode_clip(frames, Prep()) == encode_clip(frames, Prep(), fps=Fraction(16))
    for fps in (Fraction(25, 3), Fraction(10000, 1001), Fraction(1, 7), Fraction(29821, 1001)):
        payload = encode_clip(frames, Prep(), fps=fps)
        check_payload(payload, Contract(frames=8), fps=fps)
    slow = encode_video(frames, Fraction(25, 3), lossless=False)
    check_payload(slow, Contract(frames=8), fps=Fraction(25, 3))


@pytest.mark.parametrize("shape", [(1, 1, 3), (33, 47, 3), (64, 2, 3)])
def test_a_still_is_exact_and_the_same_bytes_each_time(shape):
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    payload = encode_still(picture)
    assert payload == encode_still(picture.copy())
    assert np.array_equal(payload_frames(payload, kind="png")[0], picture)
