"""The columns of a prompt: how each is read from a file, what each may say, and which of them a task takes."""

import json
import math
import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pipelines.prompt_files import TEXT, shown

Task = Literal[
    "text", "image", "first_last", "predict", "inpaint", "outpaint", "cinemagraph", "video"
]
TAKES: Mapping[str, tuple[str, ...]] = {
    "text": (),
    "image": ("image",),
    "first_last": ("image", "last_image"),
    "predict": ("video", "frames_known"),
    "inpaint": ("video", "mask"),
    "outpaint": ("video", "margin"),
    "cinemagraph": ("image", "mask"),
    "video": ("video", "strength"),
}
FILES = ("image", "last_image", "video", "mask")
PATHS = (*FILES, "style")
SEEDS = ("num_seeds", "seeds", "samples")
WORDS, WHOLE = ("negative", "task", *PATHS, "name"), ("frames_known", "num_seeds")
SHARES = ("margin", "strength", "alpha")
MOST_SEEDS = 100_000
_CONDITIONS = tuple(dict.fromkeys(column for takes in TAKES.values() for column in takes))


def typed(folder: Path, values: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the columns that a row fills, by Prompt's names and types, and the style as it was written.

    Paths come back absolute, from `folder`; unknown columns as the JSON object `more`. Raises ValueError that begins
    with the wrong column.
    """
    left = {name: value for name, value in values.items() if value is not None}
    text, seeds = _one_of(left, TEXT), _one_of(left, SEEDS)
    if text is None and left.get("task", "text") == "text":
        near = get_close_matches("prompt", left, n=1)
        hint = f"did you mean {shown(near[0])!r}? " if near else ""
        raise ValueError(f"prompt: there is none; {hint}next: give it one")
    if seeds is not None:
        left["num_seeds"] = seeds
    found: dict[str, Any] = {"text": "" if text is None else _word("prompt", text)}
    for columns, read in ((WORDS, _word), (WHOLE, _whole), (SHARES, _number)):
        for column in columns:
            value = left.pop(column, None)
            if value is not None and value != "":
                found[column] = read(column, value)
    written = found.get("style", "")
    found |= {name: _resolved(folder, name, found[name]) for name in PATHS if name in found}
    return found | {"more": _kept(left)}, written


def check(prompt: Mapping[str, Any]) -> None:
    """Raise ValueError that begins with the wrong column unless all columns of a prompt agree; empty is not given."""
    for column in ("text", *WORDS):
        _check_text("prompt" if column == "text" else column, prompt[column])
    _check_task(prompt)
    if bool(prompt["style"]) != bool(prompt["alpha"]):
        here, lacks = ("style", "alpha") if prompt["style"] else ("alpha", "style")
        raise ValueError(f"{lacks}: {here} goes with it; next: give both, or neither")
    for column, high, said in (
        ("frames_known", math.inf, "1 or more"),
        ("num_seeds", MOST_SEEDS, f"1 to {MOST_SEEDS}"),
        ("strength", 1.0, "more than 0, at most 1"),
        ("alpha", 1.0, "more than 0, at most 1"),
        ("margin", math.nextafter(0.5, 0), "more than 0, below 0.5"),
    ):
        if not 0 <= prompt[column] <= high:
            raise ValueError(f"{column}: {prompt[column]} is out of range; next: {said}")


def _check_text(column: str, text: str) -> None:
    if "\0" in text:
        raise ValueError(f"{column}: holds a NUL character; next: remove it")
    # A path may hold bytes that are no UTF-8, which Python carries as such halves.
    if column not in PATHS and any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError(f"{column}: holds half a surrogate pair; next: write whole characters")


def _check_task(prompt: Mapping[str, Any]) -> None:
    task = prompt["task"]
    if task not in TAKES:
        near = get_close_matches(task, TAKES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"task: {shown(task, 40)!r} is unknown; {hint}next: one of {', '.join(TAKES)}"
        )
    if task == "text" and not prompt["text"]:
        raise ValueError("prompt: is empty; next: write one, or remove it")
    for column in _CONDITIONS:
        if column in TAKES[task] and not prompt[column]:
            raise ValueError(f"{column}: task {task} needs it; next: fill the column {column}")
        if prompt[column] and column not in TAKES[task]:
            others = " or ".join(name for name, takes in TAKES.items() if column in takes)
            raise ValueError(
                f"{column}: task {task} takes none; next: leave it empty, or set task to {others}"
            )


def _one_of(left: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Take out the one column that stands for all of `names`; None when there is none."""
    there = [name for name in names if name in left]
    if len(there) > 1:
        raise ValueError(f"{there[1]}: says the same as {there[0]}; next: keep one of them")
    return left.pop(there[0]) if there else None


def _kept(left: Mapping[str, Any]) -> str:
    for column, value in left.items():
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except ValueError:
            raise ValueError(
                f"{shown(column, 40)}: a number is out of range; next: put it in quotes"
            ) from None
        _check_text(shown(column, 40), column + text)
    return json.dumps(left, ensure_ascii=False, sort_keys=True)


def _word(column: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{column}: {shown(value, 40)} is no text; next: put it in quotes")  # noqa: TRY004 - bad data
    return value.strip()


def _whole(column: str, value: object) -> int:
    number = _number(column, value)
    if number != int(number):
        raise ValueError(f"{column}: {shown(value, 40)} is no whole number; next: write one")
    return int(number)


def _number(column: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{column}: {shown(value, 40)!r} is no number; next: write one")
    return number


def _resolved(folder: Path, column: str, value: str) -> str:
    _check_text(column, value)
    if "://" in value:
        raise ValueError(f"{column}: {shown(value)} is no file; next: fetch it and name the copy")
    place = Path(os.path.abspath(folder / value))  # noqa: PTH100 - resolve() follows links
    try:
        there = place.exists() if column == "style" else place.is_file()
    except (OSError, ValueError):  # a name that is too long, or that no file can have
        there = False
    if not there:
        raise ValueError(f"{column}: no such file {shown(place)}; next: correct the path")
    return str(place)
