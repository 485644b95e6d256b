"""Recipes: every problem at once, each with the key and the nearest known one."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from jobs.config import ConfigError, build, flat, nearest, read, verb_of
from pipelines import curate


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    frames: int = 80
    fps: int = 16

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError("frames: at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    role: Literal["base", "motion"]
    source: tuple[str, ...]
    out: Path
    steps: int = 1
    clip: Clip = field(default_factory=Clip)


GOOD = 'role = "base"\nsource = ["a", "b"]\nout = "o"\n[clip]\nframes = 16\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "r.toml"
    path.write_text(text)
    return path


def test_a_good_recipe(tmp_path):
    table = read(write(tmp_path, GOOD), ["steps=3", "clip.fps=8", "source=just_one"])
    made = build(Recipe, table, name="r")
    expected = Recipe(
        role="base", source=("just_one",), out=Path("o"), steps=3, clip=Clip(frames=16, fps=8)
    )
    assert made == expected


def test_all_problems_at_once(tmp_path):
    table = read(write(tmp_path, 'role = "bass"\nout = "o"\nsteps = "many"\n[clip]\nframse = 1\n'))
    with pytest.raises(ConfigError) as caught:
        build(Recipe, table, name="r.toml")
    lines = str(caught.value).splitlines()
    assert any(
        line.startswith("r.toml: clip.framse: unknown key; did you mean clip.frames?")
        for line in lines
    )
    assert any("role: Input should be 'base' or 'motion'" in line for line in lines)
    assert any("source: Field required" in line for line in lines)
    assert any("steps: Input should be a valid integer" in line for line in lines)
    assert len(lines) == 4
    assert caught.value.exit_code == 2


def test_a_check_of_the_dataclass_names_its_key(tmp_path):
    table = read(write(tmp_path, GOOD), ["clip.frames=0"])
    with pytest.raises(ConfigError, match=r"r: clip: frames: at least 1"):
        build(Recipe, table, name="r")


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("role = ", [], "not TOML"),
        (GOOD, ["steps"], "an override is written key=value"),
        (GOOD, ["role.x=1"], "role is a value, not a table"),
    ],
)
def test_bad_text(tmp_path, text, overrides, said):
    with pytest.raises(ConfigError, match=said):
        read(write(tmp_path, text), overrides)


def test_missing_recipe_names_the_nearest(tmp_path):
    write(tmp_path, GOOD)
    (tmp_path / "curate.toml").touch()
    with pytest.raises(ConfigError, match=r"no such recipe; did you mean curate.toml\?"):
        read(tmp_path / "curat.toml")


def test_verbs():
    assert verb_of({"verb": "train"}, Path("r")) == "train"
    with pytest.raises(ConfigError, match=r"unknown verb; did you mean sample\?"):
        verb_of({"verb": "smaple"}, Path("r"))


def test_words():
    assert nearest("dedup", ["keep", "deduplicate"]) == "; did you mean deduplicate?"
    assert nearest("zzz", ["keep"]) == ""
    assert flat({"a": {"b": 1}, "c": 2}) == {"a.b": 1, "c": 2}


def test_every_example_in_the_curate_recipe_is_a_key():
    """Lines behind "#:" are what a person will take the mark off."""
    text = (Path(__file__).parents[2] / "jobs" / "recipes" / "curate.toml").read_text()
    table, name = {}, ""
    for line in text.replace("#: ", "").splitlines():
        if line.startswith("["):
            name = line.strip("[]")
        elif line and not line.startswith("#"):
            part = tomllib.loads(line)
            (table.setdefault(name, {}) if name else table).update(part)
    made = build(curate.Config, {k: v for k, v in table.items() if k != "verb"}, name="x")
    assert [bound.score for bound in made.keep.bounds] == ["aesthetic", "text_match"]
    assert made.detector["use"] == made.keep.own[0]["use"].replace("Lively", "Shots")
    assert len(made.captions.captioners) == 6
    assert text.count("#: ") >= 15
