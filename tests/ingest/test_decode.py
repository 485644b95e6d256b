from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest.clip import Contract, Prep
from ingest.decode import check_payload, payload_frames, resize_crop
from ingest.encode import encode_clip, encode_still, encode_video


def test_a_broken_contract_is_told(studio):
    frames = studio.frames(80)
    contract = Contract()
    with pytest.raises(ValueError, match="79 frames"):
        check_payload(encode_clip(frames[:79], Prep()), contract)
    with pytest.raises(ValueError, match="constant 16 fps"):
        check_payload(encode_video(frames, 24, lossless=False), contract)
    payload = encode_clip(frames, Prep())
    with pytest.raises(ValueError, match="differs"):
        check_payload(payload, contract, reference=255 - frames)
    with pytest.raises(ValueError, match="decodes to"):
        check_payload(payload, contract, reference=frames[:, :64])
    for broken in (b"", b"not a video at all", payload[: len(payload) // 2]):
        for ends_only in (False, True):
            with pytest.raises(ValueError, match="payload"):
                check_payload(broken, contract, ends_only=ends_only)


def test_the_ends_of_groups_tell_other_pictures(studio):
    frames = studio.frames(80)
    payload = encode_clip(frames, Prep())
    check_payload(payload, Contract(), reference=frames, ends_only=True)
    for end in (0, *range(15, 80, 16)):
        other = frames.copy()
        other[end] = 255 - other[end]
        with pytest.raises(ValueError, match=f"frame {end} differs"):
            check_payload(payload, Contract(), reference=other, ends_only=True)
    other[: end - 1] = 255 - other[: end - 1]
    other[end] = frames[end]
    with pytest.raises(ValueError, match="frame 0 differs"):
        check_payload(payload, Contract(), reference=other)


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


def test_a_still_is_one_frame_whole_or_nothing():
    picture = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)
    payload = encode_still(picture)
    frames = payload_frames(memoryview(payload), kind="png")
    assert np.array_equal(frames, picture[None])
    assert payload_frames(payload, kind="png", width=8, height=8).shape == (1, 8, 8, 3)
    assert payload_frames(payload, kind="png", indices=[0, 0]).shape == (2, 33, 47, 3)
    still = Contract(frames=1)
    check_payload(payload, still, reference=frames)
    with pytest.raises(ValueError, match="lossless"):
        check_payload(payload, still, reference=frames ^ (frames == frames[0, 0, 0]))
    with pytest.raises(ValueError, match="decodes to"):
        check_payload(payload, still, reference=frames[:, 1:])
    for broken in (b"", b"no picture", payload[: len(payload) // 2], payload[:-12]):
        with pytest.raises(ValueError, match="payload"):
            check_payload(broken, still)
    with pytest.raises(ValueError, match="payload cannot"):
        payload_frames(payload, kind="png", indices=[1])


def test_raw_frames_are_the_payload_itself():
    frames = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8)
    payload = frames.tobytes()
    found = payload_frames(memoryview(payload), kind="raw_u8_thwc", shape=(5, 6, 7))
    assert np.array_equal(found, frames)
    assert np.shares_memory(found, np.frombuffer(payload, np.uint8))
    same = payload_frames(payload, kind="raw_u8_thwc", shape=[5, 6, 7], width=7, height=6)
    assert np.shares_memory(same, np.frombuffer(payload, np.uint8))
    picked = payload_frames(payload, kind="raw_u8_thwc", shape=(5, 6, 7), indices=[4, 0])
    assert np.array_equal(picked, frames[[4, 0]])
    for shape in (None, (5, 6), (5, 6, 8), (5, 6, 7, 3)):
        with pytest.raises(ValueError, match=r"shape|bytes"):
            payload_frames(payload, kind="raw_u8_thwc", shape=shape)


@pytest.mark.parametrize("kind", ["latent_f16_tchw", "tokens_i32", "", "PNG"])
def test_other_kinds_hold_no_frames(kind):
    with pytest.raises(ValueError, match="holds no frames"):
        payload_frames(b"1234", kind=kind)


def test_the_rate_of_a_native_clip_is_its_rows(studio):
    contract = Contract(frames=16, fps="native", interval=3)
    fps = Fraction(10000, 1001)
    payload = encode_clip(studio.frames(16), Prep(contract=contract), fps=fps)
    check_payload(payload, contract, fps=fps)
    for wrong in (Fraction(10), Fraction(30000, 1001), 9):
        with pytest.raises(ValueError, match="constant"):
            check_payload(payload, contract, fps=wrong)
    with pytest.raises(ValueError, match="rate of the clip's row"):
        check_payload(payload, contract)
