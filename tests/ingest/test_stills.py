"""Contracts of stills, end to end: pictures and frames of videos, to the bit."""

import os
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from ingest.clip import Contract, Prep
from ingest.decode import check_payload, payload_frames
from ingest.keep import Keep
from ingest.schema import SCORES
from ingest.shards import read_payload
from ingest.sources import list_sources

STILL = Contract(frames=1)
PICTURE_PREP = Prep(contract=STILL)


def rows_and_frames(result, root):
    found = []
    for row in result.rows.to_pylist():
        if row["kind"] == "clip" and row["fate"] == "kept":
            place = row["offset"], row["length"], row["crc32"]
            payload = bytes(read_payload(root, row["shard"], *place, clip_id=row["id"]))
            found.append((row, payload_frames(payload, kind=row["payload_kind"]), payload))
    return found


def saved(path: Path, picture: np.ndarray) -> Path:
    """Write RGB, RGBA or grey pixels losslessly; None as path suffix decides the format."""
    order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    coded = cv2.cvtColor(picture, order[picture.shape[2]]) if picture.ndim == 3 else picture
    lossless = [cv2.IMWRITE_WEBP_QUALITY, 101] if path.suffix == ".webp" else []
    assert cv2.imwrite(str(path), coded, lossless)
    return path


def still_of(path, root, curate, **changes):
    result = curate(path, root, prep=Prep(contract=STILL, **changes))
    ((row, frames, payload),) = rows_and_frames(result, root)
    check_payload(payload, STILL, reference=frames)
    return row, frames[0]


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((f"picture.{suffix}", (33, 47)) for suffix in ("png", "bmp", "webp")),
        *(("picture.png", size) for size in ((96, 128), (1, 1), (2, 300))),
    ],
)
def test_stills_come_back_to_the_bit(curate, tmp_path, name, size):
    picture = noise(*size, 3)
    path = saved(tmp_path / name, picture)
    row, frame = still_of(path, tmp_path / "out", curate)
    assert np.array_equal(frame, picture)
    assert (row["height"], row["width"]) == size
    facts = "payload_kind", "frame_count", "fps_num", "fps_den", "start_pts", "end_pts"
    assert [row[name] for name in facts] == ["png", 1, 0, 1, 0, 1]
    assert (row["timebase_num"], row["timebase_den"], row["end_s"]) == (1, 1, 0.0)
    assert [row[name] is None for name in SCORES] == [
        name in ("motion", "duplicate_frame_share", "flicker") for name in SCORES
    ]


def test_a_large_picture_shrinks_as_videos_do(curate, tmp_path):
    flat = np.repeat(np.repeat(noise(50, 61, 3), 8, 0), 8, 1)
    row, frame = still_of(saved(tmp_path / "x.png", flat), tmp_path / "out", curate)
    assert frame.shape == (256, 312, 3)
    assert (row["width"], row["height"]) == (312, 256)
    small = cv2.resize(flat, (312, 256), interpolation=cv2.INTER_AREA)
    assert np.abs(frame.astype(int) - small).mean() < 3


def test_a_photo_stands_upright(curate, tmp_path):
    """A camera held sideways writes a lying picture and a note in it how to turn it."""
    smooth = cv2.resize(noise(6, 8, 3), (160, 120), interpolation=cv2.INTER_CUBIC)
    plain = tmp_path / "plain.jpg"
    assert cv2.imwrite(str(plain), smooth[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])
    raw = plain.read_bytes()
    tiff = b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x112, 3, 1, 6, 0, 0)
    note = b"\xff\xe1" + struct.pack(">H", 8 + len(tiff)) + b"Exif\0\0" + tiff
    turned = tmp_path / "turned.JPEG"
    turned.write_bytes(raw[:2] + note + raw[2:])
    _, upright = still_of(plain, tmp_path / "out", curate)
    assert np.abs(upright.astype(int) - smooth).mean() < 2
    _, frame = still_of(turned, tmp_path / "out", curate)
    assert np.abs(frame.astype(int) - np.rot90(upright, -1)).mean() < 2


def test_grey_deep_and_transparent_pictures(curate, tmp_path):
    out = tmp_path / "out"
    grey = noise(40, 60)
    _, frame = still_of(saved(tmp_path / "grey.png", grey), out, curate)
    assert np.array_equal(frame, np.repeat(grey[..., None], 3, -1))
    deep = np.random.default_rng(0).integers(0, 65536, (40, 60, 3), np.uint16)
    _, frame = still_of(saved(tmp_path / "deep.png", deep), out, curate)
    assert np.abs(frame - deep / 257).max() <= 2.5  # grey levels of 8 bits
    clear = noise(40, 60, 4)
    clear[:10, :, 3], clear[10:20, :, 3] = 255, 0
    _, frame = still_of(saved(tmp_path / "clear.png", clear), out, curate)
    opacity = clear[..., 3:] / 255
    assert np.abs(frame - (clear[..., :3] * opacity + 255 * (1 - opacity))).max() <= 1
    assert np.array_equal(frame[:10], clear[:10, :, :3])
    assert (frame[10:20] == 255).all()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Files that are no whole single picture, and the class of failure that each must have."""
    folder = tmp_path_factory.mktemp("broken")
    smooth = cv2.resize(noise(6, 8, 3), (160, 120), interpolation=cv2.INTER_CUBIC)
    for suffix in ("jpg", "png", "webp", "bmp"):
        raw = saved(folder / f"whole.{suffix}", smooth).read_bytes()
        (folder / f"half.{suffix}").write_bytes(raw[: len(raw) // 2])
        (folder / f"head.{suffix}").write_bytes(raw[:20])
    raw = (folder / "whole.jpg").read_bytes()
    (folder / "filled.jpg").write_bytes(raw[: len(raw) // 2] + bytes(len(raw) // 2) + b"\xff\xd9")
    raw = (folder / "whole.png").read_bytes()
    flipped = bytearray(raw)
    flipped[len(raw) // 2] ^= 1
    (folder / "flipped.png").write_bytes(flipped)
    moving = raw[:33] + chunk(b"acTL", struct.pack(">II", 3, 0)) + raw[33:]
    (folder / "moving.png").write_bytes(moving)
    raw = (folder / "whole.webp").read_bytes()
    extended = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + bytes(6)
    (folder / "moving.webp").write_bytes(
        b"RIFF" + struct.pack("<I", len(raw) + 10) + b"WEBP" + extended + raw[12:]
    )
    (folder / "text.png").write_text("no picture\n" * 30)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "list.png").write_text(f"ffconcat version 1.0\nfile '{folder}/whole.png'\n")
    (folder / "folder.png").mkdir()
    return folder, {
        "half.jpg": "Truncated", "half.png": "Truncated", "half.webp": "Truncated",
        "head.jpg": "Truncated", "head.png": "Truncated", "head.webp": "Truncated",
        "moving.png": "Animated", "moving.webp": "Animated", "empty.jpg": "EmptyFile",
        "folder.png": "IsADirectoryError", "text.png": "NotAVideo", "list.png": "NotAVideo",
        "filled.jpg": "BrokenPicture", "flipped.png": "", "half.bmp": "", "head.bmp": "",
    }  # fmt: skip


def test_broken_pictures_fail_with_words(broken, curate, tmp_path):
    folder, wanted = broken
    for source in list_sources([str(folder)], pictures=True):
        row, *clips = curate(source, tmp_path, prep=PICTURE_PREP).rows.to_pylist()
        name = Path(source.uri).name
        if name.startswith("whole."):
            assert (row["fate"], len(clips)) == ("kept", 1)
            continue
        assert (row["fate"], len(clips)) == ("failed", 0), name
        assert row["message"], name
        assert wanted[name] in ("", row["error_class"]), (name, row["error_class"])


def test_a_picture_is_told_by_its_bytes_not_its_name(studio, curate, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    os.link(saved(tmp_path / "p.png", noise(40, 60, 3)), folder / "%03d.jpg")
    os.link(studio.numbered("n24.mp4", fps="24", count=123), folder / "video.png")
    kept = {}
    for source in list_sources([str(folder)], pictures=True):
        result = curate(source, tmp_path / "out", prep=Prep(contract=Contract(frames=1, fps=1)))
        kept[Path(source.uri).name] = result.stats["kept"]
    assert kept == {"%03d.jpg": 1, "video.png": 6}


def test_pictures_are_for_stills_only(curate, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    path = saved(folder / "a.png", noise(40, 60, 3))
    with pytest.raises(FileNotFoundError, match="no video found"):
        list_sources([str(folder)])
    row = curate(path, tmp_path / "out").rows.to_pylist()[0]
    assert (row["fate"], row["error_class"]) == ("failed", "NotAVideo")


def test_stills_of_a_video_are_its_frames(studio, curate, read_numbers, tmp_path):
    """Two a second, or one of twelve native frames: the same of a video of 24."""
    path = studio.numbered("n24.mp4", fps="24", count=123)
    for contract in (
        Contract(frames=1, fps=2),
        Contract(frames=1, fps="native", interval=12),
    ):
        root = tmp_path / str(contract.fps)
        found = rows_and_frames(curate(path, root, prep=Prep(contract=contract)), root)
        assert [read_numbers(frames)[0] for _, frames, _ in found] == list(range(0, 123, 12))
        for row, frames, _ in found:
            assert frames.shape == (1, 128, 192, 3)
            assert (row["payload_kind"], row["fps_num"], row["fps_den"]) == ("png", 0, 1)
            assert row["start_pts"] * Fraction(row["timebase_num"], row["timebase_den"]) == (
                Fraction(read_numbers(frames)[0], 24)
            )


def test_rules_over_absent_scores_do_not_apply_to_stills(curate, tmp_path):
    path = saved(tmp_path / "x.png", cv2.resize(noise(6, 8, 3), (160, 120)))
    strict = Keep(min_motion=0.3, max_motion=0.4, max_duplicate_frame_share=0.0)
    result = curate(path, tmp_path / "out", prep=PICTURE_PREP, keep=strict)
    assert result.rows.column("fate").to_pylist() == ["kept", "kept"]
    dark = saved(tmp_path / "dark.png", np.zeros((40, 40, 3), np.uint8))
    rows = curate(dark, tmp_path / "out", prep=PICTURE_PREP, keep=strict).rows.to_pylist()
    assert rows[1]["rule"] == "min_luma"


def test_stills_of_a_real_video(shared_videos, curate, tmp_path):
    prep = Prep(contract=Contract(frames=1, fps="native", interval=48))
    found = rows_and_frames(
        curate(shared_videos / "bbb_480p_30s.mp4", tmp_path, prep=prep), tmp_path
    )
    assert len(found) >= 12
    assert {frames.shape for _, frames, _ in found} == {(1, 256, 455, 3)}
