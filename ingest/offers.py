"""Clips that are offered for import, and what their sheets may say about them.

Everything here was written by strangers: types are checked, names never become places on disk.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from ingest.caption import clean

MAX_PAYLOAD_BYTES = 1 << 30
MAX_SHEET_BYTES = 16 << 20
NAME_CHARS = 1024
MEDIA = ("mp4", "png", "bin")
CAPTION, LABEL = ("caption", "text"), ("label", "class")
LICENCE, CONSENT = ("licence", "license"), ("consent",)


class Malformed(ValueError):
    """A sheet that does not say what it should in the way it should."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Offered:
    """A clip in a part of an import, by its unique name.

    `at` is its number in the part, `offset` and `length` place the payload where the part is one
    file; with a `problem` it can only get the fate of that.
    """

    name: str
    at: int
    offset: int = 0
    length: int = 0
    problem: str = ""


class Part(Protocol):
    """One tar, one table or one Lance dataset: its digest, and `at`, when its words were written.

    `problem` is what made it end early.
    """

    name: str
    sha256: str
    at: str
    problem: str
    offers: list[Offered]

    def sheet(self, offered: Offered) -> dict[str, Any]:
        """Return what is said about a clip; raises Malformed."""
        ...

    def payload(self, offered: Offered) -> bytes:
        """Return the payload of a clip; raises OSError, Malformed."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What a stranger's sheet says about a clip; "" where it is silent."""

    caption: str = ""
    label: str = ""
    licence: str = ""
    consent: str = ""


def said(sheet: Mapping[str, Any]) -> Said:
    """Return the caption, label and rights of a stranger's sheet; raises Malformed."""
    return Said(
        caption=clean(_text(sheet, CAPTION)),
        label=clean(_text(sheet, LABEL, numbers=True)),
        licence=clean(_text(sheet, LICENCE)),
        consent=clean(_text(sheet, CONSENT)),
    )


def _text(sheet: Mapping[str, Any], names: tuple[str, ...], *, numbers: bool = False) -> str:
    for name in names:
        value = sheet.get(name)
        if value is None:
            continue
        if isinstance(value, int) and numbers and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise Malformed(f"{name} is {type(value).__name__}, not text")
        return value
    return ""


def written_at(path: Path) -> str:
    """Return when a file was last changed, as ISO 8601 in UTC."""
    moment = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return moment.isoformat(timespec="microseconds")


def check_name(name: str) -> str:
    """Return what is wrong with a name inside an import, "" for a good one."""
    if len(name) > NAME_CHARS:
        return f"a name of {len(name)} characters"
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or "\0" in name:
        return "its name leads outside"
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return "its name is no text"
    return ""


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object in `text`; raises Malformed."""
    try:
        values = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise Malformed("not a JSON object")
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise Malformed("a key is named twice")
    return values
