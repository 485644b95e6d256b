"""Every command that the README shows is one that the command line takes: verb, options, keys and recipe.

They are given as they stand, in a folder where nothing lies but the recipes, so that a command that is
right ends where it looks for its dataset or videos.
"""

import re
import shlex
from pathlib import Path

import pytest

from jobs.__main__ import _guarded

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "README.md").read_text()
COMMANDS = re.findall(r"^ {4}(?:\.venv/bin/)?kinoray (.+)$", README, re.MULTILINE)
CURATE = README.partition("\n## Curate\n")[2].partition("\n## ")[0]
KEYS = re.findall(r"`([a-z_]+\.[a-z_.]+=[^`]+)`", CURATE)
PLANNED = {"demo", "run", "curate", "train", "sample", "evaluate", "submit"}
# What is said by a command that was understood, and has nothing to work on here.
UNDERSTOOD = (
    "no video found",
    "no dataset",
    "not a dataset",
    "its tags: none",
    "out: No such file",
    "no run in it",
    "no Ray dashboard answers",
    "no cluster in",
)


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    (tmp_path / "jobs").symlink_to(CHECKOUT / "jobs")
    monkeypatch.chdir(tmp_path)

    def ask(line):
        """Return "" for a command that is understood, else what is wrong with it."""
        words = shlex.split(line, comments=True)
        more = ["--dry-run", "--quiet"] if words[0] in PLANNED else []
        if words[0] == "cluster" and words[1] in {"up", "render"}:
            more = ["--dry-run"]
        try:
            code = _guarded([*words, *more])
        except SystemExit as end:
            code = end.code
        told = capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["jobs"]
        return "" if code == 0 or any(words in told for words in UNDERSTOOD) else told

    return ask


@pytest.mark.parametrize("line", COMMANDS)
def test_what_the_readme_shows_can_be_typed(line, said):
    assert said(line) == ""


@pytest.mark.parametrize("key", KEYS)
def test_keys_in_the_text_are_keys_of_the_recipe(key, said):
    assert said(f"show jobs/recipes/curate.toml {shlex.quote(key)}") == ""


def test_there_are_commands_and_keys():
    assert len(COMMANDS) > 20
    assert len(KEYS) > 4


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("cruate jobs/recipes/curate.toml source=x", "no such command"),
        ("curate jobs/recipes/gone.toml source=x", "no such recipe"),
        ("curate jobs/recipes/curate.toml source=x keep.min_moton=1", "unknown key"),
        ("curate jobs/recipes/curate.toml source=x --dry", "No such option"),
        ("dataset exprot datasets/mine out", "No such command"),
        ("dataset export datasets/mine out formt=folder", "unknown key"),
        ("dataset import datasets/mine rights.csv as=right", "as"),
        ("doctor --extension tests.ingest.stages_made:Gone", "Gone"),
    ],
)
def test_a_line_that_is_wrong_is_found(line, words, said):
    assert words in said(line)
