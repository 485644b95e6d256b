"""Videos made elsewhere as a set: whose prompt each is, what is kept of it, and what is said of those that cannot be taken."""

import json
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ingest import child
from ingest.encode import encode_video
from ingest.sources import SourceError
from pipelines import imports
from pipelines.manifest import complete_rows, read_set
from pipelines.order import Order
from pipelines.output import WrongInput
from pipelines.prompts import Prompt
from pipelines.videos import read_frames
from tests.pipelines.conftest import kinoray

pytestmark = pytest.mark.ray


def video(path: Path, *, level: int, fps: int = 8, frames: int = 5) -> np.ndarray:
    """Write a lossless video of one grey, a little lighter with each frame."""
    shown = np.full((frames, 24, 32, 3), level, np.uint8)
    shown += np.arange(frames, dtype=np.uint8)[:, None, None, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_video(shown, fps, lossless=True))
    return shown


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / "theirs"
    for level, name in enumerate(("a red boat-0", "a red boat-1", "ein schöner Tag-0")):
        video(found / f"{name}.mp4", level=40 * level)
    return found


@pytest.mark.usefixtures("folder")
def test_a_folder_becomes_a_set_that_evaluations_read(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red boat\nein schöner Tag\nnobody made this\n", encoding="utf-8")
    words = ["sample", "import", "theirs", "model=Their Model 2", "prompts=prompts.txt", "out=set"]
    told = kinoray(tmp_path, *words, "--json")
    assert told.code == 0, told.err
    assert (told.told["samples"], told.told["prompts"], told.told["prompts_without"]) == (3, 3, 1)
    rows = complete_rows(tmp_path / "set")
    assert {(r["prompt"], r["index"]) for r in rows} == {
        ("a red boat", 0), ("a red boat", 1), ("ein schöner Tag", 0)
    }  # fmt: skip
    for row in rows:
        frames = read_frames(tmp_path / "set" / row["lossless_path"], row["frames_sha256"])
        assert frames.shape == (5, 24, 32, 3)
        known = json.loads(row["settings"])["imported"]
        assert known["model"] == "Their Model 2"
        assert (known["fps"], row["fps"]) == ("8", 8)
        assert (row["seed"], row["base_digest"], row["noise_id"]) == ("", None, None)
    page = (tmp_path / "set" / "contact.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 9
    assert "ein schöner Tag" in page
    again = kinoray(tmp_path, *words, "--json")
    assert again.told["digest"] == told.told["digest"]


def test_pixels_are_those_of_the_file(folder):
    shown = video(folder / "x.mp4", level=100, fps=25)
    frames, fps, steady = imports.frames_of(str(folder / "x.mp4"))
    assert (fps, steady) == (25, True)
    assert np.abs(frames.astype(int) - shown).max() <= 1


def test_odd_sizes_and_half_rates_are_taken_as_they_are(tmp_path):
    """33 x 25 px at 30000/1001: what to watch has even sides, what is measured has the file's own."""
    place, out = tmp_path / "odd.mkv", tmp_path / "set"
    command = [
        child.executable(),
        *child.GLOBAL,
        "-f",
        "lavfi",
        "-i",
        "testsrc2=s=64x48:r=30000/1001:d=0.4",
    ]
    subprocess.run(
        [*command, "-vf", "scale=33:25,format=bgr0", "-c:v", "ffv1", str(place)], check=True
    )
    frames, fps, steady = imports.frames_of(str(place))
    assert (frames.shape, fps, steady) == ((12, 25, 33, 3), Fraction(30000, 1001), True)
    order = Order(identity="0" * 64, prompt=Prompt(text="x"), negative="", index=0, seed=0)
    job = imports.Job(order=order, path=str(place), sha256="ab", name="odd.mkv")
    row = imports.take({"model": "x", "out": str(out), "code": "c"}, job)
    assert np.array_equal(read_frames(out / row["lossless_path"], row["frames_sha256"]), frames)
    assert (row["width"], row["height"], row["fps"]) == (33, 25, 30)
    assert json.loads(row["settings"])["imported"]["fps"] == "30000/1001"


def test_hdr_is_refused_in_words(tmp_path):
    place = tmp_path / "hdr.mp4"
    command = [child.executable(), *child.GLOBAL, "-f", "lavfi", "-i", "testsrc2=s=64x48:r=8:d=1"]
    hdr = "setparams=color_primaries=bt2020:colorspace=bt2020nc:color_trc=smpte2084"
    subprocess.run([*command, "-vf", hdr, "-c:v", "libx264", str(place)], check=True)
    with pytest.raises(SourceError, match="HDR transfer"):
        imports.frames_of(str(place))


def test_without_a_suite_the_names_are_the_prompts(folder):
    config = imports.Config(videos=folder, out=folder.parent / "set", model="x")
    jobs, prompts = imports._jobs(config)
    told = {(job.order.prompt.text, job.order.index) for job in jobs}
    assert told == {("a red boat", 0), ("a red boat", 1), ("ein schöner Tag", 0)}
    assert prompts == 2


def test_numbers_of_a_suite_name_its_videos(tmp_path):
    for number in ("0000", "0001"):
        video(tmp_path / "theirs" / f"{number}.mp4", level=9)
    (tmp_path / "suite.txt").write_text("one\ntwo\n")
    config = imports.Config(
        videos=tmp_path / "theirs", out=tmp_path, model="x", prompts=str(tmp_path / "suite.txt")
    )
    told = {job.name: job.order.prompt.text for job in imports._jobs(config)[0]}
    assert told == {"0000.mp4": "one", "0001.mp4": "two"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("stranger", "1 of 4 videos belong to no prompt of .*; next: call them"),
        ("twice", "is sample 0 of the same prompt as .*; next: call them"),
    ],
)
def test_files_of_no_prompt_or_of_the_same_are_refused(tmp_path, folder, change, said):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red boat\nein schöner Tag\n", encoding="utf-8")
    name = "a dog.mp4" if change == "stranger" else "a red boat.mp4"
    shutil.copy(folder / "a red boat-0.mp4", folder / name)
    config = imports.Config(videos=folder, out=tmp_path / "set", model="x", prompts=str(prompts))
    with pytest.raises(WrongInput, match=said):
        imports._jobs(config)


@pytest.mark.faults
def test_what_cannot_be_decoded_keeps_a_row_with_its_reason_and_the_set_is_incomplete(
    tmp_path, folder
):
    (folder / "broken.mp4").write_bytes(b"\0" * 4000)
    told = kinoray(tmp_path, "sample", "import", "theirs", "model=x", "out=set", "--json")
    assert told.code == 3
    assert (told.told["samples"], told.told["failed"]) == (3, 1)
    (failed,) = [row for row in read_set(tmp_path / "set") if row["status"] == "failed"]
    assert failed["prompt"] == "broken"
    assert failed["error"]
    video(folder / "broken.mp4", level=3)
    (folder / "broken.mp4").rename(folder / "mended.mp4")
    mended = kinoray(tmp_path, "sample", "import", "theirs", "model=x", "out=set", "--json")
    assert (mended.code, mended.told["samples"]) == (0, 4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("import", "nowhere", "model=x", "out=set"), "no such folder; next:"),
        (("import", "model=x"), "import takes one folder"),
        (("import", "theirs", "model= ", "out=set"), "say what made these videos"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_wrong_words_are_one_line(tmp_path, words, said):
    told = kinoray(tmp_path, "sample", *words)
    assert told.code in {1, 2}
    assert said in told.err
    assert "Traceback" not in told.err
