import json
import os

import pytest

from ingest.caption import CAPTION_CHARS, SIDECAR_BYTES, Captions, beside, best_row, clean, named
from ingest.caption_file import matched


@pytest.fixture
def video(tmp_path):
    return tmp_path / "TwoDogs_running-fast 03.mp4"


def test_what_a_name_says(video):
    assert named(video, 0, 5) == "two dogs running fast"
    assert named(video.with_name("0001.mp4"), 0, 5) == ""


def test_sidecars(video):
    assert beside(video) == ""
    video.with_suffix(".json").write_text(json.dumps({"caption": "from json"}))
    assert beside(video) == "from json"
    video.with_suffix(".txt").write_text("  two\tdogs\n\nrun \x00 ")
    assert clean(beside(video)) == "two dogs run"
    video.with_suffix(".txt").write_text(" \n")
    video.with_suffix(".json").write_text("{broken")
    assert beside(video) == ""


def test_sidecars_that_are_no_texts(video):
    side = video.with_suffix(".txt")
    side.mkdir()
    assert beside(video) == ""
    side.rmdir()
    os.mkfifo(side)  # nobody writes into it: reading would wait for ever
    assert beside(video) == ""
    side.unlink()
    with side.open("w") as file:
        file.write("dogs ")
        file.truncate(1 << 40)  # all but its beginning is holes
    assert len(beside(video)) == SIDECAR_BYTES


@pytest.fixture
def written(tmp_path):
    def write(*rows):
        file = tmp_path / "captions.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
        return file

    return write


def test_the_row_that_overlaps_most(video, written):
    rows = [
        {"video": video.name, "start_s": 0, "end_s": 6, "caption": "first"},
        {"video": video.name, "start_s": 6, "end_s": 20, "caption": "second"},
        {"video": "other.mp4", "caption": "whole"},
    ]
    other = str(video.with_name("other.mp4"))
    found = matched(written(*rows), [str(video), other]).rows
    assert best_row(found[str(video)], 0, 5) == "first"
    assert best_row(found[str(video)], 4, 9) == "second"
    assert best_row(found[str(video)], 25, 30) == ""
    assert best_row(found[other], 90, 95) == "whole"


def test_whose_row_it_is(tmp_path, written):
    names = ("001.mp4", "a/001.mp4", "b/001.mp4", "c/a/001.mp4", "b/only.mp4", "s/t.tar/x/9.mp4")
    videos = {name: str(tmp_path / name) for name in names}
    rows = ("a/001.mp4", "c/a/001.mp4", videos["b/001.mp4"], "only.mp4", "x/9.mp4", "b\\only.mp4")
    file = written(*({"video": name, "caption": name} for name in rows))
    found = matched(file, videos.values())
    texts = {uri: [row.text for row in said] for uri, said in found.rows.items()}
    assert texts == {
        videos["a/001.mp4"]: ["a/001.mp4"],
        videos["c/a/001.mp4"]: ["c/a/001.mp4"],
        videos["b/001.mp4"]: [videos["b/001.mp4"]],
        videos["b/only.mp4"]: ["b\\only.mp4", "only.mp4"],
        videos["s/t.tar/x/9.mp4"]: ["x/9.mp4"],
    }
    assert (found.unknown, found.ambiguous) == ((), ())
    elsewhere = [f"/elsewhere/{name}" for name in names]
    file = written(*({"video": name, "caption": name} for name in (*rows, "gone.mp4", "001.mp4")))
    found = matched(file, elsewhere)
    assert set(found.rows) == {f"/elsewhere/{n}" for n in ("c/a/001.mp4", "b/only.mp4", "s/t.tar/x/9.mp4")}  # fmt: skip
    assert found.unknown == (videos["b/001.mp4"], "gone.mp4")
    assert found.ambiguous == ("a/001.mp4", "001.mp4")


@pytest.mark.parametrize("line", ["{", "[]", '{"video": "a"}', '{"video": "a", "caption": null}',
                                  '{"video": "a", "caption": "b", "start_s": "x"}'])  # fmt: skip
def test_a_bad_row_is_named_by_file_and_line(tmp_path, line):
    file = tmp_path / "captions.jsonl"
    file.write_text('{"video": "a", "caption": "b"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"captions\.jsonl:2"):
        Captions(caption_file=file).check()


def test_a_missing_file_and_an_unknown_captioner(tmp_path):
    with pytest.raises(FileNotFoundError):
        Captions(caption_file=tmp_path / "absent.jsonl").check()
    with pytest.raises(ValueError, match="oracle"):
        Captions(captioners=("oracle",))


def test_clean_up():
    assert clean("a\u0000b\r\n c\u200b") == "a b c"
    assert len(clean("x y " * CAPTION_CHARS)) <= CAPTION_CHARS
    assert clean("\udcff").isprintable()
