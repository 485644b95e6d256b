import pytest

from ingest.files import StorageError, atomic_folder, atomic_write


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "deep" / "a.json"
    atomic_write(path, b"one")
    atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out"

    def fail():
        with atomic_folder(path) as folder:
            (folder / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(path) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "all").write_text("x")
        assert not path.exists()
    assert (path / "sub" / "all").read_text() == "x"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_occupied_place_is_told_and_untouched(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / "mine").write_text("x")
    with pytest.raises(StorageError, match="out"), atomic_folder(path) as folder:
        (folder / "new").write_text("y")
    assert [p.name for p in path.iterdir()] == ["mine"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        atomic_write(tmp_path / "file" / "x", b"")
