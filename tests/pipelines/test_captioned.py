"""What captions are made from is known by digest, so that a run that is finished begins again for another text."""

from ingest.caption import Captions
from ingest.sources import list_sources
from pipelines import captioned


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
