"""Long sources are worked on in parts: the same frames at the same times as in one go."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from ingest import child, ffmpeg
from ingest.clip import Contract, Prep
from ingest.reading import Reading, SeekMissed
from ingest.sources import SourceError, list_sources
from ingest.streams import Part
from ingest.unit import Named, curate_unit, name_source, plan_unit, units_of
from tests.ingest.conftest import KEEP_ALL

COUNT = 600  # 25 s at 24 fps
PART_S = 10
H264 = ("-c:v", "libx264", "-qp", "4", "-preset", "ultrafast", "-pix_fmt", "yuv420p")
LONG_GOP = (*H264, "-g", "250", "-bf", "3")
KINDS = {
    "short.mp4": (*H264, "-g", "12", "-bf", "2"),
    "long.mp4": LONG_GOP,
    "open.mp4": (*H264, "-g", "24", "-bf", "3", "-x264-params", "open-gop=1:bframes=3"),
    "long.mkv": LONG_GOP,
    "open.ts": (*H264, "-g", "24", "-bf", "3", "-x264-params", "open-gop=1:bframes=3"),
    "long.ts": LONG_GOP,
    "vp9.webm": ("-c:v", "libvpx", "-crf", "8", "-b:v", "4M", "-deadline", "realtime"),
    "mpeg2.mpg": ("-c:v", "mpeg2video", "-q:v", "2", "-bf", "2"),
    "mjpeg.avi": ("-c:v", "mjpeg", "-q:v", "2"),
    "one.flv": (*H264, "-g", "60"),
    "fields.ts": (
        "-vf",
        "setfield=tff",
        "-c:v",
        "mpeg2video",
        "-flags",
        "+ilme+ildct",
        "-q:v",
        "2",
    ),
    "coarse.avi": ("-c:v", "mjpeg", "-q:v", "2"),  # no tick of its clock is at ten seconds
    "endless.ts": (*H264, "-g", "9999"),  # one keyframe
}
RATES = {"coarse.avi": Fraction(24000, 1001)}


def parts(path, prep, ends=(PART_S, 2 * PART_S, math.inf)):
    info = ffmpeg.probe(path, prep)
    first_pts, timebase = ffmpeg.first_tick(path, info, prep)
    start_s = 0
    for end_s in ends:
        yield (
            info,
            Part(
                start_s=start_s,
                end_s=end_s,
                first_pts=first_pts,
                timebase=timebase,
                seek_s=max(0.0, start_s - 2.0),
            ),
        )
        start_s = end_s


def read(path, info, prep, part=None):
    try:
        with Reading(path, info, prep, part) as reading:
            frames = []
            for frame in reading:
                if not frames:
                    reading.wait_for_clock()
                frames.append(frame)
            ticks = [reading.tick(index) for index in range(len(frames) + 1)]
            times = [reading.at_s(index) for index in range(len(frames) + 1)]
    except SeekMissed:
        return read(path, info, prep, replace(part, seek_s=0.0))
    return frames, ticks, times


def whole_and_parts(path, prep):
    info = ffmpeg.probe(path, prep)
    whole = read(path, info, prep)
    pieces = [read(path, info, prep, part) for info, part in parts(path, prep)]
    return whole, pieces


@pytest.mark.parametrize("contract", [Contract(), Contract(fps="native")], ids=["16", "native"])
@pytest.mark.parametrize("name", KINDS)
def test_parts_together_are_the_whole(studio, name, contract):
    prep = Prep(contract=contract)
    fps = RATES.get(name, Fraction(24))
    path = str(studio.numbered(f"parts-{name}", fps=str(fps), count=COUNT, codec=KINDS[name]))
    (frames, ticks, times), pieces = whole_and_parts(path, prep)
    rate = fps if contract.native else 16
    ends = [math.ceil(end_s * rate) for end_s in (PART_S, 2 * PART_S, COUNT / fps)]
    assert len(frames) == ends[-1]
    assert [len(piece[0]) for piece in pieces] == [b - a for a, b in pairwise([0, *ends])]
    joined = [frame for piece in pieces for frame in piece[0]]
    assert all(map(np.array_equal, joined, frames))
    assert [t for piece in pieces for t in piece[1][:-1]] == ticks[:-1]
    assert [t for piece in pieces for t in piece[2][:-1]] == times[:-1]
    assert pieces[-1][1][-1] == ticks[-1]


def test_also_with_a_late_start_a_slow_clock_and_uneven_frames(studio):
    plain = studio.numbered("parts-plain.mp4", fps="24", count=COUNT, codec=LONG_GOP)
    late, uneven = studio.folder / "parts-late.mkv", studio.folder / "parts-uneven.mkv"
    studio.run("-i", plain, "-c", "copy", "-output_ts_offset", "7.3", late)
    studio.run("-i", plain, "-vf", "setpts=N/24/TB+0.3*sin(N/9)/TB", "-fps_mode", "vfr", uneven)
    for path in (str(late), str(uneven)):
        for prep in (Prep(), Prep(contract=Contract(fps="native"))):
            whole, pieces = whole_and_parts(path, prep)
            assert [t for piece in pieces for t in piece[1][:-1]] == whole[1][:-1]
            joined = [frame for piece in pieces for frame in piece[0]]
            assert all(map(np.array_equal, joined, whole[0]))


def test_a_decoder_that_begins_behind_the_part_starts_again(studio):
    path = str(studio.numbered("parts-short.mp4", fps="24", count=COUNT, codec=KINDS["short.mp4"]))
    info, part = list(parts(path, Prep()))[1]
    with Reading(path, info, Prep(), replace(part, seek_s=15.0)) as reading:
        next(iter(reading))
        with pytest.raises(SeekMissed):
            reading.wait_for_clock()
    endless = studio.numbered("parts-endless.ts", fps="24", count=COUNT, codec=KINDS["endless.ts"])
    info, part = list(parts(str(endless), Prep()))[1]
    with Reading(str(endless), info, Prep(), part) as reading, pytest.raises(SeekMissed):
        list(reading)  # there is no keyframe to begin with: nothing comes


@pytest.mark.parametrize(("name", "most"), [("long.ts", 400), ("endless.ts", COUNT)])
def test_a_seek_goes_back_no_further_than_it_must(studio, tmp_path, name, most):
    path = studio.numbered(f"parts-{name}", fps="24", count=COUNT, codec=KINDS[name])
    (source,) = list_sources([str(path)])
    whole = curated(tmp_path, [plan_unit(source, prep=PREP)])[0]
    third = units_of(source, Named(sha256=whole[0]["source_sha256"], num_parts=3), prep=PREP)[2]
    rows = curated(tmp_path, [third])[0]
    assert rows[0]["frames_decoded"] <= most
    assert [row["phash"] for row in rows[1:]] == [row["phash"] for row in whole[-2:]]


def test_the_way_to_a_part_is_no_stall_while_the_log_goes_on(studio, monkeypatch):
    path = str(studio.numbered("parts-short.mp4", fps="24", count=COUNT, codec=KINDS["short.mp4"]))
    info, part = list(parts(path, Prep()))[1]
    slow = (
        "for n in {1..9}; do echo '[info] on the way' >&2; sleep 0.1; done; head -c 36864 /dev/zero"
    )
    monkeypatch.setattr(ffmpeg, "decode_command", lambda *_: ["bash", "-c", f"{slow}; sleep 9"])
    for given, frames in ((part, 1), (None, 0)):  # after its first frame it is one
        seen = []
        with (
            Reading(path, info, Prep(stall_timeout_s=0.4), given) as reading,
            pytest.raises(SourceError, match="Stalled"),
        ):
            seen.extend(reading)
        assert len(seen) == frames


@pytest.fixture(scope="module")
def long_file(studio):
    """25 s of noise: large enough to be cut, at ten seconds a part."""
    path = studio.folder / "parts-noise.mkv"
    noise = "testsrc2=s=320x240:r=24:d=25,noise=alls=40:allf=t"
    studio.run("-f", "lavfi", "-i", noise, *H264, "-g", "48", path)
    return path


PREP = Prep(max_unit_s=PART_S, contract=Contract(frames=16, fps=8), payload_short_side_px=64)


def curated(root, units):
    done = [curate_unit(unit, prep=PREP, keep=KEEP_ALL, root=root) for unit in units]
    return [result.rows.to_pylist() for result in done]


def test_a_long_source_is_some_units_of_work(long_file, tmp_path):
    (source,) = list_sources([str(long_file)])
    named = name_source(source, prep=PREP)
    assert named.num_parts == 2  # ten seconds, and fifteen
    assert name_source(source, prep=Prep()).num_parts == 1
    units = units_of(source, named, prep=PREP)
    assert len({unit.unit_id for unit in units}) == 2
    first, second = curated(tmp_path, units)
    assert [row["start_s"] for row in first[1:]] == [0, 2, 4, 6, 8]
    assert [row["start_s"] for row in second[1:]] == [10, 12, 14, 16, 18, 20, 22]
    told = [
        (r["unit_index"], r["num_units"], r["start_s"], r["end_s"]) for r in (first[0], second[0])
    ]
    assert told == [(0, 2, 0, 10), (1, 2, 10, 25)]
    assert len({row["id"] for row in first[1:] + second[1:]}) == 12
    ticks = [(row["start_pts"], row["end_pts"]) for row in first[1:] + second[1:]]
    assert all(a[1] == b[0] for a, b in pairwise(ticks))
    assert Fraction(ticks[-1][1], first[0]["timebase_den"]) == 24
    (_, *whole) = curated(tmp_path / "whole", [plan_unit(source, prep=PREP)])[0]
    same = {*whole[0]} - {"unit_id", "shard", "offset"}
    assert [{name: row[name] for name in same} for row in first[1:] + second[1:]] == [
        {name: row[name] for name in same} for row in whole
    ]


def test_a_header_that_promises_too_much(long_file, studio, tmp_path):
    """The file ends in the middle, and its header still says 25 s."""
    cut = studio.folder / "parts-cut.mkv"
    cut.write_bytes(long_file.read_bytes()[: long_file.stat().st_size * 9 // 25])
    (source,) = list_sources([str(cut)])
    named = name_source(source, prep=PREP)
    assert named.num_parts == 2
    first, second = curated(tmp_path, units_of(source, named, prep=PREP))
    assert first[0]["fate"] == "kept"
    assert (second[0]["fate"], second[0]["rule"]) == ("rejected", "past_end")


def test_a_small_file_that_claims_to_be_endless_is_one_unit(studio):
    path = studio.numbered("parts-tiny.mp4", fps="24", count=24)
    (source,) = list_sources([str(path)])
    assert name_source(replace(source, bytes=10**5), prep=PREP).num_parts == 1


def test_a_busy_machine_does_not_decide_how_many_parts_there_are(long_file, tmp_path, monkeypatch):
    """Else the next run would find other units of work, and the same clips again."""
    (source,) = list_sources([str(long_file)])
    slow = tmp_path / "slow-ffmpeg"
    slow.write_text(f'#!/bin/sh\nsleep 5\nexec "{child.executable()}" "$@"\n')
    slow.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr(child, "executable", lambda: str(slow))
        with pytest.raises(SourceError, match="Timeout"):  # the executor tries again
            name_source(source, prep=replace(PREP, decode_timeout_s=0.1))
    unnamed = Named(sha256="", num_parts=1)  # and when it has given up
    (unit,) = units_of(source, unnamed, prep=PREP)
    ((row,),) = curated(tmp_path, [unit])
    assert (row["fate"], row["error_class"]) == ("failed", "Unnamed")
    assert name_source(source, prep=PREP).num_parts == 2


def test_what_is_no_video_is_one_part_at_once(tmp_path):
    path = tmp_path / "noise.mp4"
    path.write_bytes(bytes(range(256)) * 1000)
    (source,) = list_sources([str(path)])
    assert name_source(source, prep=PREP).num_parts == 1
