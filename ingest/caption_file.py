"""One file of captions for many videos: JSON lines of video, caption and, where it holds, start_s and end_s.

A row names its video by path (absolute, or from the file's folder) or by the path's last parts, the
name alone included, where only one of the videos ends so.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A caption, and from when to when in its video it holds."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Matched:
    """The rows of each video, by its path or URI; names that mean no video, and those that mean several."""

    rows: Mapping[str, tuple[Row, ...]]
    unknown: tuple[str, ...]
    ambiguous: tuple[str, ...]


def matched(path: Path, uris: Iterable[str]) -> Matched:
    """Say which video each row of a caption file speaks of; raises OSError, ValueError naming the line."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for uri in uris:
        by_name[PurePosixPath(uri).name].append(uri)
    rows: dict[str, tuple[Row, ...]] = {}
    unknown, ambiguous = [], []
    # What says more of where its video lies is said first, and the first of equal rows counts.
    said = rows_of(path)
    for name in sorted(said, key=lambda name: -len(_parts(name))):
        found = _meant(name, path, by_name)
        if len(found) == 1:
            rows[found[0]] = (*rows.get(found[0], ()), *said[name])
        else:
            (ambiguous if found else unknown).append(name)
    return Matched(rows=rows, unknown=tuple(unknown), ambiguous=tuple(ambiguous))


def _meant(name: str, path: Path, by_name: Mapping[str, list[str]]) -> list[str]:
    parts = _parts(name)
    near = by_name.get(parts[-1], []) if parts else []
    # The path is made plain without asking the disk, as a listing does.
    whole = os.path.abspath(path.parent / name)  # noqa: PTH100 - resolve() follows links
    if whole in near:
        return [whole]
    return [uri for uri in near if uri == name or PurePosixPath(uri).parts[-len(parts) :] == parts]


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.replace("\\", "/")).parts


def rows_of(path: Path) -> Mapping[str, tuple[Row, ...]]:
    """Return the rows of a caption file by the name of their video; raises OSError, ValueError naming the line."""
    status = path.stat()
    return _parsed(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _parsed(path: Path, _mtime_ns: int, _size: int) -> Mapping[str, tuple[Row, ...]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for number, line in enumerate(path.read_text("utf-8").split("\n"), 1):
        if line.strip():
            name, row = _row(line, f"{path}:{number}")
            found[name].append(row)
    return {name: tuple(rows) for name, rows in found.items()}


def _row(line: str, place: str) -> tuple[str, Row]:
    try:
        value = json.loads(line)
        start_s, end_s = float(value.get("start_s", 0)), float(value.get("end_s", "inf"))
        name, text = value["video"], value["caption"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{place}: not a caption row with video and caption ({error!r})"
        ) from error
    if not isinstance(name, str) or not isinstance(text, str):
        raise ValueError(f"{place}: video and caption must be text")  # noqa: TRY004 - bad data, no bug
    return name, Row(start_s=start_s, end_s=end_s, text=text)
