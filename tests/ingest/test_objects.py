import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from ingest.files import StorageError
from ingest.objects import NotAPlace, Root


@pytest.fixture(params=["folder", "store"])
def root(request, tmp_path):
    return Root.of(tmp_path if request.param == "folder" else request.getfixturevalue("bucket"))


def test_what_is_written_is_read(root, tmp_path):
    root.replace("a/b", b"0123456789")
    assert (root.read("a/b"), root.read_range("a/b", 2, 3), root.size("a/b")) == (
        b"0123456789",
        b"234",
        10,
    )
    root.replace("a/b", b"new")
    root.replace("a/d/e", b"x")
    assert root.read("a/b") == b"new"
    assert {e.name: e.bytes for e in root.names()} == {"a/b": 3, "a/d/e": 1}
    assert {e.name for e in root.names("a/d")} == {"a/d/e"}
    assert (root.folders("a"), root.folders(""), root.folders("zzz")) == (["d"], ["a"], [])
    finished = tmp_path / "finished"
    finished.write_bytes(b"shard")
    root.upload("data/ab/x.arrow", finished)
    assert root.read("data/ab/x.arrow") == b"shard"
    assert not finished.exists()
    root.delete("a/b")
    root.delete("a/b")
    assert not root.exists("a/b")
    assert pickle.loads(pickle.dumps(root)) == root


def test_only_one_of_many_creates_wins(root):
    root.self_test()
    with ThreadPoolExecutor(8) as pool:
        for name in ("x", "y", "z"):
            won = list(pool.map(lambda n, name=name: root.create(name, b"%d" % n), range(16)))
            assert sum(won) == 1
            assert root.read(name) == b"%d" % won.index(True)
    assert len(list(root.names())) == 3  # nothing temporary, no self-test is left


def test_what_is_absent_and_what_is_no_name(root):
    for ask in (root.read, root.size, lambda name: root.read_range(name, 0, 1)):
        with pytest.raises(FileNotFoundError, match="no/such"):
            ask("no/such")
    for name in ("", "/etc/passwd", "../x", "a/../../x"):
        with pytest.raises(NotAPlace):
            root.read(name)


def test_places():
    assert Root.of("s3://b/p/q/").uri == "s3://b/p/q"
    assert Root.of("relative").uri == os.path.abspath("relative")  # noqa: PTH100
    assert Root.of("x/../y").uri == os.path.abspath("y")  # noqa: PTH100
    assert Root.of("x").overlaps(Root.of("x/y"))
    assert Root.of("x/y").overlaps(Root.of("x"))
    assert not Root.of("x").overlaps(Root.of("xy"))
    for text in ("s3://bucket", "gs://b/p", "s3:/b/p", "http://x/y", "a%20b"):
        with pytest.raises(NotAPlace):
            Root.of(text)
    with pytest.raises(NotAPlace, match="needs a folder"):
        _ = Root.of("s3://b/p").path


@pytest.mark.usefixtures("object_store")
def test_a_bucket_that_does_not_exist():
    with pytest.raises(StorageError, match="no-such-bucket"):
        Root.of("s3://no-such-bucket/p").replace("x", b"1")


def test_a_store_that_loses_commits_is_refused(root, monkeypatch):
    monkeypatch.setattr(Root, "create", lambda self, name, data: self.replace(name, data) or True)
    with pytest.raises(StorageError, match="twice"):
        root.self_test()
