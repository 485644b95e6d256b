import numpy as np
import pytest

from ingest.clip import Prep
from ingest.decode import check_payload, payload_frames
from ingest.encode import encode_clip, encode_video, poster


def test_the_same_frames_give_the_same_bytes(studio):
    frames = studio.frames(80)
    payload = encode_clip(frames, Prep())
    assert payload == encode_clip(frames, Prep())
    assert payload != encode_clip(frames, Prep(crf=19))


def test_a_payload_decodes_to_its_frames_in_order(studio, read_numbers):
    frames = studio.frames(80)
    payload = encode_clip(frames, Prep())
    check_payload(payload, Prep().contract, reference_THWC=frames)
    assert read_numbers(payload_frames(payload)) == list(range(80))
    picks = [79, 3, 40, 17, 16, 15]
    assert read_numbers(payload_frames(payload, indices=picks)) == picks


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
