import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ingest import ffmpeg
from ingest.balance import balance
from ingest.clip import Contract, Prep, clip_id
from ingest.decode import check_payload, payload_frames
from ingest.keep import Keep
from ingest.likeness import Duplicates, decision
from ingest.schema import SCORES
from ingest.shards import read_payload
from ingest.sources import list_sources
from ingest.store import Dataset, empty_captions
from ingest.unit import (
    Named,
    curate_unit,
    duplicate_rows,
    failed_rows,
    plan_unit,
    units_of,
    with_attempts,
)
from tests.conftest import KEEP_ALL

CHECKOUT = Path(__file__).parents[2]
CUT = 100


@pytest.fixture(scope="module")
def two_shots(studio):
    return studio.numbered("two_shots.mp4", fps="24", count=450, cut_at=(150,))


@pytest.fixture(scope="module")
def curated_two(two_shots, curate, tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    return curate(two_shots, root), root


def payloads(result, root):
    for row in result.rows.to_pylist():
        if row["fate"] == "kept" and row["kind"] == "clip":
            place = row["offset"], row["length"], row["crc32"]
            yield row, bytes(read_payload(root, row["shard"], *place, clip_id=row["id"]))


def test_clips_hold_the_right_frames_of_the_source(curated_two, read_numbers):
    """The law end to end: frame k of a clip shows the source frame at start + k/16."""
    result, root = curated_two
    found = list(payloads(result, root))
    assert [row["start_s"] for row, _ in found] == [0.0, 6.5, 11.5]
    for row, payload in found:
        start = Fraction(row["start_s"])
        wanted = [int((start + Fraction(k, 16)) * 24) for k in range(80)]
        assert read_numbers(payload_frames(payload)) == wanted
        assert (row["start_pts"], row["end_pts"]) == (start * 12288, (start + 5) * 12288)
        assert row["shot_index"] == (row["start_s"] > 0)


def test_rows_say_all_and_balance(curated_two, tmp_path):
    result, _ = curated_two
    source, *clips = result.rows.to_pylist()
    assert (source["kind"], source["fate"]) == ("source", "kept")
    assert (source["num_candidates"], source["num_kept"], source["frames_decoded"]) == (3, 3, 450)
    for row in clips:
        assert all(row[name] is not None for name in SCORES)
        assert row["id"] == clip_id(
            source_sha256=source["source_sha256"],
            stream_index=0,
            start_pts=row["start_pts"],
            end_pts=row["end_pts"],
            timebase=Fraction(1, 12288),
            prep_digest=Prep().digest(),
        )
    dataset = Dataset.create(tmp_path / "dataset", Prep().contract, Prep())
    dataset.commit(result.rows, empty_captions(), app_id="run", batch=1)
    assert dataset.balance({result.unit_id}).ok
    assert (result.stats["kept"], result.stats["source_s"]) == (3, 18.75)


def test_the_same_unit_twice_gives_the_same_bytes(curated_two, two_shots, curate, tmp_path):
    result, root = curated_two
    again = curate(two_shots, tmp_path)
    assert again.rows.equals(result.rows)
    names = [sorted(p.name for p in folder.rglob("*.arrow")) for folder in (root, tmp_path)]
    assert names[0] == names[1]
    assert len(names[0]) == 1


def test_thresholds_reject_with_their_number(two_shots, curate, tmp_path):
    result = curate(two_shots, tmp_path, keep=Keep(min_luma=250.0))
    source, *clips = result.rows.to_pylist()
    assert (source["fate"], source["rule"]) == ("rejected", "no_clip_kept")
    assert {row["rule"] for row in clips} == {"min_luma"}
    assert all(row["score"] == row["luma_mean"] < row["threshold"] == 250 for row in clips)
    assert not list(tmp_path.rglob("*.arrow"))


def test_slow_sources_are_rejected_for_their_duplicates(studio, curate, tmp_path):
    path = studio.numbered("n10.mp4", fps="10", count=53)
    result = curate(path, tmp_path, keep=Keep(min_motion=None))
    row = result.rows.to_pylist()[1]
    assert row["rule"] == "max_duplicate_frame_share"
    assert row["score"] == pytest.approx(30 / 79, abs=0.02)


def fate_of(result):
    assert result.rows.num_rows == 1
    row = result.rows.to_pylist()[0]
    return row["fate"], row["rule"] or row["error_class"], row["message"]


@pytest.fixture(scope="module")
def oddities(studio, tmp_path_factory):
    """One folder of everything that must not hurt, and the fate that each must have."""
    folder = tmp_path_factory.mktemp("odd")
    good = studio.numbered("n24.mp4", fps="24", count=123)
    raw = good.read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is not a video\n" * 50)
    (folder / "noise.mkv").write_bytes(np.random.default_rng(0).bytes(50_000))
    studio.run("-f", "lavfi", "-i", "sine=d=2", folder / "audio.mp4")
    (folder / "headless.mp4").write_bytes(raw[: len(raw) // 2])  # its index was at the end
    (folder / "folder.mp4").mkdir()
    (folder / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{good}'\n")
    (folder / "list.ts").write_text(f"#EXTM3U\n#EXTINF:5,\nfile://{good}\n#EXT-X-ENDLIST\n")
    (folder / "dangling.mp4").symlink_to(folder / "absent")
    os.mkfifo(folder / "fifo.mp4")
    still = folder / "still.mp4"
    studio.run("-i", good, "-frames:v", "1", "-c:v", "libx264", still)
    hdr = "setparams=color_primaries=bt2020:colorspace=bt2020nc:color_trc=smpte2084"
    studio.run("-i", good, "-vf", hdr, "-c:v", "libx265", "-x265-params", "log-level=error",
               "-pix_fmt", "yuv420p10le", folder / "hdr.mp4")  # fmt: skip
    return folder, {
        "empty.mp4": ("failed", "EmptyFile"),
        "text.mp4": ("failed", "NotAVideo"),
        "noise.mkv": ("failed", "NotAVideo"),
        "audio.mp4": ("failed", "NoVideo"),
        "headless.mp4": ("failed", "NotAVideo"),
        "folder.mp4": ("failed", "IsADirectoryError"),
        "list.mp4": ("failed", "NotAVideo"),
        "list.ts": ("failed", "NotAVideo"),
        "dangling.mp4": ("failed", "FileNotFoundError"),
        "fifo.mp4": ("failed", "NotAFile"),
        "still.mp4": ("rejected", "too_short"),
        "hdr.mp4": ("rejected", "hdr"),
    }


def test_every_oddity_has_one_fate_with_a_reason(oddities, curate, tmp_path):
    folder, wanted = oddities
    fates = {}
    for source in list_sources([str(folder)]):
        fate, reason, message = fate_of(curate(source, tmp_path))
        fates[Path(source.uri).name] = (fate, reason)
        assert fate == "rejected" or message
    assert fates == wanted
    assert not list(tmp_path.rglob("*.arrow"))


@pytest.mark.parametrize(
    "name",
    [b"with space.mp4", b"q'uo\"te.mp4", b"new\nline.mp4", b"-i.mp4", b"\xff\xfe.mp4",
     b"%03d[x].mp4", b"http:x.mp4", "snow \u2603.mp4".encode()],
)  # fmt: skip
def test_odd_names_are_only_names(studio, curate, tmp_path, name):
    good = studio.numbered("n24.mp4", fps="24", count=123)
    folder = tmp_path / "videos"
    folder.mkdir()
    os.link(good, os.fsencode(folder) + b"/" + name)
    result = curate(list_sources([str(folder)])[0], tmp_path / "out")
    assert result.rows.to_pylist()[0]["fate"] == "kept"
    assert len(list(payloads(result, tmp_path / "out"))) == 1
    assert [os.fsencode(entry.name) for entry in folder.iterdir()] == [name]  # nothing else written


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_source_gives_what_is_left(studio, curate, tmp_path, share):
    whole = studio.folder / "whole.mkv"
    if not whole.exists():
        studio.run("-i", studio.numbered("five.mp4", fps="16", count=400), "-c", "copy", whole)
    raw = whole.read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(raw[: int(len(raw) * share)])
    result = curate(path, tmp_path / "out")
    source, *clips = result.rows.to_pylist()
    assert source["fate"] == "kept"
    assert 400 * share - 60 < source["frames_decoded"] < 400 * share + 60
    assert len(clips) == source["frames_decoded"] // 80


def test_flipped_bytes_are_survived_and_told(studio, curate, tmp_path):
    raw = bytearray(studio.numbered("five.mp4", fps="16", count=400).read_bytes())
    generator = np.random.default_rng(1)
    for place in generator.integers(20_000, len(raw) - 40_000, 300):
        raw[place] ^= 0xFF
    path = tmp_path / "flipped.mp4"
    path.write_bytes(raw)
    result = curate(path, tmp_path / "out")
    source = result.rows.to_pylist()[0]
    assert source["fate"] in {"kept", "rejected", "failed"}
    assert source["message"]
    if source["fate"] != "failed":
        assert source["decode_errors"] > 0
    for _row, payload in payloads(result, tmp_path / "out"):
        check_payload(payload, Prep().contract)


def test_a_source_that_changes_or_vanishes_fails(studio, curate, tmp_path):
    path = tmp_path / "n.mp4"
    path.write_bytes(studio.numbered("n24.mp4", fps="24", count=123).read_bytes())
    source = list_sources([str(path)])[0]
    os.utime(path, ns=(1, 1))
    assert fate_of(curate(source, tmp_path / "out"))[:2] == ("failed", "Changed")
    path.unlink()
    assert fate_of(curate(source, tmp_path / "out"))[:2] == ("failed", "FileNotFoundError")


def test_limits_fail_the_source_and_nothing_else(studio, curate, tmp_path):
    path = studio.numbered("five.mp4", fps="16", count=400)
    fate = fate_of(curate(path, tmp_path, prep=Prep(decode_timeout_s=0.05)))
    assert fate[:2] == ("failed", "Timeout")
    assert "decode_timeout_s" in fate[2]
    assert fate_of(curate(path, tmp_path, prep=Prep(max_source_bytes=10)))[1] == "TooLarge"
    fate = fate_of(curate(path, tmp_path, prep=Prep(memory_bytes=50 << 20)))
    assert fate[0] == "failed"
    assert fate[2]
    assert not list(tmp_path.rglob("*.arrow"))


FULL_DISK = """
import resource, sys
from pathlib import Path
from ingest.clip import Prep
from ingest.keep import Keep
from ingest.likeness import Duplicates, decision
from ingest.shards import StorageError
from ingest.sources import list_sources
from ingest.unit import curate_unit, plan_unit
keep = Keep(max_duplicate_frame_share=None, max_motion=None, min_motion=None)
unit = plan_unit(list_sources([sys.argv[1]])[0], prep=Prep())
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    curate_unit(unit, prep=Prep(), keep=keep, root=Path(sys.argv[2]))
except StorageError as error:
    print("told", error.filename, error.fatal)
"""


def test_a_full_disk_is_no_fate_of_the_source(two_shots, curated_two, tmp_path):
    result, root = curated_two
    largest = max(len(payload) for _row, payload in payloads(result, root))
    limit = largest * 3 // 2  # each payload fits, the shard does not
    assert limit < result.stats["payload_bytes"]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(two_shots), str(tmp_path), str(limit)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
    )
    assert done.stdout.startswith(f"told {tmp_path}")
    assert "True" in done.stdout
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_rows_of_the_executor(two_shots, curated_two):
    settings = {"prep": Prep(), "keep": Keep()}
    unit = plan_unit(list_sources([str(two_shots)])[0], prep=Prep())
    died = failed_rows(unit, stage="worker", error_class="WorkerDied", message="killed\n",
                       attempts=3, **settings)  # fmt: skip
    row = died.to_pylist()[0]
    assert (row["fate"], row["attempts"], row["message"]) == ("failed", 3, "killed")
    twin = duplicate_rows(unit, duplicate_of=unit.source_sha256, **settings).to_pylist()[0]
    assert (twin["fate"], twin["duplicate_of"]) == ("duplicate", twin["source_sha256"])
    rows = with_attempts(curated_two[0].rows, 2)
    assert rows.schema.equals(curated_two[0].rows.schema)
    assert set(rows.column("attempts").to_pylist()) == {2}


def test_stills_of_a_clock_slower_than_they_are_taken(studio, curate, tmp_path):
    """Four ticks a second, sixteen stills: those of one tick would be one clip by name."""
    path = studio.numbered("slow.avi", fps="4", count=12, codec=("-c:v", "mjpeg"))
    result = curate(path, tmp_path, prep=Prep(contract=Contract(frames=1, fps=16)))
    clips = result.rows.to_pylist()[1:]
    assert len({row["id"] for row in clips}) == len(clips) >= 12
    assert balance(result.rows, {result.unit_id}).ok


def test_a_source_that_nobody_could_name_gives_no_clip(two_shots, tmp_path):
    """It was out of reach when it was hashed, and is there again when it is decoded."""
    (source,) = list_sources([str(two_shots)])
    (unit,) = units_of(source, Named(sha256="", num_parts=1), prep=Prep())
    result = curate_unit(unit, prep=Prep(), keep=KEEP_ALL, root=tmp_path)
    (row,) = result.rows.to_pylist()
    assert (row["fate"], row["error_class"]) == ("failed", "Unnamed")
    assert "when it was to be named" in row["message"]


# ------------------------------------------------------------------ the shared real videos

REJECTED = {
    "bbb_1080p_60fps.mp4", "bbb_1080p_60fps.ts", "intel_asl_again.mkv", "intel_asl_book.mkv",
    "intel_asl_eat.mkv", "intel_asl_help.mkv", "intel_asl_milk.mkv", "intel_asl_walk.mkv",
    "intel_asl_yes.mkv", "stream-of-water-audioless.webm", "stream-of-water.mp4",
    "tc_bt709_full_range.mp4", "tc_h264_10bits.mp4", "tc_h265_10bits.mp4", "tc_h265_video.mp4",
    "tmh_bear-vp9-opus.webm",
}  # fmt: skip


def test_all_shared_videos_have_sane_fates(curated):
    fates = {}
    for name, result in curated.results.items():
        source, *clips = result.rows.to_pylist()
        fates[name] = source["fate"], source["rule"] or source["error_class"]
        assert source["num_candidates"] == len(clips)
    assert len(fates) >= 44
    assert fates.pop("tmh_broken-file.ogg") == ("failed", "NotAVideo")
    short = {name for name, fate in fates.items() if fate == ("rejected", "too_short")}
    assert short >= REJECTED
    assert len([fate for fate, _ in fates.values() if fate == "kept"]) >= 18
    assert fates["intel_one-by-one-person-detection.mp4"] == ("rejected", "no_clip_kept")  # 10 fps
    assert not [name for name, fate in fates.items() if fate[0] == "failed"]
    assert curated.dataset.balance({result.unit_id for result in curated.results.values()}).ok


def test_every_payload_of_the_shared_videos_keeps_the_contract(curated):
    clips = curated.dataset.kept_clips().to_pylist()
    assert len(clips) >= 40
    for row in clips[::3]:  # curate_unit decoded each before it was written; here a third again
        place = row["offset"], row["length"], row["crc32"]
        payload = bytes(read_payload(curated.dataset.root, row["shard"], *place))
        check_payload(payload, Prep().contract)
        frames = payload_frames(payload, indices=[0, 79])
        assert frames.shape == (2, row["height"], row["width"], 3)
        assert min(row["width"], row["height"]) <= 256


def test_clips_are_not_much_larger_than_their_sources(curated):
    """Bytes a second of each clip against those of its whole file, sound and all, and nothing else.

    Clips have a fixed quality (crf 20, a key frame a second), not a fixed size: what a newer codec squeezed to
    a few kB a second grows, measured 9.0 times at most (VP9 of 6 kB/s); what has 60 kB/s or more
    shrinks to 0.86 at most; all together they have 0.65 of the bytes of the seconds that they show.
    """
    ours, theirs = 0.0, 0.0
    for row in curated.dataset.kept_clips().to_pylist():
        result = curated.results[name_of(row)]
        rate = result.rows.to_pylist()[0]["source_bytes"] / result.stats["source_s"]
        factor = row["length"] / 5.0 / rate
        assert factor <= (1.0 if rate >= 60_000 else 10.0), (name_of(row), row["start_s"])
        ours, theirs = ours + row["length"] / 5.0, theirs + rate
    assert ours < theirs, ours / theirs


def test_memory_is_bounded_by_a_window(curated):
    assert curated.peak_mib < 400


def test_counts_come_with_the_clips(curated):
    info = curated.dataset.info()
    assert info["clips_kept"] == curated.dataset.kept_clips().num_rows
    assert (info["sources"], info["failed"]) == (len(curated.results), 1)
    assert info["seconds"] == 5.0 * info["clips_kept"]


def test_facts_of_every_clean_shared_video(curated, shared_videos):
    """Frames, length and shape of each file, as three other decoders found them (truth.json)."""
    truth = json.loads((shared_videos / "truth.json").read_text())
    clean = {name: facts for name, facts in truth.items() if facts.get("clean")}
    assert len(clean) >= 35
    for name, facts in clean.items():
        result = curated.results[name]
        row = result.rows.to_pylist()[0]
        assert row["frames_decoded"] == facts["frames_decoded"], name
        assert row["decode_errors"] == 0, name
        assert result.stats["source_s"] == pytest.approx(facts["video_span_s"], abs=0.1), name
        width, height = row["width"], row["height"]
        if row["crop_width"]:  # the picture inside its bars: the shape of the whole is asked anew
            width, height = ffmpeg.probe(
                str(shared_videos / name), Prep(crop_bars=False)
            ).display_size
        assert facts["rotation"] == 0, "none of them is turned, or this test must know"
        shape = Fraction(*facts["display_size"]) * Fraction(facts["sar"] or 1)
        assert width / height == pytest.approx(float(shape), rel=0.02), name
        clips = [clip for clip in result.rows.to_pylist() if clip["kind"] == "clip"]
        assert all(clip["end_s"] <= facts["video_span_s"] + 1 / 16 for clip in clips), name


# What INDEX.md names as the same content, and by eye: bbb_1080p_5s.mp4 is how bbb_480p_30s.mp4
# begins (the same fade into the meadow), and so does bbb_0_30.webm.
SAME = [
    {"flower.mp4", "flower.webm"},
    {"mdn_frog.mp4", "mdn_frog.webm"},
    {"rabbit320.mp4", "rabbit320.webm"},
    {"tmh_stream.144p.video.mjpeg.mov", "tmh_stream.360p.video.vp9.mp4"},
    {"bbb_0_30.webm", "bbb_480p_30s.mp4", "bbb_1080p_5s.mp4"},
]


def test_the_copies_among_the_shared_videos_and_none_else(curated):
    """What production calls copies, when no other rule takes a clip first, and the best of them stays."""
    units = {result.unit_id for result in curated.results.values()}
    found = decision(curated.dataset, units, keep=KEEP_ALL, duplicates=Duplicates())
    rows = {row["id"]: row for row in curated.dataset.ledger().to_pylist() if row["kind"] == "clip"}
    changed = {row["id"]: row for row in found.changes.to_pylist() if row["id"] in rows}
    twins = [row for row in changed.values() if row["fate"] == "duplicate"]
    pairs = {tuple(name_of(rows[row[of]]) for of in ("id", "duplicate_of")) for row in twins}
    for pair in pairs:
        assert any(set(pair) <= same for same in SAME), pair
    for same in SAME:
        inside = [pair for pair in pairs if set(pair) <= same]
        assert {name for pair in inside for name in pair} == same, inside
    for row in twins:
        one, best = rows[row["id"]], rows[row["duplicate_of"]]
        assert one["width"] * one["height"] <= best["width"] * best["height"]
        assert changed.get(best["id"], best)["fate"] != "duplicate"


def name_of(row):
    return Path(row["source_uri"]).name
