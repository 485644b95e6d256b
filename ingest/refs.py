"""Names for versions: a tag says which version of which table belongs together.

Each tag is a file of its own that is created if absent, so that two people tagging at once cannot
lose one of the tags, and no reader ever sees half a list.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingest.objects import Root
from ingest.tables import NotATable, Table
from ingest.upkeep import committed_at_s, version_at

LEDGER, LOG = "ledger", "log"
ANNOTATED = "annotations"
TAGS = "tags"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


class NoSuchVersion(ValueError):
    """There is no such tag or version, or its files are gone."""

    exit_code = 2


class TagTaken(ValueError):
    """A tag of that name exists; tags do not move."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A table's folder below the root and which version of it is meant, -1 for the newest."""

    path: str
    version: int = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Tag:
    """A named version of a dataset: the places of its tables by their names, and what it says."""

    name: str
    at: str
    digest: str
    tables: Mapping[str, Place] = field(default_factory=dict)


def head(root: Root) -> dict[str, Place]:
    """Return the newest version of every table: the ledger, the log, and each annotation."""
    names = [f"{ANNOTATED}/{name}" for name in root.folders(ANNOTATED)]
    return {name: Place(path=name) for name in (LEDGER, LOG, *names)}


def resolve(root: Root, at: str) -> dict[str, Place]:
    """Return the tables that `at` means: "" the newest, a tag, or a version number of the ledger.

    Raises NoSuchVersion.
    """
    if not at:
        return head(root)
    if not at.isdigit():
        return dict(read_tag(root, at).tables)
    newest = Table.open(root, LEDGER).version
    if int(at) > newest:
        raise NoSuchVersion(f"{root}: version {at} is not there yet; the newest is {newest}")
    try:
        ledger = Table.open(root, LEDGER, int(at))
        moment_s = committed_at_s(ledger, int(at))
    except NotATable as error:
        raise NoSuchVersion(f"{root}: version {at}: {error}; see `kinoray dataset info`") from error
    places = {LEDGER: Place(path=LEDGER, version=int(at))}
    for name in head(root):
        if name not in (LEDGER, LOG):
            try:
                version = version_at(Table.open(root, name), moment_s)
            except NotATable:  # it came later
                continue
            places[name] = Place(path=name, version=version)
    return places


def tags(root: Root) -> list[Tag]:
    """Return all tags, oldest first."""
    found = [e.name for e in root.names(TAGS) if e.name.endswith(".json") and "/." not in e.name]
    listed = [_read(root, name) for name in found if name.count("/") == 1]
    return sorted(listed, key=lambda tag: (tag.at, tag.name))


def read_tag(root: Root, name: str) -> Tag:
    """Return a tag; raises NoSuchVersion."""
    check_name(name)
    try:
        return _read(root, f"{TAGS}/{name}.json")
    except FileNotFoundError as error:
        known = ", ".join(tag.name for tag in tags(root)) or "none"
        raise NoSuchVersion(f"{root}: no tag {name!r}; its tags: {known}") from error


def write_tag(root: Root, tag: Tag, *, move: bool = False) -> None:
    """Store a tag; raises TagTaken when the name is taken, unless it is to be moved."""
    check_name(tag.name)
    told = {
        "name": tag.name,
        "at": tag.at,
        "digest": tag.digest,
        "tables": {k: {"path": p.path, "version": p.version} for k, p in tag.tables.items()},
    }
    data = (json.dumps(told, indent=1, sort_keys=True) + "\n").encode()
    if move:
        root.replace(f"{TAGS}/{tag.name}.json", data)
    elif not root.create(f"{TAGS}/{tag.name}.json", data):
        raise TagTaken(f"{root}: tag {tag.name!r} exists; choose another name or remove it first")


def remove_tag(root: Root, name: str) -> None:
    """Remove a tag; raises NoSuchVersion. The versions it named may be collected from then on."""
    read_tag(root, name)
    root.delete(f"{TAGS}/{name}.json")


def check_name(name: str) -> None:
    """Raise NoSuchVersion unless `name` can be a tag: a word that is no number."""
    if not NAME.fullmatch(name):
        raise NoSuchVersion(
            f"{name!r}: a tag is a word of letters, digits, '.', '-', '_' that begins with a letter"
        )


def _read(root: Root, path: str) -> Tag:
    try:
        told: dict[str, Any] = json.loads(root.read(path))
        places = {k: Place(path=p["path"], version=p["version"]) for k, p in told["tables"].items()}
        return Tag(name=Path(path).stem, at=told["at"], digest=told["digest"], tables=places)
    except (ValueError, KeyError, TypeError) as error:
        raise NoSuchVersion(f"{root.join(path)}: not a tag: {error}") from error
