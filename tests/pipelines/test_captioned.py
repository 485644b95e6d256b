"""What captions are made from is known by digest, so that a run that is finished begins again for another text."""

import json
from pathlib import Path

from ingest.caption import SIDECAR_BYTES, Captions
from ingest.sources import list_sources
from pipelines import captioned
from tests.around import Heard


def test_changed_and_added_texts(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").write_bytes(b"x")
        (tmp_path / f"{name}.txt").write_text(name)

    def told(*captioners: str) -> dict[str, str]:
        found = captioned.digests(Captions(captioners=captioners), list_sources([str(tmp_path)]))
        return {uri.rsplit("/", 1)[1]: value for uri, value in found.items()}

    first = told("sidecar", "name")
    (tmp_path / "c.mp4").write_bytes(b"y")
    grown = told("sidecar", "name")
    assert {name: grown[name] for name in first} == first
    other = told("name")
    assert not set(other.values()) & set(grown.values())
    (tmp_path / "b.txt").write_text("another text")
    changed = told("sidecar", "name")
    assert [name for name in grown if changed[name] != grown[name]] == ["b.mp4"]


def test_texts_that_cannot_be_read_stop_nothing(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").write_bytes(b"x")
    (tmp_path / "a.txt").write_text("secret")
    (tmp_path / "b.txt").write_bytes(b"x" * (SIDECAR_BYTES + 1))
    opened, read = Path.open, []

    class Counting:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_told):
            self.file.close()

        def read(self, size=-1):
            read.append(size)
            return self.file.read(size)

    def guarded(path, *words, **more):
        if path.name == "a.txt":  # the tests may run as root, who may read all
            raise PermissionError(13, "not for you", str(path))
        return Counting(opened(path, *words, **more))

    monkeypatch.setattr(Path, "open", guarded)
    found = captioned.digests(Captions(), list_sources([str(tmp_path)]))
    assert len(found) == 2
    assert read == [SIDECAR_BYTES]


def test_rows_that_mean_no_video_or_several_are_told(tmp_path):
    for name in ("a/001.mp4", "b/001.mp4", "c/002.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    rows = [{"video": name, "caption": "x"} for name in ("001.mp4", "002.mp4", *"defgh")]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    sources, heard = list_sources([str(tmp_path)]), Heard()
    captioned.tell_unmatched(Captions(caption_file=file), sources, heard)
    unknown, ambiguous = heard.warnings
    assert unknown == f"{file}: 5 names mean no listed video: d, e, f"
    assert ambiguous.startswith(f"{file}: 1 names mean several listed videos")
    assert ambiguous.endswith("001.mp4")
    file.write_text(json.dumps(rows[1]))
    captioned.tell_unmatched(Captions(caption_file=file), sources, heard)
    assert len(heard.warnings) == 2
    only_names = Captions(caption_file=file, captioners=("name",))
    captioned.tell_unmatched(only_names, sources, heard)
    assert "not read" in heard.warnings[2]
