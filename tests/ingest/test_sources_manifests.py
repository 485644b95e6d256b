import json
from math import inf
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.sources import (
    Layout,
    Said,
    SourceError,
    Spoken,
    check_readable,
    fingerprint,
    list_sources,
)

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20).map(str.strip)
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a.mp4", "sub/b.webm", "gone.mp4"]),
        TEXT,
        st.floats(0, 1e6),
        st.one_of(st.none(), st.floats(1e6 + 1, 1e9)),
    ),
    min_size=1,
    max_size=6,
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.mp4", "sub/b.webm"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def quoted(cell: object) -> str:
    return '"' + ("" if cell is None else str(cell)).replace('"', '""') + '"'


def write(path: Path, columns: list[str], rows: list[tuple]) -> Path:
    """Write a manifest as somebody would who reads no code of ours."""
    if path.suffix == ".parquet":
        table = [dict(zip(columns, row, strict=True)) for row in rows]
        pq.write_table(pa.Table.from_pylist(table), path, row_group_size=2)
    elif path.suffix == ".jsonl":
        lines = (json.dumps(dict(zip(columns, row, strict=True))) for row in rows)
        path.write_text("\n".join(lines) + "\n\n")
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        lines = (separator.join(map(quoted, row)) for row in [columns, *rows])
        path.write_bytes("\r\n".join(lines).encode())
    return path


def by_name(sources, folder):
    return {str(Path(source.uri).relative_to(folder)): source for source in sources}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@given(rows=ROWS)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_format_says_the_same(folder, suffix, rows):
    path = write(folder / f"m{suffix}", ["video", "caption", "start_s", "end_s"], rows)
    found = by_name(list_sources([str(path)]), folder)
    assert set(found) == {row[0] for row in rows}
    for name, source in found.items():
        spoken = [
            Spoken(text=text, start_s=start_s, end_s=inf if end_s is None else end_s)
            for video, text, start_s, end_s in rows
            if video == name and text
        ]
        assert source.said == Said(captions=tuple(dict.fromkeys(spoken)))


def test_rights_labels_and_files(folder):
    rows = [
        ("sub/b.webm", "two", "3", "CC-BY", "yes", 1),
        ("a.mp4", "one", "", "", "", 2),
        ("a.mp4", "another", "dogs", "", "", 3),
        ("gone.mp4", "", "", "", "", 4),
        (str(folder / "sub/../sub/b.webm"), "two", "", "", "", 5),
    ]
    columns = ["path", "caption", "label", "license", "consent", "some id"]
    found = by_name(list_sources([str(write(folder / "m.csv", columns, rows))]), folder)
    assert found["sub/b.webm"].said == Said(
        captions=(Spoken(text="two"),), label="3", licence="CC-BY", consent="yes"
    )
    assert found["a.mp4"].said.label == "dogs"
    assert [c.text for c in found["a.mp4"].said.captions] == ["one", "another"]
    assert found["a.mp4"].bytes == 5
    # A file that is missing is an input too: its fate says so.
    assert fingerprint(found["gone.mp4"]) == ""
    with pytest.raises(SourceError, match="FileNotFoundError"):
        check_readable(found["gone.mp4"], 100)


def test_a_manifest_adds_to_what_else_names_a_file(folder):
    write(folder / "m.csv", ["video", "caption", "label"], [("a.mp4", "hello", "x")])
    plain = list_sources([str(folder)])
    both = list_sources([str(folder), str(folder / "*.csv")])
    assert [s.uri for s in both] == [s.uri for s in plain]
    assert by_name(both, folder)["a.mp4"].said.label == "x"
    assert both == list_sources([str(folder / "m.csv"), str(folder)])
    write(folder / "n.csv", ["video", "label"], [("a.mp4", "y")])
    with pytest.raises(ValueError, match=r"a\.mp4: two different values of label: 'x' and 'y'"):
        list_sources([str(folder / "*.csv")])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("m.csv", "video,caption\na.mp4,x,y\n", r"m\.csv:2: 3 cells, but 2 columns"),
        ("m.csv", "video,caption\na.mp4,x\n\n,y\n", r"m\.csv:4: it names no video"),
        ("m.csv", 'video,caption\na.mp4,"x\ny"\na.mp4,"', r"m\.csv:\d: unexpected end"),
        ("m.csv", "caption\nx\n", r"m\.csv:1: one column video, path, .*url is wanted; it has"),
        ("m.csv", "path,url\nx,y\n", r"m\.csv:1: one column"),
        ("m.csv", "video,captoin\na,x\n", r"m\.csv:1: column 'captoin': did you mean 'caption'"),
        ("m.csv", "video,video\na,x\n", r"m\.csv:1: a column is named twice"),
        ("m.csv", "video,start_s\na,soon\n", r"m\.csv:2: start_s='soon'"),
        ("m.csv", "video,start_s,end_s\na,3,3\n", r"m\.csv:2: start_s=3 is not before end_s=3"),
        ("m.csv", "video,end_s\na,nan\n", r"m\.csv:2: end_s='nan'"),
        ("m.csv", "video,label\na,x\nb,x\na,y\n", r"m\.csv:4: two different values of label"),
        ("m.csv", "video\nhttp://x/y.mp4\n", r"m\.csv:2: http://x/y\.mp4: only files and s3://"),
        ("m.csv", "video\na\0.mp4\n", r"m\.csv:2: it names no video"),
        ("m.csv", b"video\na\n\xff.mp4\n", r"m\.csv:3: not UTF-8"),
        ("m.jsonl", '{"video": "a"}\n\n{"video": 3}\n', r"m\.jsonl:3: video is int, not text"),
        ("m.jsonl", '{"video": "a"}\n["a"]\n', r"m\.jsonl:2: not a JSON object"),
        ("m.jsonl", '{"video": "a", "video": "b"}\n', r"m\.jsonl:1: a key is named twice"),
        ("m.jsonl", '{"video": "a", "caption": "\\ud800"}', r"m\.jsonl:1: caption is no valid"),
        ("m.jsonl", '{"video": "a", "start_s": true}', r"m\.jsonl:1: start_s=True"),
        ("m.jsonl", "[" * 100000, r"m\.jsonl:1: not JSON"),
        ("m.parquet", b"PAR1 and no more", r"m\.parquet: "),
        ("m.json", "{}", r"m\.json: no MSR-VTT file"),
    ],
)
def test_a_malformed_row_is_one_error_with_file_and_line(folder, name, text, words):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=words):
        list_sources([str(folder / name)])


def test_wrong_types_in_parquet(folder):
    pq.write_table(pa.table({"video": ["a.mp4", None]}), folder / "m.parquet")
    with pytest.raises(ValueError, match=r"m\.parquet:2: it names no video"):
        list_sources([str(folder / "m.parquet")])
    pq.write_table(pa.table({"video": ["a.mp4"], "caption": [["x"]]}), folder / "m.parquet")
    with pytest.raises(ValueError, match=r"m\.parquet:1: caption is list, not text"):
        list_sources([str(folder / "m.parquet")])


def test_empty_and_absent_manifests(folder):
    (folder / "m.csv").write_text("video,caption\n")
    for name in ("m.csv", "absent.csv", "*.tsv"):
        with pytest.raises(FileNotFoundError, match="no video found"):
            list_sources([str(folder / name)])
    (folder / "folder.csv").mkdir()
    (folder / "folder.csv" / "a.mp4").write_bytes(b"x")
    assert len(list_sources([str(folder / "folder.csv")])) == 1


def test_a_manifest_may_name_folders_of_frames(folder):
    for name in ("vid/1.png", "vid/2.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"12")
    (folder / "none").mkdir()
    rows = [("vid", "frames"), ("none", "no frames"), ("a.mp4", "a video")]
    path = write(folder / "m.csv", ["video", "caption"], rows)
    found = by_name(list_sources([str(path)], layout=Layout(frames_fps=30)), folder)
    assert (found["vid"].frames_fps, found["vid"].bytes) == (30, 4)
    assert found["a.mp4"].frames_fps is None
    with pytest.raises(SourceError, match="EmptyFolder"):
        check_readable(found["none"], 100)


MSRVTT = {
    "info": {"year": "2016"},
    "videos": [
        {"video_id": "video0", "category": 9, "url": "u", "start time": 1.5, "split": "train"},
        {"video_id": "video1", "category": 16, "url": "u", "split": "validate"},
    ],
    "sentences": [
        {"sen_id": 0, "video_id": "video1", "caption": "a man sings"},
        {"sen_id": 1, "video_id": "video0", "caption": "a car drives"},
        {"sen_id": 2, "video_id": "video0", "caption": "a car drives"},
        {"sen_id": 3, "video_id": "video0", "caption": "cars race"},
    ],
}


def test_msrvtt(folder):
    path = folder / "train_val_videodatainfo.json"
    path.write_text(json.dumps(MSRVTT))
    (folder / "TrainValVideo").mkdir()
    (folder / "TrainValVideo" / "video0.mp4").write_bytes(b"0")
    (folder / "TrainValVideo" / "video7.mp4").write_bytes(b"of another list")
    found = by_name(list_sources([str(path)]), folder)
    assert set(found) == {"TrainValVideo/video0.mp4", "video1.mp4"}
    cars = (Spoken(text="a car drives"), Spoken(text="cars race"))
    assert found["TrainValVideo/video0.mp4"].said == Said(captions=cars, label="9")
    with pytest.raises(SourceError, match="FileNotFoundError"):
        check_readable(found["video1.mp4"], 100)
    (folder / "video0.webm").write_bytes(b"0")
    with pytest.raises(ValueError, match=r"video0 is .*video0\.mp4 and .*video0\.webm"):
        list_sources([str(path)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sentences": [{"video_id": "video9", "caption": "x"}]}, r"sentences\[0\]: 'video9' is n"),
        ({"sentences": [{"video_id": "video0", "caption": 3}]}, r"sentences\[0\]: caption is int"),
        ({"videos": [{"video_id": "../x"}]}, r"videos\[0\]: video_id='\.\./x' is no name"),
        ({"videos": [{"video_id": "x"}] * 2}, r"videos\[1\]: 'x' is named twice"),
        ({"videos": "none"}, "a list 'videos' of objects is wanted"),
    ],
)
def test_malformed_msrvtt(folder, change, words):
    (folder / "m.json").write_text(json.dumps(MSRVTT | change))
    with pytest.raises(ValueError, match=words):
        list_sources([str(folder / "m.json")])


def test_the_captions_of_the_shared_videos_are_a_manifest(shared_videos):
    """Each video has the words of its own row."""
    captions = shared_videos / "captions.jsonl"
    rows = [json.loads(line) for line in captions.read_text().splitlines()]
    found = {source.uri.rpartition("/")[2]: source for source in list_sources([str(captions)])}
    assert len(found) == len(rows) > 0
    for row in rows:
        source = found[row["file"]]
        assert source.bytes == (shared_videos / row["file"]).stat().st_size
        assert [caption.text for caption in source.said.captions] == (
            [row["caption"]] if row["caption"] else []
        )
        assert source.said.label == (row["label"] or "")
