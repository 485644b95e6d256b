"""Contracts of native frames, end to end: which frames of a source, at which rate and ticks."""

import subprocess
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import ffmpeg, planes
from ingest.clip import Contract, Prep, clip_id, played_s
from ingest.cuts import NativeCutFinder
from ingest.decode import check_payload, payload_frames
from ingest.looks import shrunk
from ingest.onepass import Held
from ingest.rates import Pace, pace_of
from ingest.reading import Reading
from ingest.shards import read_payload
from ingest.shots import Window, WindowFinder, trim_frames

LATTE = Contract(frames=16, fps="native", interval=3)
VFR_MS = [40 * n + (7 * n * n) % 30 for n in range(150)]
VFR = ("-vf", "settb=1/1000,setpts='40*N+mod(7*N*N,30)'", "-fps_mode", "passthrough")
MPEG4 = ("-c:v", "mpeg4", "-q:v", "1")


def rows_and_frames(result, root):
    found = []
    for row in result.rows.to_pylist():
        if row["kind"] == "clip" and row["fate"] == "kept":
            place = row["offset"], row["length"], row["crc32"]
            payload = bytes(read_payload(root, row["shard"], *place, clip_id=row["id"]))
            found.append((row, payload_frames(payload, kind=row["payload_kind"]), payload))
    return found


def native(contract=LATTE, **changes):
    return Prep(contract=contract, **changes)


# ------------------------------------------------------------------ native frames


@pytest.mark.parametrize(
    # The clock of mkv has milliseconds only.
    "name",
    ["25.avi", "24.mp4", "30000:1001.mp4", "30000:1001.mkv", "40.mp4", "10.mkv"],
)
def test_every_third_frame_and_an_exact_rate(studio, curate, read_numbers, tmp_path, name):
    rate = Path(name).stem.replace(":", "/")
    codec = {"codec": MPEG4} if name.endswith(".avi") else {}
    path = studio.numbered(f"native{name}", fps=rate, count=101, **codec)
    wanted = Fraction(rate) / 3
    result = curate(path, tmp_path, prep=native())
    assert (result.rows.to_pylist()[0]["message"], result.stats["decode_errors"]) == (None, 0)
    found = rows_and_frames(result, tmp_path)
    assert [read_numbers(frames) for _, frames, _ in found] == [
        list(range(start, start + 46, 3)) for start in (0, 48)
    ]
    for row, frames, payload in found:
        assert Fraction(row["fps_num"], row["fps_den"]) == wanted
        assert (row["frame_count"], row["payload_kind"]) == (16, "h264_mp4")
        check_payload(payload, LATTE, fps=wanted, reference=frames)
        with pytest.raises(ValueError, match="constant"):
            check_payload(payload, LATTE, fps=wanted * 3)
        assert played_s(16, row["fps_num"], row["fps_den"]) == float(16 / wanted)


def test_ticks_are_those_of_the_source(studio, curate, tmp_path):
    """Frame n of 29.97 fps begins at tick 1001 n, and a clip ends where its last frame does."""
    path = studio.numbered("native30000:1001.mp4", fps="30000/1001", count=101)
    (first, *_), (second, *_) = rows_and_frames(curate(path, tmp_path, prep=native()), tmp_path)
    timebase = Fraction(second["timebase_num"], second["timebase_den"])
    assert timebase == Fraction(1, 30000)
    assert (first["start_pts"], first["end_pts"]) == (0, 46 * 1001)
    assert (second["start_pts"], second["end_pts"]) == (48 * 1001, 94 * 1001)
    assert (second["start_s"], second["end_s"]) == (
        float(48 * 1001 * timebase),
        float(94 * 1001 * timebase),
    )
    assert second["id"] == clip_id(
        source_sha256=second["source_sha256"],
        stream_index=0,
        start_pts=48 * 1001,
        end_pts=94 * 1001,
        timebase=timebase,
        prep_digest=native().digest(),
    )


def test_the_last_frame_of_a_file_is_taken_and_has_an_end(studio, curate, read_numbers, tmp_path):
    path = studio.numbered("just.mp4", fps="25", count=46)
    ((row, frames, _),) = rows_and_frames(curate(path, tmp_path, prep=native()), tmp_path)
    assert read_numbers(frames) == list(range(0, 46, 3))
    timebase = Fraction(row["timebase_num"], row["timebase_den"])
    assert row["end_pts"] * timebase == Fraction(46, 25)
    short = curate(studio.numbered("short.mp4", fps="25", count=45), tmp_path, prep=native())
    fate = short.rows.to_pylist()[0]
    assert (fate["fate"], fate["rule"]) == ("rejected", "too_short")
    assert (fate["score"], fate["threshold"]) == (45 / 25, 46 / 25)


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_a_variable_rate_gives_each_frame_once_at_the_average(
    studio, curate, read_numbers, tmp_path, suffix
):
    timing = (*VFR, "-enc_time_base", "1/1000")
    if suffix == "mp4":
        timing = (*timing, "-video_track_timescale", "1000")
    path = studio.numbered(f"vfr.{suffix}", fps="25", count=150, timing=timing)
    result = curate(path, tmp_path, prep=native())
    found = rows_and_frames(result, tmp_path)
    assert [read_numbers(frames) for _, frames, _ in found] == [
        list(range(start, start + 46, 3)) for start in (0, 48, 96)
    ]
    average = Fraction(149 * 1000, VFR_MS[-1]).limit_denominator(1001)
    for (row, _, payload), start in zip(found, (0, 48, 96), strict=True):
        fps = Fraction(row["fps_num"], row["fps_den"])
        assert fps == average / 3
        check_payload(payload, LATTE, fps=fps)
        assert (row["start_pts"], row["end_pts"]) == (VFR_MS[start], VFR_MS[start + 46])
    assert "variable frame rate" in result.rows.to_pylist()[0]["message"]


@pytest.mark.parametrize("cut", [61, 62, 63])
def test_a_cut_among_skipped_frames_ends_the_shot(studio, curate, read_numbers, tmp_path, cut):
    """Frames 60 and 63 are in the grid of every third; whatever the cut, no clip is on both sides."""
    path = studio.numbered(f"cut{cut}.mp4", fps="25", count=150, cut_at=(cut,))
    prep = native(Contract(frames=8, fps="native", interval=3))
    found = rows_and_frames(curate(path, tmp_path, prep=prep), tmp_path)
    trim = 7  # a quarter of a second of 25 frames, rounded up
    starts = [*range(0, cut - trim - 21, 24), *range(cut + trim, 150 - 21, 24)]
    assert [read_numbers(frames) for _, frames, _ in found] == [
        list(range(start, start + 22, 3)) for start in starts
    ]
    assert [row["shot_index"] for row, _, _ in found] == [int(start > cut) for start in starts]


def test_what_is_inserted_between_two_looks_ends_a_shot_and_a_flash_does_not(studio):
    """At 40 fps most frames are not looked at; a foreign one among them is noticed all the same."""
    frames = studio.frames(90)
    frames[52] = 255 - frames[52]
    assert cuts_of(frames, Fraction(40)) == ([52, 53], 90)
    frames[52] = 255
    assert cuts_of(frames, Fraction(40)) == ([], 90)


def cuts_of(frames, fps):
    finder, found = NativeCutFinder(native()), []
    for number, frame in enumerate(frames):
        found += finder.look(shrunk(planes.luma(frame)), number / fps)
    found += finder.end()
    return [index for index, is_cut in enumerate(found) if is_cut], len(found)


@pytest.mark.parametrize("fps", ["10", "16", "24", "25", "30000/1001", "40"])
def test_cuts_lie_on_their_frame_at_any_rate(studio, fps):
    for cut_at in ((), (31,), (20, 55), (1,), (88,)):
        found, count = cuts_of(studio.frames(90, cut_at=cut_at), Fraction(fps))
        assert (found, count) == (list(cut_at), 90)


def test_a_blend_at_a_high_rate_is_the_cut_it_is_at_sixteen(studio):
    """Spread over three frames of a fortieth, a cut is no isolated jump of any one of them."""
    frames = studio.frames(90, cut_at=(51,)).astype(float)
    frames[50] = frames[49] * 2 / 3 + frames[52] / 3
    frames[51] = frames[49] / 3 + frames[52] * 2 / 3
    found, _ = cuts_of(frames.astype(np.uint8), Fraction(40))
    assert len(found) == 1
    assert 50 <= found[0] <= 52


def test_interlaced_frames_keep_their_times(studio, curate, read_numbers, tmp_path):
    path = studio.folder / "laced.mkv"
    whole = studio.numbered("native25.avi", fps="25", count=101, codec=MPEG4)
    studio.run("-i", whole, "-vf", "setfield=tff", "-c:v", "mpeg2video", "-flags", "+ilme+ildct",
               "-q:v", "1", path)  # fmt: skip
    assert ffmpeg.probe(str(path), native()).interlaced
    found = rows_and_frames(curate(path, tmp_path, prep=native()), tmp_path)
    numbers = [number for _, frames, _ in found for number in read_numbers(frames)]
    assert numbers == [*range(0, 46, 3), *range(48, 94, 3)]


def test_frames_out_of_time_are_left_out(studio, read_numbers):
    """Two recordings glued together: the second repeats times that are over."""
    one = studio.numbered("part25.ts", fps="25", count=40)
    both = studio.folder / "glued.ts"
    both.write_bytes(one.read_bytes() + one.read_bytes())
    with Reading(str(both), ffmpeg.probe(str(both), native()), native()) as reading:
        frames = list(reading)
        ticks = [reading.tick(index) for index in range(len(frames) + 1)]
    assert ticks == sorted(set(ticks))
    assert read_numbers(np.stack(frames)) == list(range(40))
    assert reading.num_errors == 0
    assert "40 frames left out" in reading.damage


def test_a_stretch_of_skipped_frames_is_not_held():
    """Sixteen frames, ten apart: a clip of 151 source frames holds 16 of them in memory."""
    finder = WindowFinder(Contract(frames=16, fps="native", interval=10), 4)
    held, most, taken = Held(finder), 0, []
    for index in range(1000):
        held.add(index, np.full((1, 1, 3), index % 251, np.uint8))
        found = finder.feed(is_cut=False)
        taken += [held.take(window, 10)[:, 0, 0, 0].tolist() for window in found]
        most = max(most, len(held._frames))
    assert taken == [[n % 251 for n in range(s, s + 151, 10)] for s in range(0, 840, 160)]
    assert most <= 16 + 6


@settings(max_examples=60, deadline=None)
@given(
    flags=st.lists(st.integers(0, 25).map(lambda n: n == 0), max_size=150),
    frames=st.integers(1, 8),
    interval=st.integers(1, 6),
    trim=st.integers(0, 5),
    lag=st.integers(0, 6),
)
def test_a_window_never_misses_a_frame(flags, frames, interval, trim, lag):
    """Whenever flags become certain, the frames of a window are there, on one side of each cut."""
    contract = Contract(frames=frames, fps="native", interval=interval)
    finder = WindowFinder(contract, trim)
    held, found = Held(finder), []

    def take(windows: list[Window]) -> None:
        for window in windows:
            got = held.take(window, interval)[:, 0, 0].tolist()
            assert got == list(range(window.start, window.end, interval))
            assert len(got) == frames
            found.append(window)

    for index in range(len(flags)):
        held.add(index, np.full((1, 1), index))
        if index >= lag:
            take(finder.feed(is_cut=flags[index - lag]))
    for flag in flags[max(0, len(flags) - lag) :]:
        take(finder.feed(is_cut=flag))
    take(finder.end())
    cuts = [index for index, is_cut in enumerate(flags) if is_cut and index]
    for before, after in pairwise(found):
        assert before.end <= after.start
    for window in found:
        assert all(cut + trim <= window.start or window.end <= cut - trim for cut in cuts)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("b.avi", (*MPEG4, "-bf", "2")),  # its packets say when to decode them only
        ("b.mpg", ("-c:v", "mpeg2video", "-q:v", "1", "-bf", "2")),  # here some do
        ("b.flv", ("-c:v", "libx264", "-qp", "4")),
        ("b.webm", ("-c:v", "libvpx-vp9", "-crf", "10", "-b:v", "0", "-deadline", "realtime")),
    ],
)
def test_containers_of_all_kinds(studio, read_numbers, name, codec):
    path = str(studio.numbered(name, fps="25", count=60, codec=codec))
    with Reading(path, ffmpeg.probe(path, native()), native()) as reading:
        assert read_numbers(np.stack(list(reading))) == list(range(60))
        times = [reading.at_s(index) for index in range(61)]
    assert reading.info.pace == Pace(fps=Fraction(25), steady=True)
    assert times == [Fraction(index, 25) for index in range(61)]
    assert (reading.remarks, reading.num_errors) == ("", 0)


# ------------------------------------------------------------------ the rate of a source


@settings(max_examples=80, deadline=None)
@given(
    fps=st.sampled_from(
        ["10", "12", "15", "24000/1001", "24", "25", "30000/1001", "30", "50", "60"]
    ),
    per_second=st.sampled_from([1000, 12800, 90000]),
    count=st.integers(2, 400),
    start=st.integers(-9000, 10**9),
)
def test_a_steady_source_has_the_rate_it_declares(fps, per_second, count, start):
    rate = Fraction(fps)
    ticks = [start + round(n / rate * per_second) for n in range(count)]
    pace = pace_of(ticks, Fraction(1, per_second), rate)
    assert (pace.fps, pace.steady) == (rate, True)


def test_what_is_declared_wrongly_is_measured():
    millis = [round(n * 1001 / 30) for n in range(1000)]
    tick = Fraction(1, 1000)
    assert pace_of(millis, tick, Fraction(30)).fps == Fraction(30000, 1001)
    assert pace_of(millis, tick, Fraction(0)).fps == Fraction(30000, 1001)
    gap = [n * 40 + 5000 * (n > 50) for n in range(200)]
    assert pace_of(gap, tick, Fraction(25)) == pace_of(range(0, 8000, 40), tick, Fraction(25))
    halves = [*range(0, 4000, 40), *range(4000, 24000, 200)]
    pace = pace_of(halves, tick, Fraction(25))
    assert not pace.steady
    assert float(pace.fps) == pytest.approx(199 / 23.8, rel=1e-5)
    assert pace_of([7], tick, Fraction(25)).fps == 25


@settings(max_examples=60, deadline=None)
@given(
    ticks=st.lists(st.integers(-(2**62), 2**62 - 1), max_size=20),
    timebase=st.sampled_from([Fraction(1, 10**9), Fraction(1, 90000), Fraction(1), Fraction(3600)]),
    declared=st.fractions(0, 10**9, max_denominator=10**9),
)
def test_any_nonsense_has_a_rate_that_fits_its_columns(ticks, timebase, declared):
    fps = Contract(frames=2, fps="native", interval=10_000).payload_fps(
        pace_of(ticks, timebase, declared).fps
    )
    assert fps > 0
    assert max(fps.numerator, fps.denominator) < 2**31


@pytest.mark.parametrize(("fps", "trim"), [("16", 4), ("10", 3), ("25", 7), ("60", 15)])
def test_the_trim_is_a_time(fps, trim):
    assert trim_frames(native(), Fraction(fps)) == trim
    assert trim_frames(Prep(), Fraction(16)) == 4


# ------------------------------------------------------------------ the shared real videos


def packet_ticks(path, index):
    exe = imageio_ffmpeg.get_ffmpeg_exe()
    command = [exe, "-loglevel", "error", "-copyts", "-i", str(path), "-map", f"0:{index}",
               "-c", "copy", "-f", "framecrc", "-"]  # fmt: skip
    lines = subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()
    return {int(line.split(",")[2]) for line in lines if not line.startswith("#")}


@pytest.mark.parametrize(
    ("name", "fps"),
    [
        ("bbb_1080p_60fps.mp4", "60"),
        ("mdn_frog.webm", "30"),
        ("shuttle10seconds.1080x608.webm", "30000/1001"),
    ],
)
def test_native_frames_of_real_videos(shared_videos, curate, tmp_path, name, fps):
    prep = native(payload_short_side_px=64)
    found = rows_and_frames(curate(shared_videos / name, tmp_path, prep=prep), tmp_path)
    assert found
    ticks = packet_ticks(shared_videos / name, found[0][0]["stream_index"])
    for row, frames, payload in found:
        rate = Fraction(row["fps_num"], row["fps_den"])
        assert rate == Fraction(fps) / 3
        check_payload(payload, LATTE, fps=rate)
        assert len(frames) == 16
        assert row["start_pts"] in ticks


def test_an_odd_rate_of_a_real_video(shared_videos):
    path = str(shared_videos / "intel_bottle-detection.mp4")
    assert ffmpeg.probe(path, native()).pace == Pace(fps=Fraction(179, 6), steady=True)


@pytest.mark.parametrize("name", ["bbb_480p_30s.mp4", "nasa_13013.mp4", "bbb_1080p_60fps.mp4"])
def test_cuts_of_real_videos_lie_where_they_lie_at_sixteen(shared_videos, name):
    known = {
        "bbb_480p_30s.mp4": [190, 252, 369],
        "bbb_1080p_60fps.mp4": [6],
        "nasa_13013.mp4": [129],
    }
    path = str(shared_videos / name)
    prep = native(payload_short_side_px=64)
    finder, flags = NativeCutFinder(prep), []
    with Reading(path, ffmpeg.probe(path, prep), prep) as reading:
        for count, frame in enumerate(reading):
            flags += finder.look(shrunk(planes.luma(frame)), reading.at_s(count))
        flags += finder.end()
        alone = zip([False, *flags], flags, [*flags[1:], False], strict=False)  # no dissolve
        cuts = [index for index, near in enumerate(alone) if near == (False, True, False)]
        found = [float(reading.at_s(index)) for index in cuts]
    assert found == pytest.approx([slot / 16 for slot in known[name]], abs=1.01 / 16)
