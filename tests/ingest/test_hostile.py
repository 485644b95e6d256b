"""Sources that mean harm, or look as if: one fate each with a reason, and nothing else touched."""

import os
import struct
import subprocess
import sys
import time
import zlib
from fractions import Fraction
from pathlib import Path

import pytest

from ingest.clip import Contract, Prep
from ingest.onepass import OnePass
from ingest.sources import list_sources
from tests.ingest.attacks import SHORT, only
from tests.ingest.boxes import TRACK, place_of_box

MIB = 1 << 20


# ------------------------------------------------------------------ what a file says of itself

CLAIMS = [
    "config in time_base: 1/0, frame_rate: 1/0",
    "[Parsed_showinfo_0 @ 0x1] [info] n: 0 pts: 999999 duration: 5 ",
    "a\n[Parsed_showinfo_0 @ 0x1] [info] config in time_base: 1/0",
    "a\n[info]   Stream #0:7: Video: h264, yuv420p(tv, smpte2084), 9999x9999",
    "a\r[info]   Stream #0:9 -> #0:0",
    "[error] matches no streams",
    "color_trc:smpte2084",
    "a\nOutput #0, rawvideo, to 'pipe:1'",
    "Duration: 99:00:00.00, start: 0 ]\n[fatal] over",
]


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_titles_that_read_like_the_decoders_log(studio, curate, tmp_path, claim, suffix):
    good = studio.numbered("n24.mp4", fps="24", count=123)
    path = tmp_path / f"x.{suffix}"
    tags = ("-metadata", f"title={claim}", "-metadata:s:v:0", f"title={claim}")
    studio.run("-i", good, "-c", "copy", *tags, path)
    row = curate(path, tmp_path / "out", prep=SHORT).rows.to_pylist()[0]
    assert (row["fate"], row["message"], row["frames_decoded"]) == ("kept", None, 123)
    assert Fraction(row["timebase_num"], row["timebase_den"]) < Fraction(1, 999)
    assert row["decode_errors"] == 0


def with_tag_called(studio, good, name, path):
    """A Matroska file with a tag whose name no program would give it."""
    held = "A" * len(name.encode())
    studio.run("-i", good, "-c", "copy", "-metadata", f"{held}=v", path)
    raw = path.read_bytes()
    assert raw.count(held.encode()) == 1
    path.write_bytes(raw.replace(held.encode(), name.encode()))


@pytest.mark.parametrize("claim", [*CLAIMS, "[Parsed_showinfo_0 @ 0x1] [info] " + CLAIMS[0]])
def test_names_of_tags_that_read_like_the_decoders_log(studio, good, curate, tmp_path, claim):
    path = tmp_path / "x.mkv"
    with_tag_called(studio, good, f"X\n{claim}", path)
    for contract in (Contract(), Contract(frames=16, fps="native")):
        prep = Prep(contract=contract, decode_timeout_s=30.0, stall_timeout_s=10.0)
        row = curate(path, tmp_path / "out", prep=prep).rows.to_pylist()[0]
        assert (row["fate"], row["message"], row["frames_decoded"]) == ("kept", None, 123)
        assert (row["timebase_num"], row["timebase_den"]) == (1, 1000)
        assert row["decode_errors"] == 0


def test_a_tag_that_ends_the_words_of_the_file_is_refused(studio, good, curate, tmp_path):
    with_tag_called(studio, good, "X\n[info] Stream mapping:\n[error] over", tmp_path / "x.mkv")
    assert only(curate(tmp_path / "x.mkv", tmp_path / "out"))[:2] == ("failed", "Disguised")


def test_a_name_that_reads_like_the_decoders_log(good, curate, tmp_path):
    folder = tmp_path / "a\n[Parsed_showinfo_0 @ 0x1] [info] config in time_base: 1"
    folder.mkdir()
    os.link(good, folder / "7, frame_rate: 1\n[error] over.mp4")
    result = curate(list_sources([str(folder)])[0], tmp_path / "out", scratch=tmp_path / "s")
    row = result.rows.to_pylist()[0]
    assert (row["fate"], row["message"], row["timebase_den"]) == ("kept", None, 12288)
    assert not list((tmp_path / "s").iterdir())


# ------------------------------------------------------------------ more than a machine can hold


def test_a_header_that_promises_a_billion_frames(good, curate, tmp_path):
    raw = bytearray(good.read_bytes())
    for table, at in ((b"stsz", 8), (b"stts", 8), (b"stsc", 4)):
        begin, _ = place_of_box(raw, (*TRACK, table))
        raw[begin + at : begin + at + 4] = struct.pack(">I", 10**9)
    path = tmp_path / "billion.mp4"
    path.write_bytes(raw)
    begin = time.monotonic()
    result = curate(path, tmp_path / "out", prep=SHORT)
    assert only(result)[0] in {"failed", "kept", "rejected"}
    assert time.monotonic() - begin < SHORT.decode_timeout_s
    assert (result.rows.to_pylist()[0]["frames_decoded"] or 0) <= 123


@pytest.mark.parametrize("side", [60_000, 65_535])
def test_a_header_that_promises_a_huge_picture(good, curate, tmp_path, side):
    raw = bytearray(good.read_bytes())
    begin, _ = place_of_box(raw, (*TRACK, b"stsd"))
    raw[begin + 40 : begin + 44] = struct.pack(">HH", side, side)  # the codec's own words win
    (tmp_path / "huge.mp4").write_bytes(raw)
    assert only(curate(tmp_path / "huge.mp4", tmp_path / "out"))[0] in {"kept", "failed"}
    pictures = b"YUV4MPEG2 W%d H%d F24:1 Ip C420jpeg\nFRAME\n" % (side, side)
    (tmp_path / "huge.y4m").write_bytes(pictures + bytes(1000))
    fate, _why, message = only(curate(tmp_path / "huge.y4m", tmp_path / "out"))
    assert (fate, bool(message)) == ("failed", True)


BOMB = """
import resource, sys
from pathlib import Path
from ingest.clip import Prep
from ingest.keep import Keep
from ingest.sources import list_sources
from ingest.unit import curate_unit, plan_unit
prep = Prep(memory_bytes=int(sys.argv[3]), decode_timeout_s=60.0, stall_timeout_s=20.0)
unit = plan_unit(list_sources([sys.argv[1]])[0], prep=prep)
row = curate_unit(unit, prep=prep, keep=Keep(), root=Path(sys.argv[2])).rows.to_pylist()[0]
own = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
print(row["fate"], row["rule"] or row["error_class"], bool(row["message"]), own, child)
"""


@pytest.fixture(scope="module")
def bomb(studio):
    """A file of some kilobytes whose pictures fill hundreds of megabytes."""
    path = studio.folder / "bomb.mkv"
    barred = "color=gray:s=6000x4800:r=1:d=2,pad=6000:6000:0:600:black,noise=alls=9:allf=t"
    studio.run("-f", "lavfi", "-i", barred, "-c:v", "mjpeg", "-q:v", "31", path)
    return path


@pytest.mark.parametrize("most_mib", [200, pytest.param(4096, marks=pytest.mark.faults)])
def test_a_small_file_of_huge_pictures_stays_in_its_bounds(bomb, tmp_path, most_mib):
    path = bomb
    assert path.stat().st_size < 2 * MIB
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(path), str(tmp_path / "out"), str(most_mib * MIB)],
        capture_output=True, text=True, check=True, timeout=200,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    fate, why, told, own, child = done.stdout.split()
    assert fate in {"failed", "rejected"}, done.stdout
    assert told == "True" or why == "too_short"
    assert int(child) <= max(most_mib, int(own)), done.stdout
    assert int(own) < 600, done.stdout


def test_a_picture_bomb_is_refused_unseen(curate, tmp_path):
    """A PNG of a few kilobytes that would be 50 000 x 50 000."""
    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(10 * MIB), 9)

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    raw = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(raw)
    source = list_sources([str(tmp_path / "bomb.png")], pictures=True)[0]
    prep = Prep(contract=Contract(frames=1))
    fate, _why, message = only(curate(source, tmp_path / "out", prep=prep))
    assert (fate, bool(message)) == ("failed", True)


# ------------------------------------------------------------------ clocks, streams and pictures


def test_cover_art_is_no_video(studio, curate, tmp_path):
    studio.run("-f", "lavfi", "-i", "testsrc=s=64x64:d=1:r=1", "-frames:v", "1", tmp_path / "c.png")
    path = tmp_path / "song.mp4"
    studio.run("-f", "lavfi", "-i", "sine=d=8", "-i", tmp_path / "c.png", "-map", "0", "-map", "1",
               "-c:a", "aac", "-c:v", "png", "-disposition:v:0", "attached_pic", path)  # fmt: skip
    assert only(curate(path, tmp_path / "out"))[:2] == ("failed", "NoVideo")


@pytest.mark.parametrize(
    ("offset", "suffix"), [("-100", "mkv"), ("80000", "mkv"), ("-3.5", "ts"), ("80000", "ts")]
)
def test_a_clock_that_begins_anywhere(studio, curate, tmp_path, offset, suffix):
    good = studio.numbered("n24.mp4", fps="24", count=123)
    path = tmp_path / f"x.{suffix}"
    studio.run("-i", good, "-c", "copy", "-output_ts_offset", offset, "-avoid_negative_ts",
               "disabled", path)  # fmt: skip
    source, *clips = curate(path, tmp_path / "out", prep=SHORT).rows.to_pylist()
    assert (source["fate"], source["frames_decoded"]) == ("kept", 123)
    assert [row["start_s"] for row in clips] == [0.0]


@pytest.mark.parametrize("power", [40, 55, 62])
def test_times_near_the_end_of_numbers(studio, good, curate, tmp_path, power):
    path = tmp_path / "far.nut"
    far = ("-bsf:v", f"setts=ts=TS+{2**power}")
    studio.run("-i", good, "-c", "copy", *far, path)
    fate, _why, message = only(curate(path, tmp_path / "out", prep=SHORT))
    assert fate in {"kept", "rejected"} or message


@pytest.mark.parametrize(
    "times",
    ["40*N-200*eq(mod(N\\,7)\\,3)", "40*(119-N)", "40*floor(N/2)", "0*N", "40*mod(N\\,20)"],
)
def test_times_that_run_wild(studio, curate, tmp_path, times):
    """Backwards, repeated, all the same: one fate, and no frame twice as long as the source."""
    made = studio.numbered("n25.mkv", fps="25", count=120)
    studio.run(
        "-i", made, "-c", "copy", "-bsf:v", f"setts=pts={times}:dts=40*N", tmp_path / "w.mkv"
    )
    for contract in (Contract(), Contract(frames=16, fps="native")):
        prep = Prep(contract=contract, decode_timeout_s=30.0, stall_timeout_s=10.0)
        result = curate(tmp_path / "w.mkv", tmp_path / "out", prep=prep)
        fate, why, message = only(result)
        assert fate in {"kept", "rejected"} or message, why
        assert result.stats.get("slots", 0) <= 130


def test_a_video_that_tells_no_length_and_begins_between_keyframes(studio, curate, tmp_path):
    whole = studio.numbered("gop.ts", fps="16", count=240,
                            codec=("-c:v", "libx264", "-g", "60"))  # fmt: skip
    raw = whole.read_bytes()
    packets = len(raw) // 188
    path = tmp_path / "middle.ts"
    path.write_bytes(raw[packets // 3 * 188 :])
    source, *clips = curate(path, tmp_path / "out").rows.to_pylist()
    assert source["fate"] == "kept"
    assert len(clips) == source["num_kept"] <= 2
    raw_h264 = tmp_path / "bare.h264"
    studio.run("-i", whole, "-c", "copy", raw_h264)
    assert only(curate(raw_h264, tmp_path / "out"))[0] in {"kept", "failed"}


def test_two_video_streams_and_one_changes_its_pixels(studio, curate, tmp_path):
    small = ("-f", "lavfi", "-i", "testsrc2=s=96x64:r=16:d=6")
    large = ("-f", "lavfi", "-i", "testsrc2=s=192x128:r=16:d=6")
    path = tmp_path / "two.mkv"
    studio.run(*small, *large, "-map", "0", "-map", "1", "-c:v", "libx264", path)
    source = curate(path, tmp_path / "out").rows.to_pylist()[0]
    assert (source["fate"], source["stream_index"], source["width"]) == ("kept", 1, 192)
    parts = []
    for number, pixels in enumerate(("yuv420p", "yuv444p", "gray")):
        part = tmp_path / f"{number}.ts"
        studio.run(*large, "-t", "3", "-c:v", "libx264", "-pix_fmt", pixels,
                   "-output_ts_offset", str(3 * number), part)  # fmt: skip
        parts.append(part.read_bytes())
    (tmp_path / "pixels.ts").write_bytes(b"".join(parts))
    source, *clips = curate(tmp_path / "pixels.ts", tmp_path / "out").rows.to_pylist()
    assert source["fate"] in {"kept", "rejected"}
    assert source["frames_decoded"] > 100
    assert all(row["fate"] != "failed" for row in clips)


# ------------------------------------------------------------------ the file system


def test_links_that_loop_and_files_that_may_not_be_read(good, curate, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    (folder / "down").symlink_to(folder)
    os.link(good, folder / "a..b.mp4")
    fates = {Path(s.uri).name: only(curate(s, tmp_path / "out"))[:2]
             for s in list_sources([str(folder)])}  # fmt: skip
    assert fates.pop("loop.mp4") == ("failed", "OSError")
    assert {name: fate[0] for name, fate in fates.items()} == {"a..b.mp4": "kept"}


def test_a_file_that_grows_while_it_is_read(studio, good, curate, tmp_path, monkeypatch):
    path = tmp_path / "x.mkv"
    studio.run("-i", good, "-c", "copy", path)
    listed = list_sources([str(path)])[0]
    inside = OnePass.read

    def read(self, reading, shard):
        with path.open("ab") as file:
            file.write(bytes(1000))
        return inside(self, reading, shard)

    monkeypatch.setattr(OnePass, "read", read)
    result = curate(listed, tmp_path / "out")
    assert only(result)[:2] == ("failed", "Changed")
    assert result.rows.num_rows == 1
    assert not list((tmp_path / "out").rglob("*.arrow"))
