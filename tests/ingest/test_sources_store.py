import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from ingest.files import StorageError
from ingest.objects import Root
from ingest.sources import (
    Layout,
    Said,
    Source,
    SourceError,
    Spoken,
    check_readable,
    check_unchanged,
    fingerprint,
    list_sources,
    local,
    sha256_file,
)

LIMIT = 1 << 30
NAMES = ("a.MP4", "b.mp4", "sub/c.webm", "sub/deep/d.mp4", ".git/e.mp4", "sub/.f.mp4", "notes.txt")
ODD = (
    "a b.mp4",
    "a#b.mp4",
    "a%20b.mp4",
    "ü.mp4",
    "q?x.mp4",
    "[1]*.mp4",
    "-dash.mp4",
    "back\\s.mp4",
)


@pytest.fixture
def trees(tmp_path, bucket):
    """The same files in a folder and in a store."""
    for name in (*NAMES, *(f"odd/{name}" for name in ODD)):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        Root.of(bucket).replace(name, name.encode())
    return str(tmp_path / "tree"), bucket


def seen(pattern, root, **settings):
    try:
        found = list_sources([pattern], **settings)
    except FileNotFoundError:
        return []
    return [(s.uri.removeprefix(f"{root}/"), s.bytes, s.said) for s in found]


@pytest.mark.parametrize(
    "pattern",
    [
        *("", "/", "sub", "sub/", "a.MP4", "notes.txt", "nowhere", "nowhere.mp4", "su", ".git"),
        *("*.mp4", "*", "**/*.mp4", "sub/*", "sub/**", "s*", "s*/*", "*/deep", "**", "?.[mM]*4"),
        *("sub/*.mp4", "*.tar", "**/*.webm", "odd/[[]1]*", "odd/[1]*.mp4", "odd/a?b.mp4"),
    ],
)
def test_a_store_lists_what_a_folder_lists(trees, pattern):
    folder, bucket = trees
    for layout in (Layout(), Layout(labels="folder")):
        local_ones = seen(f"{folder}/{pattern}", folder, layout=layout)
        assert seen(f"{bucket}/{pattern}", bucket, layout=layout) == local_ones


def test_what_is_listed_is_not_nothing(trees):
    counts = {"": 12, "*.mp4": 1, "**/*.mp4": 10, "s*/*": 2, "?.[mM]*4": 2, "odd/[[]1]*": 1}
    for pattern, count in counts.items():
        assert len(seen(f"{trees[1]}/{pattern}", trees[1])) == count


def test_more_objects_than_a_page_holds(bucket):
    names = [f"{at:05d}.mp4" for at in range(1003)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: Root.of(bucket).replace(name, b"x"), names))
    assert [source.uri for source in list_sources([bucket])] == [f"{bucket}/{n}" for n in names]


def test_odd_names_are_read_under_their_names(trees, tmp_path):
    for source in list_sources([f"{trees[1]}/odd"]):
        name = source.uri.removeprefix(f"{trees[1]}/")
        check_readable(source, LIMIT)
        check_unchanged(source)
        with local(source, tmp_path / "scratch", max_bytes=LIMIT) as copy:
            assert Path(copy.path).read_bytes() == name.encode()
            assert fingerprint(source) == sha256_file(copy.path)
        assert list_sources([source.uri]) == [source]
    assert not list((tmp_path / "scratch").iterdir())


def test_a_large_object_comes_in_pieces_and_a_local_file_stays(bucket, tmp_path):
    data = bytes(range(256)) * 20_000
    Root.of(bucket).replace("x.mp4", data)
    [source] = list_sources([f"{bucket}/x.mp4"])
    with local(source, tmp_path, max_bytes=LIMIT) as copy:
        assert Path(copy.path).read_bytes() == data
        (tmp_path / "y.mp4").write_bytes(data)
    [plain] = list_sources([str(tmp_path / "y.mp4")])
    assert fingerprint(plain) == fingerprint(source)
    with local(plain, tmp_path / "unused", max_bytes=LIMIT) as copy:
        assert copy.path == plain.uri
    assert not (tmp_path / "unused").exists()
    with pytest.raises(SourceError, match="TooLarge"), local(source, tmp_path, max_bytes=100):
        pass


def test_objects_that_change_vanish_or_are_empty(bucket, tmp_path):
    for name in ("changes", "vanishes", "empty"):
        Root.of(bucket).replace(f"{name}.mp4", b"" if name == "empty" else b"1234")
    changes, empty, vanishes = list_sources([bucket])
    Root.of(bucket).replace("changes.mp4", b"5678")
    Root.of(bucket).delete("vanishes.mp4")
    for source, kind in ((changes, "Changed"), (vanishes, "Vanished")):
        with pytest.raises(SourceError, match=kind):
            check_unchanged(source)
    for source, kind in ((changes, "Changed"), (vanishes, "FileNotFoundError"), (empty, "Empty")):
        with pytest.raises(SourceError, match=kind), local(source, tmp_path, max_bytes=LIMIT):
            pass
    assert [fingerprint(source) for source in (changes, vanishes)] == ["", ""]
    assert not list(tmp_path.iterdir())


def test_a_full_scratch_is_a_storage_error_and_leaves_nothing(bucket, tmp_path):
    Root.of(bucket).replace("x.mp4", bytes(1 << 20))
    [source] = list_sources([f"{bucket}/x.mp4"])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(StorageError), local(source, tmp_path, max_bytes=LIMIT):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_manifests_name_objects(bucket, tmp_path):
    Root.of(bucket).replace("v/a.mp4", b"1234")
    Root.of(bucket).replace("frames/1.png", b"12")
    rows = f"video,caption\n{bucket}/v/a.mp4,hello\n{bucket}/gone.mp4,bye\n{bucket}/frames,still\n"
    (tmp_path / "m.csv").write_text(rows)
    Root.of(bucket).replace("lists/m.csv", b"video,caption\n../v/a.mp4,hello\n../gone.mp4,bye\n")
    for place in (str(tmp_path / "m.csv"), f"{bucket}/lists/m.csv"):
        found = list_sources([place], layout=Layout(frames_fps=10))
        named = {source.uri.removeprefix(f"{bucket}/"): source for source in found}
        assert named["v/a.mp4"].said == Said(captions=(Spoken(text="hello"),))
        [alone] = list_sources([f"{bucket}/v/a.mp4"])
        assert (named["v/a.mp4"].bytes, named["v/a.mp4"].etag) == (4, alone.etag)
        with pytest.raises(SourceError, match="FileNotFoundError"):
            check_readable(named["gone.mp4"], LIMIT)
    assert len(found) == 2
    [frames] = [
        s
        for s in list_sources([str(tmp_path / "m.csv")], layout=Layout(frames_fps=10))
        if s.frames_fps
    ]
    assert frames.bytes == 2


def test_places_that_are_none(object_store):  # noqa: ARG001  what starts the server
    with pytest.raises(FileNotFoundError, match="no video found"):
        list_sources(["s3://kinoray/no/such/prefix"])
    with pytest.raises(ValueError, match="name a bucket"):
        list_sources(["s3://"])
    for pattern in ("http://x/y.mp4", "gs://bucket/x"):
        with pytest.raises(ValueError, match=r"a path or s3://bucket/prefix is wanted"):
            list_sources([pattern])
    with pytest.raises(StorageError, match="no-such-bucket"):
        list_sources(["s3://no-such-bucket/prefix"])


def test_an_object_that_is_not_for_us_is_its_own_fate(monkeypatch):
    class Refuse(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(403)
            self.end_headers()

        do_GET = do_HEAD  # noqa: N815  the server's word

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        source = Source(uri="s3://refusing-bucket/x.mp4", bytes=3, mtime_ns=0)
        with pytest.raises(SourceError, match="PermissionError"):
            check_readable(source, LIMIT)
        assert fingerprint(source) == ""
        server.shutdown()
