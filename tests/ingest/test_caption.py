import json

import pytest

from ingest.caption import CAPTION_CHARS, Captions, clean, named


@pytest.fixture
def video(tmp_path):
    return tmp_path / "TwoDogs_running-fast 03.mp4"


def test_what_a_name_says(video):
    assert named(video, 0, 5) == "two dogs running fast"
    assert named(video.with_name("0001.mp4"), 0, 5) == ""


def test_sidecars(video):
    assert Captions().beside(video, 0, 5) == ""
    video.with_suffix(".json").write_text(json.dumps({"caption": "from json"}))
    assert Captions().beside(video, 0, 5) == "from json"
    video.with_suffix(".txt").write_text("  two\tdogs\n\nrun \x00 ")
    assert clean(Captions().beside(video, 0, 5)) == "two dogs run"
    video.with_suffix(".txt").write_text(" \n")
    video.with_suffix(".json").write_text("{broken")
    assert Captions().beside(video, 0, 5) == ""


def test_the_row_that_overlaps_most(video, tmp_path):
    rows = [
        {"video": video.name, "start_s": 0, "end_s": 6, "caption": "first"},
        {"video": video.name, "start_s": 6, "end_s": 20, "caption": "second"},
        {"video": "other.mp4", "caption": "whole"},
    ]
    file = tmp_path / "captions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    captions = Captions(caption_file=file)
    captions.check()
    assert captions.beside(video, 0, 5) == "first"
    assert captions.beside(video, 4, 9) == "second"
    assert captions.beside(video, 25, 30) == ""
    assert captions.beside(video.with_name("other.mp4"), 90, 95) == "whole"
    video.with_suffix(".txt").write_text("beside")
    assert captions.beside(video, 0, 5) == "first"  # the file that was named goes first
    assert captions.beside(video, 25, 30) == "beside"


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
