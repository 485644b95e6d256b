"""Hashes of clips, and the search for near ones: nothing lost, nothing that is not there."""

from itertools import combinations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.duplicates import FLAT, MAX_BITS, is_flat, leaks, pairs, phash
from tests.ingest import splices

STEP = 80


def scene(seed, count=40, shape=(90, 160)):
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (12, 24)).astype(np.float32)
    wide = cv2.resize(coarse, (2 * shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    frames = [wide[:, t : t + shape[1]] for t in range(count)]
    return np.stack(frames).clip(0, 255).astype(np.uint8)


def bits(one, other):
    return (int(one, 16) ^ int(other, 16)).bit_count()


def hexed(value):
    return f"{value:048x}"


@pytest.mark.parametrize("seed", range(6))
def test_a_copy_has_nearly_the_same_hash(seed):
    frames = scene(seed)
    hashed = phash(frames)
    assert len(hashed) == 48
    noise = np.random.default_rng(seed).normal(0, 6, frames.shape)
    copies = {
        "smaller": [cv2.resize(f, (80, 46), interpolation=cv2.INTER_AREA) for f in frames],
        "larger": [cv2.resize(f, (320, 180), interpolation=cv2.INTER_CUBIC) for f in frames],
        "coarse": [
            cv2.imdecode(cv2.imencode(".jpg", f, [cv2.IMWRITE_JPEG_QUALITY, 15])[1], 0)
            for f in frames
        ],
        "noisy": (frames + noise).clip(0, 255).astype(np.uint8),
        "brighter": (frames * 0.8 + 40).astype(np.uint8),
        "a frame later": frames[1:],
        "a frame earlier": np.concatenate([frames[:1], frames[:-1]]),
    }
    for name, copy in copies.items():
        assert bits(hashed, phash(copy)) <= MAX_BITS, name
    assert bits(hashed, phash(scene(seed + 100))) > 40


def test_flat_clips_match_nothing():
    black, grey = np.zeros((9, 64, 96), np.uint8), np.full((9, 64, 96), 128, np.uint8)
    assert phash(black) == phash(grey) == FLAT * 3
    fade = np.concatenate([black, scene(1, 30, (64, 96))])
    assert is_flat(phash(fade))
    assert not is_flat(phash(scene(1)))
    hashes = [phash(black), phash(grey), phash(fade), phash(fade)]
    assert len(pairs(hashes, 192 // 8)) == 0
    assert leaks(hashes, hashes) == {}


@given(st.integers(1, 5))
def test_the_shortest_clips_have_hashes(count):
    assert len(phash(scene(3, count))) == 48


@st.composite
def near_hashes(draw):
    """A few seeds, and copies with bits turned anywhere, most within the limit."""
    values = draw(st.lists(st.integers(0, (1 << 192) - 1), min_size=1, max_size=4))
    for _ in range(draw(st.integers(0, 14))):
        value = draw(st.sampled_from(values))
        for bit in draw(st.sets(st.integers(0, 191), max_size=24)):
            value ^= 1 << bit
        values.append(value)
    return [hexed(value) for value in values]


@settings(max_examples=150, deadline=None)
@given(near_hashes(), st.integers(0, 24))
def test_no_pair_is_lost_and_none_invented(hashes, max_bits):
    wanted = [
        [i, j]
        for i, j in combinations(range(len(hashes)), 2)
        if bits(hashes[i], hashes[j]) <= max_bits
        and not is_flat(hashes[i])
        and not is_flat(hashes[j])
    ]
    assert pairs(hashes, max_bits).tolist() == wanted


@settings(max_examples=60, deadline=None)
@given(near_hashes(), near_hashes())
def test_leaks_are_the_pairs_of_two_sides(ours, theirs):
    found = leaks(ours, theirs)
    for n, one in enumerate(ours):
        distances = [(bits(one, other), m) for m, other in enumerate(theirs) if not is_flat(other)]
        if is_flat(one) or not distances or min(distances)[0] > MAX_BITS:
            assert n not in found
        else:
            assert found[n] == min(distances)[1]


def test_a_hundred_thousand_hashes_with_copies():
    """Time and memory grow with the hashes and not with their square."""
    rng = np.random.default_rng(0)
    words = rng.integers(1, 1 << 63, (100_000, 3), dtype=np.uint64)
    for n in range(500):  # copies with up to 16 bits turned
        words[99_500 + n] = words[n]
        for bit in rng.choice(192, n % 17, replace=False):
            words[99_500 + n, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    hashes = [row.astype(">u8").tobytes().hex() for row in words]
    assert pairs(hashes).tolist() == [[n, 99_500 + n] for n in range(500)]


def hashes_of(path, *, step=STEP):
    looks = splices.looks(path)
    found = [phash(looks[n : n + step]) for n in range(0, len(looks) - step + 1, step)]
    return {f"{path.name}@{n}": hashed for n, hashed in enumerate(found)}


def test_short_files_with_shorter_windows(shared_videos):
    one = hashes_of(shared_videos / "bbb_1080p_60fps.mp4", step=24)
    other = hashes_of(shared_videos / "bbb_1080p_60fps.ts", step=24)
    assert leaks(list(one.values()), list(other.values())) == {0: 0}
