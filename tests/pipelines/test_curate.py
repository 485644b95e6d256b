"""curate through the command line on what goes wrong: a file that is no video, and a disk that fills up."""

import csv
import os
import shutil
import subprocess
from pathlib import Path

import imageio_ffmpeg
import pytest

from ingest.exports import export
from ingest.select import Selection
from ingest.store import Dataset
from tests.pipelines.conftest import CHECKOUT, kinoray

RECIPE = str(CHECKOUT / "jobs" / "recipes" / "curate.toml")
KEEP = ["keep.min_motion=0.0", "keep.max_motion=9.0", "keep.max_duplicate_frame_share=1.0"]
KEEP += ["keep.min_luma=0.0", "keep.min_luma_range=0.0"]
SAID_OF = ("caption", "licence", "consent")
pytestmark = pytest.mark.ray


def test_a_file_that_is_no_video_has_its_fate(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "notes.mp4").write_text("I am not a video")
    odd = os.fsdecode(b"\xff\xfe.mp4")  # nor is its name text
    (tmp_path / "videos" / odd).write_text("I am not one either")
    ran = kinoray(tmp_path, "curate", RECIPE, "source=videos", "out=ds", "--json")
    assert ran.code == 3
    assert ran.told["failed"] == 2
    assert ran.told["fates_balance"] is True
    assert "notes.mp4: " in ran.err
    assert "Traceback" not in ran.err
    page = next((tmp_path / "ds" / "runs").glob("*/report.html")).read_text()
    assert "notes.mp4" in page
    assert "NotAVideo: 2" in page
    logged = list((tmp_path / ".kinoray" / "artifacts").rglob("report.html"))
    assert [one.read_text() for one in logged] == [page]


def test_a_full_disk_is_one_line_and_loses_nothing(disk_of, tmp_path, tiny_videos):
    small_disk = disk_of("400k")
    # Filled up but for a little, so that the tables fit and a payload does not.
    (small_disk / "ballast").write_bytes(b"x" * 300_000)
    words = ["curate", RECIPE, f"source={tiny_videos}", f"out={small_disk / 'ds'}", *KEEP, "--json"]
    full = kinoray(tmp_path, *words)
    assert full.code == 1
    assert "the disk is full" in full.told["error"]
    assert "the same command again continues" in full.told["next"]
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    again = kinoray(tmp_path, *words)
    assert again.code == 0, again.err[-1500:]
    assert again.told["clips_kept"] == 3
    assert Dataset.open(small_disk / "ds").balance().ok


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """Let every ffmpeg write a line when it begins to decode a whole source; return their count.

    Where there is a file `hung`, it gives no frame.
    """
    log = tmp_path / "decodes"
    log.touch()
    wrapper = tmp_path / "ffmpeg"
    wrapper.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *showinfo*rawvideo*pipe:1*) echo one >> "{log}"\n'
        f'if [ -e "{tmp_path}/hung" ]; then exec sleep 100; fi;; esac\n'
        f'exec "{imageio_ffmpeg.get_ffmpeg_exe()}" "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(wrapper))
    return lambda: len(log.read_text().splitlines())


@pytest.mark.timeout(600)
def test_other_thresholds_decode_nothing(tmp_path, tiny, counted):
    """Only what is newly wanted, and was never stored, is read from its source again.

    When that fails of what passes, nothing that was kept is lost, and the next run tries again.
    """
    short = ["prep.stall_timeout_s=5"]

    def curate(*keep, code=0):
        words = ["curate", RECIPE, f"source={tiny.videos}", "out=ds", *KEEP, *short, *keep]
        ran = kinoray(tmp_path, *words, "--json")
        assert ran.code == code, ran.err[-1500:]
        assert ran.told["fates_balance"]
        return ran.told, counted()

    motions = sorted(tiny.dataset.kept_clips().column("motion").to_pylist())
    limit = f"keep.min_motion={(motions[0] + motions[1]) / 2}"
    strict, decodes = curate(limit)
    assert (strict["clips_kept"], decodes) == (2, strict["sources"])
    (tmp_path / "hung").touch()
    hung, decodes = curate(code=3)
    assert (hung["digest"], hung["failed"]) == (strict["digest"], 0)
    (tmp_path / "hung").unlink()
    wide, after = curate()
    assert (wide["clips_kept"], after) == (3, decodes + 1)
    again, after = curate(limit)
    assert (again["digest"], after) == (strict["digest"], decodes + 1)
    assert wide["digest"] != strict["digest"]


@pytest.mark.timeout(600)
def test_another_captioner_captions_again_and_decodes_nothing(tmp_path, tiny_videos, counted):
    """Not even a look is taken at the videos: what they hold now would be none.

    At first their decoder hangs, which is no fate for ever.
    """
    videos = shutil.copytree(tiny_videos, tmp_path / "videos")
    words = ["curate", RECIPE, "source=videos", "out=ds", *KEEP, "prep.stall_timeout_s=5", "--json"]
    (tmp_path / "hung").touch()
    hung = kinoray(tmp_path, *words)
    assert (hung.code, hung.told["failed"], hung.told["fates_balance"]) == (3, 3, True)
    (tmp_path / "hung").unlink()
    assert kinoray(tmp_path, *words).code == 0
    for path in videos.glob("*.mp4"):
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        path.write_bytes(bytes(path.stat().st_size))
        os.utime(path, ns=times)
    before, captions = counted(), captions_of(tmp_path / "ds")
    assert kinoray(tmp_path, *words, 'captions.captioners=["name"]').code == 0
    assert not set(captions_of(tmp_path / "ds").values()) & set(captions.values())
    assert kinoray(tmp_path, *words).code == 0  # it had its end, but the dataset is another now
    assert (captions_of(tmp_path / "ds"), counted()) == (captions, before)


@pytest.mark.timeout(600)
def test_a_table_of_videos_and_texts_beside_them(tmp_path, tiny_videos, counted):
    """The recipe as it is shipped: each clip has its row's words; other words decode nothing."""
    videos = shutil.copytree(tiny_videos, tmp_path / "videos")
    rows = {
        "red.mp4": ["a square of row one", "cc-by-4.0", "given"],
        "green.mp4": ["a square of row two", "cc-by-4.0", "refused"],
        "blue.mp4": ["", "unknown-terms", "given"],  # the text beside it speaks
    }

    def curate(beside):
        with (tmp_path / "videos.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["video", "caption", "licence", "consent"])
            table.writerows([f"videos/{name}", *said] for name, said in rows.items())
        ran = kinoray(tmp_path, "curate", RECIPE, "source=videos.csv", "out=ds", *KEEP, "--json")
        assert ran.code == 0, ran.err[-1500:]
        clips = Dataset.open(tmp_path / "ds").kept_clips().to_pylist()
        found = {Path(c["source_uri"]).name: [c[w] for w in SAID_OF] for c in clips}
        assert found == {name: [words or beside, *said] for name, (words, *said) in rows.items()}

    def exported(name):
        chosen = Selection(licences=("cc-by-4.0",), consents=("given",))
        dataset = Dataset.open(tmp_path / "ds")
        done = export(dataset, tmp_path / name, format="folder", selection=chosen)
        assert done.clips == len(list((tmp_path / name).rglob("*.mp4")))
        return done.clips

    curate("a blue square")
    assert exported("first") == 1
    stated = Dataset.open(tmp_path / "ds").annotation("rights").to_pylist()
    decodes = counted()
    rows["green.mp4"] = ["a square of another row", "cc-by-4.0", "given"]
    (videos / "blue.txt").write_text("quite another text")
    curate("quite another text")
    assert (exported("second"), counted()) == (2, decodes)
    again = Dataset.open(tmp_path / "ds").annotation("rights").to_pylist()
    assert len(again) == len(stated) + 1
    assert all(row in again for row in stated)


def test_own_stages_decide_and_decode_nothing_again(tmp_path, tiny_videos, counted):
    """A detector, a scorer, a bound on it and a keep rule of one's own, all by name in the recipe."""
    made = "tests.ingest.stages_made"
    own = [f"detector.use={made}:Jumps", f"scorers.scorers=[{{use='{made}:Brightness'}}]"]

    def curate(*words):
        ran = kinoray(
            tmp_path,
            "curate",
            RECIPE,
            f"source={tiny_videos}",
            "out=ds",
            *KEEP,
            *own,
            *words,
            "--json",
        )
        assert ran.code == 0, ran.err[-1500:]
        assert ran.told["fates_balance"]
        rows = Dataset.open(tmp_path / "ds").ledger().to_pylist()
        return ran, counted(), {row["rule"] for row in rows if row["kind"] == "clip"}

    loose, decodes, rules = curate()
    assert (loose.told["clips_kept"], rules) == (3, {None})
    clips = Dataset.open(tmp_path / "ds").kept_clips().to_pylist()
    least = sorted(clip["brightness"] for clip in clips)[1]
    bright = [clip for clip in clips if clip["brightness"] >= least]
    slow, lively = sorted(clip["motion"] for clip in bright)
    bound = f"keep.bounds=[{{score='brightness', min={least}}}]"
    rule = f"keep.own=[{{use='{made}:NotStill', least={(slow + lively) / 2}}}]"
    strict, after, rules = curate(bound, rule)
    assert (strict.told["clips_kept"], after) == (1, decodes)
    assert rules == {None, "min_brightness", "not_still"}
    back, after, _ = curate("keep.bounds=[{score='brightnes', min=3.0}]")
    assert (back.told["digest"], after) == (loose.told["digest"], decodes)
    assert "nothing gives the score brightnes" in back.err


def captions_of(place: Path) -> dict[str, str]:
    rows = Dataset.open(place).kept_clips().to_pylist()
    return {row["source_uri"]: row["caption"] for row in rows}
