import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest.clip import Contract, Prep
from ingest.decode import check_payload, payload_frames, resize_crop
from ingest.encode import encode_clip, encode_video


def test_a_broken_contract_is_told(studio):
    frames = studio.frames(80)
    contract = Contract()
    with pytest.raises(ValueError, match="79 frames"):
        check_payload(encode_clip(frames[:79], Prep()), contract)
    with pytest.raises(ValueError, match="constant 16 fps"):
        check_payload(encode_video(frames, 24, lossless=False), contract)
    payload = encode_clip(frames, Prep())
    with pytest.raises(ValueError, match="differs"):
        check_payload(payload, contract, reference_THWC=255 - frames)
    with pytest.raises(ValueError, match="decodes to"):
        check_payload(payload, contract, reference_THWC=frames[:, :64])
    for broken in (b"", b"not a video at all", payload[: len(payload) // 2]):
        with pytest.raises(ValueError, match="payload"):
            check_payload(broken, contract)


@settings(deadline=None, max_examples=40)
@given(
    size=st.tuples(st.integers(2, 80), st.integers(2, 80)),
    target=st.tuples(st.integers(1, 64), st.integers(1, 64)),
)
@example(size=(2, 2), target=(1, 4))
def test_resize_crop_gives_the_size_and_keeps_flat_colour(size, target):
    frames = np.full((2, *size, 3), 77, np.uint8)
    out = resize_crop(frames, target[1], target[0])
    assert out.shape == (2, *target, 3)
    assert (out == 77).all()


def test_resize_crop_is_centred_and_averages():
    frames = np.zeros((1, 4, 8, 3), np.uint8)
    frames[:, :, 2:6] = 100
    assert (resize_crop(frames, 2, 2) == 100).all()  # the sides are cropped, not squeezed
    checker = np.indices((8, 8)).sum(0) % 2 * 200
    grey = resize_crop(np.repeat(checker[None, ..., None], 3, -1).astype(np.uint8), 2, 2)
    assert (grey == 100).all()  # an aliasing resizer would give 0 or 200


def test_size_on_request(studio):
    payload = encode_clip(studio.frames(80), Prep())
    assert payload_frames(payload, width=32, height=32, indices=[0, 5]).shape == (2, 32, 32, 3)


@pytest.mark.parametrize("width", [8, 12, 16, 24, 30, 48, 64, 228])
def test_every_width_comes_back_exactly(width):
    """decord takes padded rows for more channels at some widths: ours must not."""
    frames_THWC = np.random.default_rng(0).integers(0, 255, (5, 32, width, 3), dtype=np.uint8)
    back_THWC = payload_frames(encode_video(frames_THWC, 16, lossless=True))
    assert np.array_equal(back_THWC, frames_THWC)
    picked_THWC = payload_frames(encode_video(frames_THWC, 16, lossless=True), indices=[3, 1])
    assert np.array_equal(picked_THWC, frames_THWC[[3, 1]])
