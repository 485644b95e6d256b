"""Prompt suites as files: each form is told as rows of columns, with the place of each row.

    .txt    one prompt a line. Its name is the line's number from 0 in four digits, "0000": EvalCrafter's list
    .jsonl  one object a line
    .csv    column names in the first row; quoted cells may hold commas and line breaks
    .json   a list of objects (VBench's full_info: prompt_en, dimension, auxiliary_info), or a list of texts, named as
            lines are; an object of names and objects (EvalCrafter's metadata); or MSR-VTT's annotations (sentences and
            videos), of which a video's first caption is taken, or all

A prompt stands in a column `prompt`, `prompt_en` or `text`; prompts.Prompt has the others, and what it does not know it
keeps. Zero-shot UCF-101 has no agreed texts, so yours is a CSV with the columns class,prompt,samples: one row a class.
All is UTF-8, with or without a byte order mark, with any line ends. No suite's texts travel with Kinoray.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.output import WrongInput

SUFFIXES = (".txt", ".jsonl", ".csv", ".json")
TEXT = ("prompt", "prompt_en", "text")
CAPTIONS = ("first", "all")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One prompt as its file has it: where ("line 3"), and its columns; in a CSV all are texts, else JSON's types."""

    at: str
    values: dict[str, Any]


def rows(path: Path, *, captions: str = "first", split: str = "") -> Iterator[Row]:
    """Yield the rows of a prompt file, in its order, without empty lines.

    `captions` ("first" or "all") and `split` ("" takes all) choose from MSR-VTT's form and are refused with any other.
    Raises WrongInput, one line that names the file, the place and the next step.
    """
    if captions not in CAPTIONS:
        raise WrongInput(f"captions={captions!r}: next: choose one of {', '.join(CAPTIONS)}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise WrongInput(
            f"{shown(path)}: {suffix or 'no ending'} is no form of a prompt file; "
            f"next: rename it to one of {' '.join(SUFFIXES)}"
        )
    text = _text(path)
    whole = _loads(path, "", text) if suffix == ".json" else None
    if isinstance(whole, dict) and isinstance(whole.get("sentences"), list):
        yield from _msrvtt(path, whole, captions, split)
        return
    check_choices(path, captions=captions, split=split)
    if suffix == ".json":
        yield from _entries(path, whole)
    else:
        yield from {".txt": _lines, ".jsonl": _objects, ".csv": _cells}[suffix](path, text)


def check_choices(place: str | Path, *, captions: str, split: str) -> None:
    """Refuse choices that only MSR-VTT's form has, where a place is of another form."""
    for name, value, plain in (("captions", captions, "first"), ("split", split, "")):
        if value != plain:
            raise WrongInput(
                f"{shown(place)}: {name}={value!r} chooses from MSR-VTT's annotations, and this "
                f"is something else; next: leave {name} out"
            )


def wrong(path: Path, at: str, why: object) -> WrongInput:
    """Return the one line that says what is wrong at a place of a file."""
    return WrongInput(f"{shown(path)}{', ' if at else ''}{at}: {why}")


def shown(value: object, most: int = 200) -> str:
    """Return a name as it can stand in one line: as it is where it can be printed, else with escapes."""
    text = str(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= most else f"{text[:most]}..."


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise wrong(path, "", f"cannot be read ({why}); next: check its rights") from None
    try:
        text = data.decode("utf-8-sig")
        broken = text.find("\0")
        line = text.count("\n", 0, max(0, broken)) + 1
        why = "holds a NUL character"
    except UnicodeDecodeError as error:
        text, broken = "", error.start
        line = data.count(b"\n", 0, error.start) + 1
        why = "is not UTF-8"
    if broken >= 0:
        raise wrong(path, f"line {line}", f"{why}; next: save the file as UTF-8 text")
    return text


def _lines(_path: Path, text: str) -> Iterator[Row]:
    # Not splitlines, which also ends lines at controls and separators that a prompt may hold.
    for number, line in enumerate(text.split("\n")):
        if line.strip():
            yield Row(at=f"line {number + 1}", values={"prompt": line, "name": _numbered(number)})


def _numbered(number: int) -> str:
    return f"{number:04d}"


def _objects(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            at = f"line {number}"
            yield Row(at=at, values=_object(path, at, _loads(path, at, line)))


def _object(path: Path, at: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong(path, at, 'not an object; next: write {"prompt": "..."}')
    return value


def _cells(path: Path, text: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    line = 1  # where the row begins: a quoted cell may go over several lines
    try:
        for cells in reader:
            at = f"line {line}"
            if any(cell.strip() for cell in cells):
                if header:
                    yield Row(at=at, values=_row(path, at, header, cells))
                else:
                    header = _header(path, at, cells)
            line = reader.line_num + 1
    except csv.Error as error:
        raise wrong(
            path, f"line {line}", f"not CSV ({error}); next: check its quotation marks"
        ) from None


def _header(path: Path, at: str, cells: list[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    if len(set(header)) != len(header) or "" in header:
        raise wrong(
            path, at, "a column has no name or that of another; next: give each its own name"
        )
    if not set(header) & set(TEXT):
        has = shown(", ".join(header), 80)
        raise wrong(
            path, at, f"no column prompt; it has {has}; next: name the columns in the first row"
        )
    return header


def _row(path: Path, at: str, header: list[str], cells: list[str]) -> dict[str, str]:
    if len(cells) != len(header):
        raise wrong(
            path,
            at,
            f"{len(cells)} cells, but {len(header)} columns; next: quote cells with commas",
        )
    return {name: cell for name, cell in zip(header, cells, strict=True) if cell.strip()}


def _entries(path: Path, whole: object) -> Iterator[Row]:
    if isinstance(whole, dict):
        for name, entry in whole.items():
            at = f"entry {shown(name, 40)!r}"
            yield Row(at=at, values={"name": name} | _object(path, at, entry))
        return
    if not isinstance(whole, list):
        raise wrong(path, "", "neither a list nor an object; next: write a list of objects")
    for number, entry in enumerate(whole):
        at = f"entry {number + 1}"
        if isinstance(entry, str):
            if entry.strip():
                yield Row(at=at, values={"prompt": entry, "name": _numbered(number)})
        else:
            yield Row(at=at, values=_object(path, at, entry))


def _msrvtt(path: Path, whole: dict[str, Any], captions: str, split: str) -> Iterator[Row]:
    """Yield captions by video, in the order of the videos, of one video in the order of the sentences."""
    videos: dict[str, dict[str, Any]] = {}
    for at, video in _listed(path, whole, "videos"):
        videos[_said(path, at, video, "video_id")] = video
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in videos}
    for at, sentence in _listed(path, whole, "sentences"):
        name, caption = (_said(path, at, sentence, key) for key in ("video_id", "caption"))
        if videos and name not in videos:
            raise wrong(path, at, f"video_id: {name!r} is not among the videos; next: add it there")
        found.setdefault(name, []).append((at, caption))
    chosen = [n for n in found if not split or videos.get(n, {}).get("split") == split]
    if not chosen:
        splits = sorted({shown(video.get("split")) for video in videos.values()})
        has = f"it has {', '.join(splits)}" if splits else "its videos say none"
        raise wrong(path, "", f"no video of split={split!r}; {has}; next: choose another split")
    for name in chosen:
        if not found[name]:
            raise wrong(path, "", f"video {name!r} has no sentence; next: give it one")
        kept = {key: videos.get(name, {}).get(key) for key in ("category", "split")}
        said = {key: value for key, value in kept.items() if value is not None}
        for at, caption in found[name][: None if captions == "all" else 1]:
            yield Row(at=at, values={"prompt": caption, "name": name, **said})


def _listed(path: Path, whole: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    listed = whole.get(key, [])
    if not isinstance(listed, list):
        raise wrong(path, "", f"{key}: not a list; next: use MSR-VTT's annotations as they are")
    for number, entry in enumerate(listed):
        at = f"{key}[{number}]"
        yield at, _object(path, at, entry)


def _said(path: Path, at: str, values: dict[str, Any], key: str) -> str:
    text = values.get(key)
    if not isinstance(text, str) or not text.strip():
        raise wrong(path, at, f"{key}: not a text; next: use MSR-VTT's annotations as they are")
    return text


class _Unsaid(ValueError):
    """What JSON's readers take though JSON has no such thing."""


def _loads(path: Path, at: str, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_refused)
    except _Unsaid as error:
        raise wrong(path, at, f"{error}; next: correct it") from None
    except json.JSONDecodeError as error:
        at = at or f"line {error.lineno}"
        why = f"not JSON ({error.msg} at character {error.colno})"
        raise wrong(path, at, f"{why}; next: correct it") from None
    except (ValueError, RecursionError) as error:
        raise wrong(path, at, f"not JSON ({shown(error, 80)}); next: correct it") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Unsaid(f"{shown(twice, 40)}: named twice")
    return values


def _refused(word: str) -> Any:
    raise _Unsaid(f"{word} is no number of JSON")
