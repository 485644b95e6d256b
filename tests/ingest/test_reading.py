import io
import random
from bisect import bisect_right
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from ingest import ffmpeg, planes
from ingest.bars import Crop
from ingest.clip import Contract, Prep
from ingest.decoder_log import DecoderLog
from ingest.reading import Reading
from ingest.sources import SourceError
from ingest.streams import VideoInfo

RATES = ("24", "25", "30", "24000/1001", "60", "10", "50", "15")
FIELDS = (
    "-vf",
    "setparams=field_mode=tff:colorspace=bt709",
    "-c:v",
    "mpeg2video",
    "-flags",
    "+ilme+ildct",
    "-q:v",
    "2",
)
VFR_MS = [40 * n + (7 * n * n) % 30 for n in range(150)]
VFR_FILTER = "settb=1/1000,setpts='40*N+mod(7*N*N,30)'"


def read(path, prep=None, info=None):
    prep = prep or Prep()
    with Reading(str(path), info or ffmpeg.probe(str(path), prep), prep) as reading:
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


def test_a_smaller_picture_in_the_middle_is_cropped_like_the_others(studio):
    """Past the end of a smaller frame lies whatever was in that memory before."""
    path = studio.folder / "shrinks.ts"
    parts = []
    for number, side in enumerate(("192x128", "96x64")):
        part, late = studio.folder / f"shrinks-{number}.ts", str(2 * number)
        source = ("-f", "lavfi", "-i", f"testsrc2=s={side}:r=16:d=2", "-pix_fmt", "yuv420p")
        studio.run(*source, "-c:v", "libx264", "-qp", "4", "-output_ts_offset", late, part)
        parts.append(part.read_bytes())
    path.write_bytes(b"".join(parts))
    plain = ffmpeg.probe(str(path), Prep())
    for fields in (False, True):
        inside = Crop(left=16, top=18, width=160, height=90)
        info = replace(plain, crop=inside, interlaced=fields)
        found = [read(path, info=info)[0] for _ in range(3)]
        assert all(np.array_equal(run, found[0]) for run in found)
        wanted = lumas(read(path, info=plain)[0])[:, 18:108, 16:176].astype(int)
        assert len(wanted) == len(found[0]) > 60
        assert np.abs(lumas(found[0]) - wanted).mean(axis=(1, 2)).max() < 2


def lumas(frames):
    return np.stack([planes.luma(frame) for frame in frames])


def test_fields_are_woven_before_bars_are_cut(studio):
    """A crop that begins between two lines of colour would give them to the wrong fields."""
    path = str(studio.numbered("fields.mkv", fps="24", count=48, codec=FIELDS))
    whole = ffmpeg.probe(path, Prep())
    assert whole.interlaced
    info = replace(whole, crop=Crop(left=0, top=26, width=192, height=76))
    cut, uncut = (np.stack(read(path, info=one)[0]).astype(int) for one in (info, whole))
    luma, chroma = cut[:, :76], cut[:, 76:].reshape(-1, 2, 38, 96)
    assert np.abs(luma - uncut[:, 26:102]).max() <= 1
    assert np.abs(chroma - uncut[:, 128:].reshape(-1, 2, 64, 96)[:, :, 13:51]).max() <= 1


def damaged(path):
    raw, draw = bytearray(path.read_bytes()), random.Random(3)
    for _ in range(300):
        raw[draw.randrange(5000, len(raw))] ^= 1 << draw.randrange(8)
    return raw


def test_a_damaged_file_is_told_of_in_the_same_words_each_time(studio, curate, tmp_path):
    """The decoder's words may stand in the middle of the filter's, as the two run side by side."""
    made = studio.numbered("words.mkv", fps="25", count=150, codec=("-c:v", "libx264", "-g", "25"))
    path = tmp_path / "damaged.mkv"
    path.write_bytes(damaged(made))
    rows = [curate(path, tmp_path / str(n)).rows.to_pylist()[0] for n in range(8)]
    assert rows[0]["decode_errors"] > 20
    assert "decode errors, most often" in rows[0]["message"]
    assert all(row == rows[0] for row in rows)


def test_a_lost_line_of_the_log_shifts_no_time():
    shown = (
        "[Parsed_showinfo_1 @ 0x1] [info] n: {0} pts: {0} pts_time:0 duration: 1 fmt:x type:I \n"
    )
    lines = "[info] Stream mapping:\n" + "".join(map(shown.format, (0, 1, 3)))
    native = Prep(contract=Contract(fps="native"))
    info = VideoInfo(stream_index=0, width=2, height=2, pixel_aspect=Fraction(1), matrix="",
                     hdr=False, interlaced=False)  # fmt: skip
    log = DecoderLog(io.BytesIO(lines.encode()), None, info, native, None)
    log.run()
    assert [log.times.get() for _ in range(4)] == [(0, 1), (1, 1), None, (3, 1)]


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
