import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest import ffmpeg
from ingest.files import StorageError
from ingest.objects import Root
from ingest.source import natural
from ingest.sources import (
    Layout,
    SourceError,
    check_readable,
    check_unchanged,
    fingerprint,
    list_sources,
    local,
)

LIMIT = 1 << 30
FRAMES = Layout(frames_fps=12.5)


def picture(path: Path, level: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = ".jpg" if path.suffix.lower() in (".jpeg", ".jpg") else path.suffix.lower()
    encoded = cv2.imencode(suffix, np.full((16, 32, 3), level, np.uint8))[1]
    path.write_bytes(encoded.tobytes())
    return path


@pytest.fixture
def sky(tmp_path):
    """SkyTimelapse's layout: classes, videos, frames."""
    root = tmp_path / "50% sky"
    for label, video, count in (("cloud", "v1", 12), ("cloud", "v2", 3), ("sun", "v1", 2)):
        for at in range(count):
            picture(root / label / video / f"frame{at}.png", 20 * at)
    picture(root / "cloud" / "v1" / ".hidden.png", 0)
    (root / "cloud" / "v1" / "notes.txt").write_text("x")
    (root / "cloud" / "film.mp4").write_bytes(b"film")
    return root


@pytest.fixture(params=["disk", "store"])
def placed(request, sky):
    """The same tree on a disk and in a store."""
    if request.param == "disk":
        return str(sky)
    bucket = request.getfixturevalue("bucket")
    for path in sky.rglob("*"):
        if path.is_file():
            Root.of(bucket).replace(path.relative_to(sky).as_posix(), path.read_bytes())
    return bucket


def by_name(sources, root):
    return {source.uri.removeprefix(f"{root}/"): source for source in sources}


def levels(copy):
    """Decode what a pattern names as main does, with ffmpeg; gives the mean of each frame."""
    command = [ffmpeg.executable(), "-v", "error", "-framerate", str(copy.frames_fps)]
    command += ["-f", "image2", "-i", f"file:{copy.path}", "-f", "rawvideo", "-pix_fmt", "gray"]
    raw = subprocess.run([*command, "-"], capture_output=True, check=True, timeout=60).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(-1, 16 * 32)
    return [round(float(level)) for level in frames.mean(1)]


def test_each_folder_of_pictures_is_one_video_of_its_class(placed, tmp_path):
    layout = Layout(frames_fps=12.5, labels="folder")
    found = by_name(list_sources([placed], layout=layout), placed)
    assert {name: source.said.label for name, source in found.items()} == {
        "cloud/v1": "cloud",
        "cloud/v2": "cloud",
        "sun/v1": "sun",
        "cloud/film.mp4": "cloud",
    }
    source = found["cloud/v1"]
    assert source.frames_fps == Fraction(25, 2)
    check_readable(source, LIMIT)
    check_unchanged(source)
    with local(source, tmp_path / "a 100%d scratch", max_bytes=LIMIT) as copy:
        assert copy.frames_fps == Fraction(25, 2)
        got = levels(copy)
        assert len(got) == 12  # frame10 comes after frame9
        assert np.abs(np.array(got) - 20 * np.arange(12)).max() <= 20
        assert got == sorted(got)
    assert not list((tmp_path / "a 100%d scratch").iterdir())
    with pytest.raises(SourceError, match="TooLarge"):
        check_readable(source, source.bytes - 1)


def test_pictures_are_no_videos_unless_wanted(placed):
    assert set(by_name(list_sources([placed]), placed)) == {"cloud/film.mp4"}
    stills = by_name(list_sources([placed], pictures=True), placed)
    assert len(stills) == 18
    assert all(source.frames_fps is None for source in stills.values())


def test_the_hash_is_of_content_order_and_rate(placed, sky, tmp_path):
    def hashes(root, layout=FRAMES):
        return {
            name: fingerprint(source)
            for name, source in by_name(list_sources([root], layout=layout), root).items()
            if source.frames_fps
        }

    before = hashes(placed)
    assert all(before.values())
    assert len(set(before.values())) == 3
    other = tmp_path / "elsewhere"
    sky.rename(other)
    for path in list(other.rglob("frame*.png")):  # other names, the same order
        path.rename(path.with_name(f"{int(path.stem[5:]):06d}.png"))
    assert hashes(str(other)) == before
    assert not set(hashes(str(other), Layout(frames_fps=25)).values()) & set(before.values())
    (other / "sun/v1/000000.png").rename(other / "sun/v1/7.png")
    assert hashes(str(other))["sun/v1"] != before["sun/v1"]


def test_what_is_no_video_has_a_reason(tmp_path):
    def reason(name, *files):
        folder = tmp_path / name
        for file in files:
            picture(folder / file, 9)
        [source] = list_sources([str(folder)], layout=FRAMES)
        return folder, source

    for name, files, kind in (
        ("mixed", ("1.png", "2.jpg"), "MixedFrames"),
        ("same", ("1.jpg", "2.JPEG"), ""),
    ):
        _, source = reason(name, *files)
        if not kind:
            check_readable(source, LIMIT)
            with local(source, tmp_path / "s", max_bytes=LIMIT) as copy:
                assert len(levels(copy)) == 2
            continue
        for check in (check_readable, lambda s, n: local(s, tmp_path, max_bytes=n).__enter__()):
            with pytest.raises(SourceError, match=kind):
                check(source, LIMIT)
        assert fingerprint(source) == ""

    folder, source = reason("empty", "1.png")
    (folder / "1.png").unlink()
    with pytest.raises(SourceError, match="EmptyFolder"):
        check_readable(source, LIMIT)
    with pytest.raises(SourceError, match="Changed"):
        check_unchanged(source)
    (folder).rmdir()
    with pytest.raises(SourceError, match="FileNotFoundError"):
        check_readable(source, LIMIT)
    with pytest.raises(SourceError, match="Vanished"):
        check_unchanged(source)

    for name, make in (
        ("fifo", os.mkfifo),
        ("dangling", lambda path: path.symlink_to("nowhere")),
        ("zero", Path.touch),
    ):
        picture(tmp_path / name / "1.png", 1)
        make(tmp_path / name / "2.png")
        [source] = list_sources([str(tmp_path / name)], layout=FRAMES)
        with pytest.raises(SourceError, match="EmptyFile"):
            check_readable(source, LIMIT)
        assert fingerprint(source) == ""


def test_a_changed_frame_is_noticed(placed, sky):
    source = by_name(list_sources([placed], layout=FRAMES), placed)["sun/v1"]
    if placed.startswith("s3://"):
        Root.of(placed).replace("sun/v1/frame0.png", b"other")
    else:
        os.utime(sky / "sun/v1/frame0.png", ns=(0, 0))
    with pytest.raises(SourceError, match="Changed"):
        check_unchanged(source)


@given(st.lists(st.text("ab10²/\udcff", max_size=8), unique=True))
def test_natural_order_is_an_order(names):
    assert sorted(names, key=natural) == sorted(sorted(names), key=natural)
    padded = [f"x{number}" for number in range(0, 120, 7)]
    assert sorted(padded, key=natural) == padded


def test_rates_as_people_write_them():
    for written, meant in ((23.976, 24000), (23.98, 24000), (29.97, 30000), (59.94, 60000)):
        assert Layout(frames_fps=written).rate == Fraction(meant, 1001)
    for fps in (1, 5, 10, 24, 25, 30, 100, 12.5):
        assert Layout(frames_fps=fps).rate == Fraction(fps)
    for fps in (-1, 1e9, float("nan"), 1e-9):
        with pytest.raises(ValueError, match="frames_fps"):
            Layout(frames_fps=fps)
    assert Layout().rate is None


def test_a_scratch_that_cannot_be_written_is_no_fault_of_the_source(sky, tmp_path):
    [source] = list_sources([str(sky / "sun")], layout=FRAMES)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError), local(source, tmp_path / "file" / "x", max_bytes=LIMIT):
        pass


KILLED = """
import os, signal, sys
from ingest.sources import *
[source] = list_sources([sys.argv[1]], layout=Layout(frames_fps=5))
with local(source, sys.argv[2], max_bytes=1 << 30):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_worker_left_is_cleared_and_what_others_hold_is_not(sky, tmp_path):
    scratch = tmp_path / "scratch"
    command = [sys.executable, "-c", KILLED, str(sky / "sun"), str(scratch)]
    assert subprocess.run(command, timeout=120, check=False).returncode == -signal.SIGKILL
    [left] = scratch.iterdir()
    [source] = list_sources([str(sky / "sun")], layout=FRAMES)
    with local(source, scratch, max_bytes=LIMIT), local(source, scratch, max_bytes=LIMIT) as copy:
        assert not left.exists()
        assert len(list(scratch.iterdir())) == 2
        assert len(levels(copy)) == 2
    assert not list(scratch.iterdir())
