import json

import pytest

from ingest.caption import CAPTION_CHARS, Captions, clean


@pytest.fixture
def video(tmp_path):
    return tmp_path / "TwoDogs_running-fast 03.mp4"


def said(captions, video, start_s=0.0, end_s=5.0):
    caption = captions.caption(video, start_s, end_s)
    return caption and (caption.text, caption.producer, caption.rank)


def test_name_is_the_last_resort(video):
    assert said(Captions(), video) == ("two dogs running fast", "name/v1", 2)
    assert said(Captions(captioners=("sidecar",)), video) is None
    assert said(Captions(), video.with_name("0001.mp4")) is None


def test_sidecars(video):
    video.with_suffix(".json").write_text(json.dumps({"caption": "from json"}))
    assert said(Captions(), video)[0] == "from json"
    video.with_suffix(".txt").write_text("  two\tdogs\n\nrun \x00 ")
    assert said(Captions(), video) == ("two dogs run", "sidecar/v1", 1)
    assert said(Captions(captioners=("name",)), video)[0] == "two dogs running fast"
    video.with_suffix(".txt").write_text(" \n")
    video.with_suffix(".json").write_text("{broken")
    assert said(Captions(), video)[1] == "name/v1"


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
    assert said(captions, video, 0, 5)[0] == "first"
    assert said(captions, video, 4, 9)[0] == "second"
    assert said(captions, video, 25, 30)[1] == "name/v1"
    assert said(captions, video.with_name("other.mp4"), 90, 95)[0] == "whole"
    video.with_suffix(".txt").write_text("beside")
    assert said(captions, video, 0, 5)[0] == "first"  # the file that was named goes first
    assert said(captions, video, 25, 30)[0] == "beside"


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
