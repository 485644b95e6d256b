from bisect import bisect_right
from fractions import Fraction

import numpy as np
import pytest

from ingest import ffmpeg
from ingest.clip import Prep
from ingest.reading import Reading
from ingest.sources import SourceError

RATES = ("24", "25", "30", "24000/1001", "60", "10", "50", "15")
VFR_MS = [40 * n + (7 * n * n) % 30 for n in range(150)]
VFR_FILTER = "settb=1/1000,setpts='40*N+mod(7*N*N,30)'"


def read(path, prep=None):
    prep = prep or Prep()
    with Reading(str(path), ffmpeg.probe(str(path), prep), prep) as reading:
        frames = list(reading)
        return frames, reading


def on_screen(pts_s: list[Fraction], end_s: Fraction) -> list[int]:
    """The law: slot k shows the last frame with pts <= k/16, for all k/16 before the end."""
    start = pts_s[0]
    slots = -((-(end_s - start) * 16) // 1)
    relative = [pts - start for pts in pts_s]
    return [bisect_right(relative, Fraction(k, 16)) - 1 for k in range(int(slots))]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_slot_k_shows_the_frame_on_screen_at_k_sixteenths(studio, read_numbers, rate, suffix):
    fps = Fraction(rate)
    count = min(144, int(fps * 5) + 3)
    path = studio.numbered(f"n{rate.replace('/', '_')}.{suffix}", fps=rate, count=count)
    frames, reading = read(path)
    pts = [n / fps for n in range(count)]
    if suffix == "mkv":  # Matroska rounds times to milliseconds: the law holds for those
        pts = [Fraction(int(1000 * t + Fraction(1, 2)), 1000) for t in pts]
    wanted = on_screen(pts, count / fps)
    got = read_numbers(np.stack(frames))
    assert got == wanted[: len(got)]
    assert abs(len(got) - len(wanted)) <= (suffix == "mkv")
    assert reading.frames_decoded == count


def test_the_law_tells_a_wrong_frame(studio, read_numbers):
    frames, _ = read(studio.numbered("n24.mp4", fps="24", count=123))
    wanted = on_screen([Fraction(n, 24) for n in range(123)], Fraction(123, 24))
    numbers = read_numbers(np.stack(frames))
    assert numbers == wanted
    assert numbers[1:] != wanted[:-1]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate(studio, read_numbers, suffix):
    timing = ("-vf", VFR_FILTER, "-fps_mode", "passthrough", "-enc_time_base", "1/1000")
    if suffix == "mp4":
        timing = (*timing, "-video_track_timescale", "1000")
    path = studio.numbered(f"vfr.{suffix}", fps="25", count=150, timing=timing)
    frames, reading = read(path)
    pts = [Fraction(ms, 1000) for ms in VFR_MS]
    wanted = on_screen(pts, pts[-1])
    assert read_numbers(np.stack(frames))[: len(wanted)] == wanted
    assert reading.timebase == Fraction(1, 1000)


def test_start_offset_and_edit_list(studio, read_numbers):
    whole = studio.numbered("whole.mp4", fps="24", count=240, codec=("-c:v", "libx264", "-g", "60"))
    cut = studio.folder / "edit_list.mp4"
    studio.run("-ss", "3.3", "-i", whole, "-c", "copy", cut)
    late = studio.folder / "late.ts"
    studio.run("-i", whole, "-c", "copy", "-muxdelay", "2", late)
    first = read_numbers(np.stack(read(cut)[0][:1]))[0]
    assert first in (79, 80)  # not the hidden frames before the edit begins at frame 60
    assert read_numbers(np.stack(read(cut)[0]))[16] == first + 24
    frames, reading = read(late)
    assert reading.first_pts > 0
    assert read_numbers(np.stack(frames))[:16] == [n * 24 // 16 for n in range(16)]


def test_ticks_are_exact_and_absolute(studio):
    _, reading = read(studio.numbered("n24.mp4", fps="24", count=123))
    assert reading.timebase == Fraction(1, 12288)
    assert (reading.tick(0), reading.tick(16), reading.tick(80)) == (0, 12288, 5 * 12288)


def test_size_change_in_the_middle(studio, read_numbers):
    small = studio.folder / "small.ts"
    large = studio.numbered("part.ts", fps="16", count=40)
    studio.run("-i", large, "-vf", "scale=96:64", "-c:v", "libx264", "-qp", "4", small)
    both = studio.folder / "both.ts"
    both.write_bytes(large.read_bytes())
    second = studio.folder / "second.ts"
    studio.run("-i", small, "-c", "copy", "-output_ts_offset", "2.5", second)
    with both.open("ab") as file:
        file.write(second.read_bytes())
    frames, _ = read(both)
    assert {frame.shape for frame in frames} == {(192, 192)}  # 128 lines of Y, 64 of U and V
    numbers = read_numbers(np.stack(frames))
    assert numbers[:40] == list(range(40))
    assert numbers[42:70] == list(range(numbers[42], numbers[42] + 28))


def test_a_stalled_decoder_is_ended(studio, monkeypatch):
    path = str(studio.numbered("n24.mp4", fps="24", count=123))
    info = ffmpeg.probe(path, Prep())
    monkeypatch.setattr(ffmpeg, "decode_command", lambda *_: ["sleep", "30"])
    with (
        Reading(path, info, Prep(stall_timeout_s=0.2)) as reading,
        pytest.raises(SourceError, match="Stalled"),
    ):
        list(reading)
    with (
        Reading(path, info, Prep(decode_timeout_s=0.2)) as reading,
        pytest.raises(SourceError, match="Timeout"),
    ):
        list(reading)


def test_a_huge_gap_in_time_is_a_failure_and_not_a_million_frames(studio):
    timing = ("-vf", "settb=1/1000,setpts='40*N+gte(N,40)*9000000'", "-fps_mode", "passthrough")
    path = studio.numbered(
        "gap.mkv", fps="25", count=60, timing=(*timing, "-enc_time_base", "1/1000")
    )
    with pytest.raises(SourceError, match=r"TimestampGap.*9000 s"):
        read(path)


def test_leaving_early_ends_the_child(studio):
    path = str(studio.numbered("n60.mp4", fps="60", count=144))
    with Reading(path, ffmpeg.probe(path, Prep()), Prep()) as reading:
        next(iter(reading))
        child = reading._child
    assert child.returncode is not None
