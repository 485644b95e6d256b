import contextlib
import os
import tarfile
from pathlib import Path

import pytest

from ingest.clip import Prep
from ingest.keep import Keep
from ingest.sources import (
    Layout,
    Said,
    Source,
    SourceError,
    check_readable,
    check_unchanged,
    fingerprint,
    list_sources,
    sha256_file,
)
from ingest.trial import trial
from ingest.unit import Named, name_source


@pytest.fixture
def tree(tmp_path):
    for name in ("b.mp4", "a.MKV", "notes.txt", ".hidden.mp4", "sub/c.webm", ".git/d.mp4"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def names(sources, root):
    return [os.path.relpath(source.uri, root) for source in sources]


def test_folders_globs_and_files(tree):
    assert names(list_sources([str(tree)]), tree) == ["a.MKV", "b.mp4", "sub/c.webm"]
    assert names(list_sources([str(tree / "*.mp4")]), tree) == ["b.mp4"]
    assert names(list_sources([str(tree / "**/*.webm")]), tree) == ["sub/c.webm"]
    assert names(list_sources([str(tree / "notes.txt")]), tree) == ["notes.txt"]  # named, so wanted
    assert names(list_sources([str(tree), str(tree / "b.mp4")]), tree)[1:] == [
        "b.mp4",
        "sub/c.webm",
    ]
    source = list_sources([str(tree / "b.mp4")])[0]
    assert (source.bytes, source.uri) == (5, str(tree / "b.mp4"))


def test_pictures_are_listed_when_stills_are_wanted(tree):
    for name in ("a.PNG", "sub/b.jpeg", "c.webp", "d.bmp", "e.jpg", "f.gif", ".hidden.png"):
        (tree / name).write_bytes(name.encode())
    videos = ["a.MKV", "b.mp4", "sub/c.webm"]
    assert names(list_sources([str(tree)]), tree) == videos
    assert names(list_sources([str(tree)], pictures=True), tree) == sorted(
        [*videos, "a.PNG", "sub/b.jpeg", "c.webp", "d.bmp", "e.jpg"]
    )
    assert names(list_sources([str(tree / "a.PNG")]), tree) == ["a.PNG"]  # named, so wanted
    assert names(list_sources([str(tree / "s*")]), tree) == ["sub/c.webm"]
    (tree / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no video or picture found"):
        list_sources([str(tree / "empty")], pictures=True)


def test_folders_of_classes(tmp_path):
    """UCF-101's layout: a folder for each class."""
    odd = os.fsdecode(b"\xff class")
    for name in (
        "Archery/v_g01_c01.avi",
        "Archery/deep/x.avi",
        "Yo Yo/y.avi",
        "z.avi",
        f"{odd}/w.avi",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    labelled = Layout(labels="folder")
    expected = ["Archery", "Archery", "Yo Yo", "", "\\xff class"]
    for pattern in (tmp_path, tmp_path / "**/*.avi", f"{tmp_path}/"):
        found = list_sources([str(pattern)], layout=labelled)
        assert [source.said.label for source in found] == expected
    assert all(source.said == Said() for source in list_sources([str(tmp_path)]))
    assert list_sources([str(tmp_path / "z.avi")], layout=labelled)[0].said == Said()


def test_nothing_found_names_the_pattern(tree):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list_sources([str(tree), str(tree / "nowhere")])
    (tree / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        list_sources([str(tree / "empty")])


def test_loops_of_links_end_and_links_to_files_are_followed(tree):
    (tree / "sub" / "loop").symlink_to(tree)
    (tree / "gone.mp4").symlink_to(tree / "absent")
    (tree / "link.mp4").symlink_to(tree / "b.mp4")
    found = list_sources([str(tree)])
    assert names(found, tree) == ["a.MKV", "b.mp4", "gone.mp4", "link.mp4", "sub/c.webm"]
    assert fingerprint(found[2]) == ""


def test_a_folder_called_like_a_video_is_listed_and_searched(tree):
    (tree / "x.mp4").mkdir()
    (tree / "x.mp4" / "inside.mp4").write_bytes(b"1")
    assert "x.mp4" in names(list_sources([str(tree)]), tree)
    assert "x.mp4/inside.mp4" in names(list_sources([str(tree)]), tree)


def test_odd_names(tmp_path):
    odd = [b"with space.mp4", b"quote'\".mp4", b"new\nline.mp4", b"-dash.mp4", b"\xff\xfe.mp4",
           b"%d[1]*?.mp4", "ünï.mp4".encode(), b"a:b.mp4"]  # fmt: skip
    for name in odd:
        (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    found = list_sources([str(tmp_path)])
    assert sorted(os.fsencode(source.uri).rsplit(b"/", 1)[1] for source in found) == sorted(odd)
    for source in found:
        source.printable_uri.encode("utf-8")
        assert fingerprint(source) == sha256_file(source.uri)
        assert list_sources([source.uri]) == [source]


def test_readable_or_a_reason(tree):
    def reason(path, **facts):
        source = Source(uri=str(path), bytes=0, mtime_ns=0, **facts)
        with pytest.raises(SourceError) as caught:
            check_readable(source, 10)
        return caught.value.error_class

    (tree / "zero.mp4").write_bytes(b"")
    (tree / "big.mp4").write_bytes(b"x" * 11)
    os.mkfifo(tree / "fifo.mp4")
    assert reason(tree / "zero.mp4") == "EmptyFile"
    assert reason(tree / "big.mp4") == "TooLarge"
    assert reason(tree / "fifo.mp4") == "NotAFile"
    assert reason(tree) == "IsADirectoryError"
    assert reason(tree / "absent.mp4") == "FileNotFoundError"
    assert reason(tree / ("long" * 100)) == "OSError"
    assert fingerprint(Source(uri=str(tree / "fifo.mp4"), bytes=0, mtime_ns=0)) == ""


def test_a_changed_file_is_noticed(tree):
    source = list_sources([str(tree / "b.mp4")])[0]
    check_unchanged(source)
    os.utime(source.uri, ns=(0, 0))
    with pytest.raises(SourceError, match="Changed"):
        check_unchanged(source)
    Path(source.uri).unlink()
    with pytest.raises(SourceError, match="Vanished"):
        check_unchanged(source)


def test_what_is_too_large_is_not_read_to_be_named(tmp_path, curate):
    """A sparse file of 4 EiB: to read it all would take centuries."""
    path = tmp_path / "x.mp4"
    with path.open("wb") as file:
        file.truncate(1 << 42)
        with contextlib.suppress(OSError):  # as far as the disk's format goes
            file.truncate(1 << 62)
    [source] = list_sources([str(path)])
    prep = Prep()
    assert fingerprint(source, max_bytes=prep.max_source_bytes) == ""
    assert name_source(source, prep=prep, scratch=tmp_path) == Named(sha256="", num_parts=1)
    [row] = curate(source, tmp_path / "out").rows.to_pylist()
    assert (row["fate"], row["error_class"]) == ("failed", "TooLarge")
    tried = trial(source, 0.0, prep=prep, keep=Keep(), scratch=tmp_path)
    assert tried.problem.startswith("TooLarge: ")


def test_frames_and_members_that_are_too_large_are_not_read_either(tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    for at in range(3):
        (frames / f"{at}.png").write_bytes(b"12345678")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(frames / "0.png", "0.mp4")
    folder, member = list_sources([str(tmp_path)], layout=Layout(frames_fps=5))[::-1]
    for source, size in ((folder, 24), (member, 8)):
        assert fingerprint(source, max_bytes=size)
        assert fingerprint(source, max_bytes=size - 1) == ""
