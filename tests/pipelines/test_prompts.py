"""Prompt files: what is written comes back, hostile text included; what is wrong is said in one line."""

import csv
import hashlib
import io
import json
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.output import WrongInput
from pipelines.prompts import (
    TAKES,
    Prompt,
    file_sha256,
    is_there,
    prompt_id,
    read_prompts,
    read_suite,
)

HOSTILE = (
    "x" * 10_000,
    "a 🐇 with 👩‍👩‍👧 and \U0001f1e9\U0001f1ea",
    "\"quotes\", 'more', `all` and , ; commas",
    "../../../../etc/passwd",
    "/absolute/\\back\\slash",
    "مرحبا \u202eback to front\u202c",
    "bell \x07, escape \x1b[31m, page \x0c, line \u2028 and \x85 end",
    "$(touch x); {curly} %s %n <img onerror=x>",
    "=1+1",
    "null",
    "\ufeff in the middle \ufeff",
    "e\u0301 as two",
)
# One line of any characters that UTF-8 has, NUL left out: that is refused.
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0")
TEXTS = st.text(CHARACTERS, min_size=1).filter(lambda text: text.strip())
LINES = TEXTS.filter(lambda text: not set("\r\n") & set(text.strip()))
MANY = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def clean(text):
    return unicodedata.normalize("NFC", text.strip())


def distinct(texts):
    return list(dict.fromkeys(map(clean, texts)))


def texts_of(path, **choices):
    return [prompt.text for prompt in read_prompts(path, None, **choices)]


def read_or_said(path):
    try:
        return read_prompts(path, None), ""
    except WrongInput as error:
        return [], str(error)


def as_txt(texts):
    return "\n".join(texts)


def as_jsonl(texts):
    return "\n".join(json.dumps({"prompt": text}, ensure_ascii=False) for text in texts)


def as_csv(texts):
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["note", "prompt"])
    writer.writerows([["n", text] for text in texts])
    return out.getvalue()


def as_json(texts):
    return json.dumps([{"prompt": text} for text in texts])


FORMS = {"txt": as_txt, "jsonl": as_jsonl, "csv": as_csv, "json": as_json}


@pytest.fixture
def write(tmp_path):
    """Give a function that writes a file beside pictures, a video and a style that prompts may name."""
    for name in ("a.png", "b.png", "v.mp4", "m.png"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "style").mkdir()

    def written(name, content):
        path = tmp_path / name
        data = content if isinstance(content, (str, bytes)) else json.dumps(content)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return written


@pytest.mark.parametrize("form", FORMS)
def test_hostile_texts_come_back_from_every_form(write, form):
    path = write(f"p.{form}", FORMS[form](HOSTILE))
    assert texts_of(path) == distinct(HOSTILE)
    assert [prompt.id for prompt in read_prompts(path, None)] == [
        hashlib.sha256(text.encode()).hexdigest()[:16] for text in distinct(HOSTILE)
    ]


@MANY
@given(texts=st.lists(LINES, min_size=1, max_size=6), form=st.sampled_from(sorted(FORMS)))
def test_one_line_texts_round_trip_in_every_form(tmp_path, texts, form):
    path = tmp_path / f"p.{form}"
    path.write_bytes(FORMS[form](texts).encode())
    suite = read_suite(path)
    assert [prompt.text for prompt in suite.prompts] == distinct(texts)
    assert suite.duplicates == len(texts) - len(suite.prompts)


@MANY
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=6), form=st.sampled_from(["jsonl", "csv", "json"])
)
def test_texts_of_several_lines_round_trip_where_a_form_has_them(tmp_path, texts, form):
    path = tmp_path / f"p.{form}"
    path.write_bytes(FORMS[form](texts).encode())
    assert texts_of(path) == distinct(texts)


@MANY
@given(data=st.binary(max_size=200), form=st.sampled_from(sorted(FORMS)))
def test_any_bytes_are_prompts_or_one_line(tmp_path, data, form):
    path = tmp_path / f"p.{form}"
    path.write_bytes(data)
    found, said = read_or_said(path)
    assert found or said.startswith(str(path))
    assert found or (said.isprintable() and "next: " in said)
    assert all(prompt.text == clean(prompt.text) for prompt in found)
    assert all(set(prompt.id) <= set("0123456789abcdef") for prompt in found)


@MANY
@given(
    whole=st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["prompt", "task", "image", "strength", "seeds", "sentences", "x"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_prompts_or_one_line(tmp_path, whole):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(whole))
    found, said = read_or_said(path)
    assert found or (said.isprintable() and "next: " in said)
    for prompt in found:
        assert isinstance(json.loads(prompt.more), dict)
        prompt.more.encode()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_and_line_ends_of_other_systems(write, form, mark, end):
    text = FORMS[form](["one", "two"]).replace("\r\n", "\n").replace("\n", end)
    assert texts_of(write(f"p.{form}", mark + text + end + end)) == ["one", "two"]


def test_an_id_is_that_of_the_text_in_any_set_and_in_any_normal_form(write):
    composed, apart = "caf\u00e9", "cafe\u0301"
    one = read_prompts(write("a.txt", f"  {apart} \n"), None)
    two = read_prompts(write("b.jsonl", as_jsonl(["other", composed])), None)
    assert one[0].id == two[1].id == prompt_id(composed) == Prompt(text=apart).id
    # known from outside: sha256 of the five letters
    assert prompt_id("hello") == "2cf24dba5fb0a30e"


def test_case_tells_prompts_apart_and_repeats_are_counted(write):
    suite = read_suite(write("p.txt", "a fox\nA fox\n\n a fox\na fox "))
    assert [prompt.text for prompt in suite.prompts] == ["a fox", "A fox"]
    assert suite.duplicates == 2
    assert [prompt.text for prompt in read_prompts(write("p.txt", "a\na\nb\nc"), 2)] == ["a", "b"]


def test_vbench_entries_of_one_prompt_are_one(write):
    entries = [
        {"prompt_en": "a red car", "dimension": ["color"], "auxiliary_info": {"color": "red"}},
        {"prompt_en": "a cat", "dimension": ["subject_consistency", "dynamic_degree"]},
        {
            "prompt_en": "a red car",
            "dimension": ["scene", "color"],
            "auxiliary_info": {"scene": {"scene": "road"}},
        },
    ]
    suite = read_suite(write("full_info.json", entries))
    assert suite.duplicates == 1
    car, cat = suite.prompts
    assert json.loads(car.more) == {
        "dimension": ["color", "scene"],
        "auxiliary_info": {"color": "red", "scene": {"scene": "road"}},
    }
    assert json.loads(cat.more) == {"dimension": ["subject_consistency", "dynamic_degree"]}
    assert car.id == prompt_id("a red car")  # what a suite says of it decides no pixel


def test_a_list_of_the_size_of_vbench_has_as_many_prompts_as_distinct_texts(write):
    entries = [{"prompt_en": f"prompt {k % 944}", "dimension": [f"d{k % 16}"]} for k in range(946)]
    suite = read_suite(write("full.json", entries))
    assert (len(suite.prompts), suite.duplicates) == (944, 2)


def test_evalcrafter_names_are_line_numbers_and_a_repeated_prompt_has_all_of_its_names(write):
    lines = [f"prompt {k}" for k in range(700)]
    lines[18] = lines[5]
    prompts = read_prompts(write("p.txt", "\n".join(lines)), None)
    assert len(prompts) == 699
    assert (prompts[0].name, prompts[-1].name) == ("0000", "0699")
    assert prompts[5].name == "0005"
    assert json.loads(prompts[5].more) == {"names": ["0005", "0018"]}
    metadata = {f"{k:04d}": {"prompt": line, "attributes": {}} for k, line in enumerate(lines)}
    again = read_prompts(write("metadata.json", metadata), None)
    assert [(p.id, p.name) for p in again] == [(p.id, p.name) for p in prompts]
    assert json.loads(again[5].more) == {"attributes": {}, "names": ["0005", "0018"]}
    listed = read_prompts(write("list.json", lines), None)
    assert [(p.id, p.name) for p in listed] == [(p.id, p.name) for p in prompts]


MSRVTT = {
    "info": {},
    "videos": [
        {"video_id": "video0", "split": "train", "category": 9},
        {"video_id": "video1", "split": "test", "category": 3},
        {"video_id": "video2", "split": "test", "category": 9},
    ],
    "sentences": [
        {"video_id": "video2", "caption": "a dog", "sen_id": 0},
        {"video_id": "video1", "caption": "a man", "sen_id": 1},
        {"video_id": "video0", "caption": "a car", "sen_id": 2},
        {"video_id": "video1", "caption": "a dog", "sen_id": 3},
        {"video_id": "video2", "caption": "a cat", "sen_id": 4},
    ],
}


def test_msrvtt_gives_one_caption_of_each_video_or_all(write):
    path = write("msrvtt.json", MSRVTT)
    first = read_prompts(path, None)
    assert [(p.name, p.text) for p in first] == [
        ("video0", "a car"), ("video1", "a man"), ("video2", "a dog"),
    ]  # fmt: skip
    assert json.loads(first[0].more) == {"category": 9, "split": "train"}
    every = read_suite(path, captions="all", split="test")
    assert [(p.name, p.text) for p in every.prompts] == [
        ("video1", "a man"), ("video1", "a dog"), ("video2", "a cat"),
    ]  # fmt: skip
    assert every.duplicates == 1
    assert json.loads(every.prompts[1].more) == {
        "category": [3, 9], "split": "test", "names": ["video1", "video2"],
    }  # fmt: skip
    bare = {"sentences": MSRVTT["sentences"]}
    assert texts_of(write("bare.json", bare)) == ["a dog", "a man", "a car"]


def test_ucf_rows_have_a_class_and_so_many_samples(write):
    table = 'class,prompt,samples\nArchery,somebody draws a bow,100\nBiking,"a ride, uphill",\n'
    prompts = read_prompts(write("ucf.csv", table), None)
    assert [(p.num_seeds, json.loads(p.more)) for p in prompts] == [
        (100, {"class": "Archery"}),
        (0, {"class": "Biking"}),
    ]
    assert prompts[1].text == "a ride, uphill"
    lines = '{"class": "Archery", "text": "somebody draws a bow", "seeds": 100}'
    (same,) = read_prompts(write("ucf.jsonl", lines), None)
    assert same == replace(prompts[0], name="")
    shared = read_prompts(write("s.csv", "class,prompt\nA,one\nB,one\nA,one"), None)
    assert json.loads(shared[0].more) == {"class": ["A", "B"]}


def test_a_csv_cell_may_go_over_lines_and_errors_still_name_its_line(write):
    table = 'prompt,task\r\n"first\r\nsecond",text\r\n\r\n,,\r\n"third\nfourth",txet\r\n'
    with pytest.raises(WrongInput, match=r"p\.csv, line 6: task: 'txet' is unknown; did you mean"):
        read_prompts(write("p.csv", table), None)


ROWS = {
    "text": {},
    "image": {"image": "a.png"},
    "first_last": {"image": "a.png", "last_image": "b.png"},
    "predict": {"video": "v.mp4", "frames_known": 8},
    "inpaint": {"video": "v.mp4", "mask": "m.png"},
    "outpaint": {"video": "v.mp4", "margin": 0.25},
    "cinemagraph": {"image": "a.png", "mask": "m.png"},
    "video": {"video": "v.mp4", "strength": 0.5},
}


@pytest.mark.parametrize("task", TAKES)
def test_every_task_from_a_table_and_from_json(write, tmp_path, task):
    row = {"prompt": "x", "task": task, **ROWS[task], "num_seeds": 4, "negative": "blur"}
    (prompt,) = read_prompts(write("p.json", [row]), None)
    table = ",".join(row) + "\n" + ",".join(map(str, row.values()))
    assert read_prompts(write("p.csv", table), None) == [prompt]
    assert (prompt.task, prompt.num_seeds, prompt.negative) == (task, 4, "blur")
    for column, value in ROWS[task].items():
        wanted = str(tmp_path / value) if isinstance(value, str) else value
        assert getattr(prompt, column) == wanted


@pytest.mark.parametrize("task", [task for task in TAKES if task != "text"])
def test_each_column_of_a_task_is_needed_and_counts_in_the_id(write, tmp_path, task):
    row = {"prompt": "x", "task": task, **ROWS[task]}
    (prompt,) = read_prompts(write("p.json", [row]), None)
    ids = {prompt.id, prompt_id("x")}
    for column, value in ROWS[task].items():
        lacking = {name: one for name, one in row.items() if name != column}
        with pytest.raises(WrongInput, match=rf"entry 1: {column}: task {task} needs it; next: "):
            read_prompts(write("p.json", [lacking]), None)
        if isinstance(value, str):
            (tmp_path / "other").write_bytes(b"other")
        changed = row | {column: "other" if isinstance(value, str) else value / 2}
        ids.add(read_prompts(write("p.json", [changed]), None)[0].id)
    ids.add(replace(prompt, negative="blur", id="").id)
    assert len(ids) == 3 + len(ROWS[task])
    for column in set().union(*TAKES.values()) - set(TAKES[task]):
        value = next(given[column] for given in ROWS.values() if column in given)
        with pytest.raises(WrongInput, match=rf"{column}: task {task} takes none; next: "):
            read_prompts(write("p.json", [row | {column: value}]), None)


def test_an_id_goes_by_what_files_hold_and_not_by_where_they_lie(write, tmp_path):
    row = {"prompt": "x", "task": "image", "image": "a.png", "style": "style", "alpha": 0.5}
    (here,) = read_prompts(write("p.json", [row]), None)
    moved = tmp_path / "moved"
    (moved / "style").mkdir(parents=True)
    (moved / "renamed.png").write_bytes(b"a.png")
    (moved / "p.json").write_text(json.dumps([row | {"image": "renamed.png"}]))
    (there,) = read_prompts(moved / "p.json", None)
    assert here.id == there.id
    assert here.style != there.style
    (moved / "renamed.png").write_bytes(b"changed")
    assert read_prompts(moved / "p.json", None)[0].id != here.id
    # names, seeds and other columns decide no pixel
    (same,) = read_prompts(write("q.json", [row | {"name": "n", "seeds": 9, "note": 1}]), None)
    assert same.id == here.id


def test_a_file_is_hashed_again_when_it_changed(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"1")
    assert file_sha256(str(path)) == hashlib.sha256(b"1").hexdigest()
    path.write_bytes(b"22")
    assert file_sha256(str(path)) == hashlib.sha256(b"22").hexdigest()


def test_nothing_typed_can_be_taken_for_an_id():
    asked = {"negative": "n", "text": "x"}
    typed = json.dumps(asked, sort_keys=True, separators=(",", ":"))
    assert Prompt(text="x", negative="n").id != Prompt(text=typed).id


WRONG = [
    ("p.md", "x", "p.md: .md is no form of a prompt file; next: rename"),
    ("p", "x", "no ending is no form of a prompt file; next: "),
    ("p.txt", "", "p.txt: holds no prompt; next: "),
    ("p.txt", b"a\n\xff\xfe", "p.txt, line 2: is not UTF-8; next: "),
    ("p.txt", "a\nb\0c", "p.txt, line 2: holds a NUL character; next: "),
    ("p.csv", "prompt\n\0", "p.csv, line 2: holds a NUL character; next: "),
    ("p.txt", "x".encode("utf-16"), "is not UTF-8; next: "),
    ("p.jsonl", '{"prompt": "a\\u0000b"}', "line 1: prompt: holds a NUL character; next: "),
    ("p.jsonl", '{"prompt": "a\\ud800"}', "line 1: prompt: holds half a surrogate pair; next: "),
    ("p.jsonl", '{"prompt": "a", "x": "\\ud800"}', "line 1: x: holds half a surrogate"),
    ("p.jsonl", '{"prompt": "a"}\n{"prompt"', "p.jsonl, line 2: not JSON ("),
    ("p.jsonl", '{"prompt": "a", "prompt": "b"}', "line 1: prompt: named twice; next: "),
    ("p.jsonl", '{"prompt": NaN}', "line 1: NaN is no number of JSON; next: "),
    ("p.jsonl", '{"prompt": "a", "x": 1e999}', "line 1: x: a number is out of range; next: "),
    ("p.jsonl", "[" * 100_000, "line 1: not JSON ("),
    ("p.jsonl", '"a"', 'line 1: not an object; next: write {"prompt": "..."}'),
    ("p.jsonl", '{"promt": "a"}', "line 1: prompt: there is none; did you mean 'promt'? next: "),
    ("p.jsonl", '{"prompt": " "}', "line 1: prompt: is empty; next: "),
    ("p.jsonl", '{"prompt": 3}', "line 1: prompt: 3 is no text; next: "),
    ("p.jsonl", '{"prompt": "a", "text": "b"}', "text: says the same as prompt; next: "),
    ("p.jsonl", '{"prompt": "a", "seeds": 1, "samples": 1}', "samples: says the same as seeds"),
    ("p.csv", "a cat\na dog", "p.csv, line 1: no column prompt; it has a cat; next: "),
    ("p.csv", "prompt,prompt\na,b", "line 1: a column has no name or that of another; next: "),
    ("p.csv", "prompt,\na,b", "line 1: a column has no name or that of another; next: "),
    ("p.csv", "prompt\na,b", "line 2: 2 cells, but 1 columns; next: "),
    ("p.csv", 'prompt\nx\n"open', "p.csv, line 3: not CSV ("),
    ("p.csv", "prompt,image\n,a.png", "line 2: prompt: there is none; next: "),
    ("p.json", "{", "p.json, line 1: not JSON ("),
    ("p.json", "3", "p.json: neither a list nor an object; next: "),
    ("p.json", "[3]", "p.json, entry 1: not an object; next: "),
    ("p.json", {"x": 3}, "p.json, entry 'x': not an object; next: "),
    ("p.json", {"sentences": [3]}, "sentences[0]: not an object; next: "),
    ("p.json", {"sentences": [{"caption": "a"}]}, "sentences[0]: video_id: not a text; next: "),
    ("p.json", MSRVTT | {"videos": MSRVTT["videos"][1:]}, "'video0' is not among the videos"),
    ("p.json", MSRVTT | {"sentences": []}, "video 'video0' has no sentence; next: "),
    ("p.json", MSRVTT | {"videos": 3}, "videos: not a list; next: "),
]  # fmt: skip
WRONG_CELLS = [
    ({"task": "imge"}, "task: 'imge' is unknown; did you mean image? next: one of text, "),
    ({"task": "image", "image": "none.png"}, "image: no such file "),
    ({"task": "image", "image": "style"}, "image: no such file "),
    ({"task": "image", "image": "x" * 5000}, "image: no such file "),
    ({"task": "image", "image": "a\ud800.png"}, "image: no such file "),
    ({"task": "image", "image": "a\0.png"}, "image: holds a NUL character; next: "),
    ({"task": "image", "image": "s3://b/a.png"}, "image: s3://b/a.png is no file; next: "),
    ({"task": "image", "image": ["a.png"]}, "image: ['a.png'] is no text; next: "),
    ({"task": "video", "video": "v.mp4", "strength": 1.5}, "strength: 1.5 is out of range; next: "),
    ({"task": "video", "video": "v.mp4", "strength": -1}, "strength: -1.0 is out of range"),
    ({"task": "video", "video": "v.mp4", "strength": "much"}, "strength: 'much' is no number"),
    ({"task": "video", "video": "v.mp4", "strength": "nan"}, "strength: 'nan' is no number"),
    ({"task": "video", "video": "v.mp4", "strength": True}, "strength: 'True' is no number"),
    ({"task": "video", "video": "v.mp4"}, "strength: task video needs it; next: "),
    ({"task": "outpaint", "video": "v.mp4", "margin": 0.5}, "margin: 0.5 is out of range; next: "),
    ({"task": "predict", "video": "v.mp4", "frames_known": 0}, "frames_known: task predict needs"),
    ({"task": "predict", "video": "v.mp4", "frames_known": -8}, "frames_known: -8 is out of range"),
    ({"task": "predict", "video": "v.mp4", "frames_known": 1.5}, "frames_known: 1.5 is no whole"),
    ({"num_seeds": -1}, "num_seeds: -1 is out of range; next: "),
    ({"seeds": 10**9}, "num_seeds: 1000000000 is out of range; next: "),
    ({"mask": "m.png"}, "mask: task text takes none; next: leave it empty, or set task to inpaint"),
    ({"style": "style"}, "alpha: style goes with it; next: "),
    ({"style": "none", "alpha": 1}, "style: no such file "),
    ({"alpha": 0.5}, "style: alpha goes with it; next: "),
    ({"style": "style", "alpha": 2}, "alpha: 2.0 is out of range; next: "),
    ({"name": "a\0b"}, "name: holds a NUL character; next: "),
    ({"negative": {"a": 1}}, "negative: {'a': 1} is no text; next: "),
]  # fmt: skip


def said_of(path, **choices):
    with pytest.raises(WrongInput) as caught:
        read_prompts(path, None, **choices)
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 700
    assert "next: " in said
    return said


@pytest.mark.parametrize(("name", "content", "said"), WRONG)
def test_what_is_wrong_with_a_file_is_one_line(write, name, content, said):
    assert said in said_of(write(name, content))


@pytest.mark.parametrize(("cells", "said"), WRONG_CELLS)
def test_what_is_wrong_with_a_row_is_one_line_that_names_it(write, cells, said):
    lines = ['{"prompt": "good"}', "", json.dumps({"prompt": "x"} | cells)]
    found = said_of(write("p.jsonl", "\n".join(lines)))
    assert f"p.jsonl, line 3: {said}" in found


def test_choices_that_a_form_does_not_have_are_refused(write, tiny):
    txt, json_ = write("p.txt", "x"), write("p.json", MSRVTT)
    assert "captions='all' chooses from MSR-VTT's" in said_of(txt, captions="all")
    assert "split='test' chooses from MSR-VTT's" in said_of(txt, split="test")
    assert "captions='all' chooses" in said_of(tiny.root, captions="all")
    assert "captions='best': next: choose one of first, all" in said_of(json_, captions="best")
    assert "no video of split='val'; it has test, train" in said_of(json_, split="val")


def test_one_prompt_with_two_numbers_of_seeds_is_a_contradiction(write):
    said = said_of(write("p.csv", "prompt,seeds\nx,5\ny,5\nx,7"))
    assert "p.csv, line 4: num_seeds: 7 here, 5 in line 2 for the same prompt; next: " in said


def test_the_captions_of_a_dataset_are_prompts(tiny):
    suite = read_suite(tiny.root)
    assert {prompt.text for prompt in suite.prompts} == {
        "a red square", "a green square", "a blue square",
    }  # fmt: skip
    captions = tiny.dataset.kept_clips().column("caption").to_pylist()
    assert [prompt.text for prompt in suite.prompts] == list(dict.fromkeys(captions))
    assert suite.duplicates == len(captions) - 3
    assert all(prompt.id == prompt_id(prompt.text) for prompt in suite.prompts)
    assert read_prompts(str(tiny.root), 2) == list(suite.prompts[:2])


def test_places_that_are_not_there(write, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"none\.txt: no such prompt file or dataset; next: "
    ):
        read_prompts(tmp_path / "none.txt", None)
    assert not is_there(str(tmp_path / "none.txt"))
    assert is_there(str(write("100%.txt", "x")))
    assert is_there("s3://bucket/prefix")
    assert texts_of(tmp_path / "100%.txt") == ["x"]
    assert texts_of(write("LOUD.TXT", "x")) == ["x"]


def test_a_prompt_made_in_python_is_held_to_the_same():
    with pytest.raises(ValueError, match="image: task image needs it"):
        Prompt(text="x", task="image")
    with pytest.raises(ValueError, match="strength: nan is out of range"):
        Prompt(text="x", task="video", video="v", strength=float("nan"))
    with pytest.raises(OSError, match="none"):
        Prompt(text="x", task="image", image="/none/at/all")
    assert Prompt(text=" x ").text == "x"
