"""The command line as a person meets it: words, exit codes, one line for each mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.__main__ import _guarded
from pipelines import curate, output

CHECKOUT = Path(__file__).resolve().parents[2]
RECIPES = CHECKOUT / "jobs" / "recipes"
HEAVY = ("torch", "ray", "mlflow", "open_clip", "diffusers", "pyarrow", "pydantic")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_help_imports_nothing_heavy():
    code = (
        f"import sys; from jobs.cli import kinoray; print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("words", [["--help"], ["curate", "--help"], ["demo", "-h"]])
def test_help(words, capsys):
    assert _guarded(words) == 0
    assert "Usage: kinoray" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["cruate"], 2, "no such command: cruate; did you mean curate?"),
        (["curate"], 2, "Missing argument"),
        (["curate", "nowhere.toml"], 2, "nowhere.toml: no such recipe"),
        (
            ["curate", str(RECIPES / "curate.toml"), "keep.min_moton=1"],
            2,
            "did you mean keep.min_motion?",
        ),
        (
            ["curate", str(RECIPES / "curate.toml"), 'keep.bounds=[{score="aesthetic", mni=4.5}]'],
            2,
            "keep.bounds.0.mni: unknown key; did you mean keep.bounds.0.min?",
        ),
        (
            ["curate", str(RECIPES / "curate.toml"), "source=.", "keep.own=[{use='no.such:Rule'}]"],
            2,
            "no.such cannot be imported",
        ),
        (
            ["curate", str(RECIPES / "curate.toml"), "source=.", "detector.use=math:sqrt"],
            2,
            "math:sqrt",
        ),
        (
            ["curate", str(RECIPES / "curate.toml"), "prep.detector=abc"],
            2,
            "name yours with detector.use",
        ),
        (
            ["curate", str(RECIPES / "curate.toml"), "out=x", "duplicates.against=x"],
            2,
            "names the dataset itself",
        ),
        (["doctor", "--extension", "math:sqrt"], 2, "math:sqrt"),
        (["doctor", "level=3"], 2, "are for --extension"),
        (["train", str(RECIPES / "curate.toml")], 2, "is a recipe for curate"),
        (
            ["train", str(RECIPES / "base.toml"), "role=motion"],
            2,
            "base: a motion training needs it",
        ),
        (["curate", str(RECIPES / "curate.toml"), "source=nowhere"], 2, "nowhere"),
        (
            ["sample", str(RECIPES / "sample.toml")],
            2,
            "prompts.txt: no such prompt file or dataset",
        ),
        (
            ["run", str(RECIPES / "demo.toml"), "steps.bsae.steps=1"],
            2,
            "steps.bsae.verb: Field required",
        ),
        (
            ["run", str(RECIPES / "demo.toml"), "num_seds=1"],
            2,
            "no step has the key num_seds; did you mean num_seeds?",
        ),
        (["run", str(RECIPES / "demo.toml"), "frames=1"], 2, "several steps have this key"),
    ],
)
def test_mistakes_are_one_line_and_a_code(words, code, said, capsys):
    assert _guarded(words) == code
    streams = capsys.readouterr()
    assert streams.out == ""
    assert said in streams.err
    assert "Traceback" not in streams.err


def test_a_mistake_as_json(capsys):
    assert (
        _guarded(["curate", str(RECIPES / "curate.toml"), "source=nowhere", "--json", "--quiet"])
        == 2
    )
    streams = capsys.readouterr()
    assert streams.err == ""
    told = json.loads(streams.out)
    assert told["exit"] == 2
    assert "nowhere" in told["error"]


def test_an_occupied_folder_is_refused_and_untouched(tiny_videos, tmp_path, capsys):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("all my work")
    words = ["curate", str(RECIPES / "curate.toml"), f"source={tiny_videos}", f"out={out}"]
    assert _guarded(words) == 2
    assert "another output folder" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]
    assert (out / "thesis.txt").read_text() == "all my work"


def test_dry_run_touches_nothing(tiny_videos, tmp_path, capsys):
    words = [
        "curate",
        str(RECIPES / "curate.toml"),
        f"source={tiny_videos}",
        "out=new",
        "--dry-run",
    ]
    assert _guarded(words) == 0
    assert "videos" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_every_recipe_reads(capsys):
    for path in sorted(RECIPES.glob("*.toml")):
        assert _guarded(["show", str(path)]) == 0, path
        assert path.read_text().startswith("# "), path
    assert "sample_px" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "words", "said"),
    [
        (
            "sample",
            ["base_solver.steps=3000"],
            "base_solver: steps 3000 must lie in 1..1000",
        ),
        ("base", ["model.sample_px=30"], "sample_px: 30 must divide by 4"),
        ("base", ["frames=0"], "frames and threads_per_worker: at least 1"),
        ("base", ["caption_dropout=3"], "caption_dropout: between 0 and 1"),
        ("base", ["optimizer.warmup_steps=-1"], "warmup_steps"),
        ("curate", ["prep.preset=bogus"], "prep.preset: Input should be"),
        ("curate", ["source="], "source: at least one folder"),
        ("demo", ["steps.base=3"], "steps.base: is a value, not a table"),
        ("demo", ["steps.motion.base=@bass"], "@bass is not a step"),
        ("evaluate", ["sets=nowhere"], "nowhere/manifest: no such table"),
    ],
)
def test_wrong_values_are_told_before_anything_runs(recipe, words, said, capsys, tmp_path):
    verb = (
        "run"
        if recipe == "demo"
        else recipe
        if recipe in {"sample", "curate", "evaluate"}
        else "train"
    )
    assert _guarded([verb, str(RECIPES / f"{recipe}.toml"), *words, "--quiet"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not [p for p in tmp_path.iterdir() if p.name != ".kinoray"]


def test_a_step_may_live_elsewhere(capsys):
    assert (
        _guarded(["show", str(RECIPES / "demo.toml"), "steps.curate.out=elsewhere", "--json"]) == 0
    )
    recipe = json.loads(capsys.readouterr().out)["recipe"]
    assert recipe["base"]["dataset"] == recipe["curate"]["out"] == "elsewhere"


def test_a_password_does_not_reach_the_disk(tiny_videos, tmp_path):
    out = tmp_path / "out"
    config = curate.Config(
        source=(str(tiny_videos),), out=out, tracking_uri="http://me:SECRET@host/x"
    )
    output.claim(out, "curate", config, inputs={}, resume=True)
    assert "host/x" in (out / "recipe.json").read_text()
    assert "SECRET" not in (out / "recipe.json").read_text()


def test_a_half_written_recipe_does_not_wedge_a_folder(tiny_videos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".recipe.json.writing-123-abc").write_text("{")
    config = curate.Config(source=(str(tiny_videos),), out=out)
    first = output.claim(out, "curate", config, inputs={}, resume=True)
    assert output.claim(out, "curate", config, inputs={}, resume=True) == first
    with pytest.raises(output.Occupied, match="another recipe"):
        output.claim(out, "curate", config, inputs={"x": "1"}, resume=True)
    output.claim(out, "curate", config, inputs={"x": "1"}, resume=False)
    assert len(list(tmp_path.glob("out.old-*"))) == 1


def test_doctor_tests_a_stage(capsys):
    words = ["doctor", "--extension", "tests.ingest.stages_made:Jumps", "levels=30.0", "--json"]
    with pytest.raises(SystemExit) as ended:
        _guarded(words)
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["problems"]) == ("shot_detector", [])
