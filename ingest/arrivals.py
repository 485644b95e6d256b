"""What lies at a place to import from: whose it is, in which format, and its digest."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ingest import exports, passport
from ingest.clip import Prep, digest_of
from ingest.folders import FolderPart
from ingest.lance import FOLDER, LancePart
from ingest.offers import Malformed, Part
from ingest.sheets import SUFFIXES, NotASheet
from ingest.sources import sha256_file
from ingest.tars import TarPart

Format = Literal["auto", "webdataset", "folder", "lance"]
_TABLE = re.compile(r"metadata\.(csv|jsonl|parquet)")


class NotImportable(ValueError):
    """The place holds nothing that can be imported, or a damaged export of ours."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """What was found: its parts, and for a whole export of ours the preparation of its clips."""

    place: Path
    format: str
    parts: list[Part]
    digest: str
    prep: Prep | None = None


def arrival(place: Path, format: Format = "auto") -> Arrival:  # noqa: A002
    """Look at a place; raises NotImportable, lance.LanceMissing."""
    try:
        if (place / exports.DONE).is_file():
            return _ours(place, format)
        if (place / exports.UNFINISHED).exists():
            raise NotImportable(f"{place}: an unfinished export; run that export again first")
        wanted = _recognised(place) if format == "auto" else format
        parts = FINDERS[wanted](place)
    except NotASheet as error:
        raise NotImportable(str(error)) from error
    except OSError as error:
        raise NotImportable(f"{place}: {error.strerror or error}") from error
    if not parts:
        raise NotImportable(
            f"{place}: no tars, no table of clips (metadata.csv, .jsonl, .parquet) and no Lance "
            "dataset; raw videos are cut into clips by `kinoray curate`"
        )
    digest = digest_of([[part.name, part.sha256] for part in parts])
    return Arrival(place=place, format=wanted, parts=parts, digest=digest)


def _recognised(place: Path) -> Literal["webdataset", "folder", "lance"]:
    if place.is_file() or any(place.rglob("*.tar")):
        return "webdataset"
    if (place / "_versions").is_dir() or any(place.glob("*.lance")):
        return "lance"
    return "folder"


def _tars(place: Path) -> list[Part]:
    paths = [place] if place.is_file() else sorted(place.rglob("*.tar"))
    base = place.parent if place.is_file() else place
    return [TarPart(path, path.relative_to(base).as_posix(), sha256_file(path)) for path in paths]


def _tables(place: Path) -> list[Part]:
    tables = [path for path in sorted(place.iterdir()) if _TABLE.fullmatch(path.name)]
    if len(tables) > 1:
        raise NotImportable(f"{place}: has several tables ({', '.join(SUFFIXES)}); leave one")
    return [FolderPart(place, table, sha256_file(table)) for table in tables]


def _lances(place: Path) -> list[Part]:
    paths = [place] if (place / "_versions").is_dir() else sorted(place.glob("*.lance"))
    try:
        return [LancePart(path) for path in paths]
    except ValueError as error:
        raise NotImportable(f"{place}: {str(error).splitlines()[0][:300]}") from error


FINDERS: Mapping[str, Callable[[Path], list[Part]]] = {
    "webdataset": _tars,
    "folder": _tables,
    "lance": _lances,
}


def _ours(place: Path, format: Format) -> Arrival:  # noqa: A002
    """Return a whole export of ours, every file as its last word says."""
    try:
        told = json.loads((place / exports.DONE).read_bytes())
        settings, prep_digest = dict(told["prep"]), str(told["prep_digest"])
        files = {str(file["name"]): str(file["sha256"]) for file in told["files"]}
        kind, version = str(told["format"]), told["kinoray.export"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotImportable(f"{place / exports.DONE}: not an export of ours: {error}") from error
    if version != exports.LAYOUT or kind not in FINDERS or format not in ("auto", kind):
        raise NotImportable(f"{place}: an export in layout {version}, format {kind}")
    parts = FINDERS[kind](place)
    found = {part.name: part.sha256 for part in parts}
    wrong = sorted(found.keys() ^ files.keys()) or [
        n for n in files if files[n] not in ("", found[n])
    ]
    if not wrong and kind == "lance" and _said(parts) != told.get("passports"):
        wrong = [FOLDER]
    if wrong:
        raise NotImportable(
            f"{place}: {wrong[0]} is missing, too much, or not as it was exported; export again"
        )
    prep = passport.prep_of(settings, prep_digest)
    return Arrival(place=place, format=kind, parts=parts, digest=digest_of(told), prep=prep)


def _said(parts: list[Part]) -> str:
    """Return the digest of all passports in a Lance dataset: its files have no hash of their own."""
    try:
        return passport.digest(part.sheet(offered) for part in parts for offered in part.offers)
    except (Malformed, KeyError, TypeError, ValueError):
        return ""
