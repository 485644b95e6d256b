"""A changed caption is noticed: refused with a reason, never finished with the old text."""

import pytest

from ingest.caption import Captions
from ingest.sources import list_sources
from pipelines import captioned
from pipelines.output import Occupied


def test_changed_and_added_texts(tmp_path):
    videos, dataset = tmp_path / "videos", tmp_path / "dataset"
    videos.mkdir()
    for name in ("a", "b"):
        (videos / f"{name}.mp4").write_bytes(b"x")
        (videos / f"{name}.txt").write_text(name)

    def run(number: int, *captioners: str) -> None:
        folder = dataset / "runs" / str(number)
        folder.mkdir(parents=True)
        said = captioned.digests(Captions(captioners=captioners), list_sources([str(videos)]))
        captioned.note(folder, said, dataset=str(dataset))

    run(1, "sidecar", "name")
    run(2, "sidecar", "name")
    (videos / "c.mp4").write_bytes(b"y")
    (videos / "c.txt").write_text("a grown folder is no change of the others")
    run(3, "sidecar", "name")
    with pytest.raises(Occupied, match=r"a\.mp4 with other captions"):
        run(4, "name")
    (videos / "b.txt").write_text("another text")
    with pytest.raises(Occupied, match=r"b\.mp4 with other captions"):
        run(5, "sidecar", "name")
