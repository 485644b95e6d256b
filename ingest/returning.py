"""Clips of an export of ours: they come back as what they were, when all their hashes agree."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import Any

import pyarrow as pa

from ingest.admit import Admitted, Candidate, payload_of, source_at
from ingest.clip import clip_id, digest_of
from ingest.ledger import Fate, Unit, base_row, to_table
from ingest.offers import Malformed, Offered, Part
from ingest.passport import LISTS, ORIGIN
from ingest.schema import SCORES

_HEX = re.compile(r"[0-9a-f]{64}")
_OF_SHEET = (
    *("source_uri", "source_sha256", *ORIGIN, "start_s", "end_s", *SCORES, "phash", "payload_kind"),
    *("fps_num", "fps_den", "frame_count", "width", "height", "payload_sha256"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """A clip of an export of ours: its source and identity, and where it is offered."""

    source_sha256: str
    clip_id: str
    payload_sha256: str
    part: Part
    offered: Offered


def known(part: Part, offered: Offered) -> Known:
    """Return the identity that the sheet of an offered clip states; raises Malformed."""
    sheet = part.sheet(offered)
    names = ("source_sha256", "clip_id", "payload_sha256")
    hashes = {name: sheet.get(name) for name in names}
    if not all(isinstance(value, str) and _HEX.fullmatch(value) for value in hashes.values()):
        raise Malformed(f"its sheet lacks {', '.join(names)}")
    return Known(part=part, offered=offered, **{name: str(hashes[name]) for name in names})


def returning(clips: list[Known], *, prep_digest: str, skip: set[str]) -> Admitted | str:
    """Return the unit of one source of an export of ours, every payload checked.

    It is the unit's id alone when that is among `skip`.
    """
    listed = sorted([clip.clip_id, clip.payload_sha256] for clip in clips)
    source = clips[0].source_sha256
    told = {"import": "source", "source": source, "clips": listed, "prep": prep_digest}
    unit_id = digest_of(told)
    if unit_id in skip:
        return unit_id
    first = clips[0].part.sheet(clips[0].offered)
    place = source_at(str(first.get("source_uri") or ""), first.get("source_bytes"))
    unit = Unit(unit_id=unit_id, source=place, source_sha256=source)
    keep = str(first.get("keep_digest") or "")
    sheets = [clip.part.sheet(clip.offered) for clip in clips]
    typed = _typed([_row(clip, sheet, unit) for clip, sheet in zip(clips, sheets, strict=True)])
    return Admitted(
        unit=unit,
        candidates=[
            _returned(clip, sheet, unit, prep_digest=prep_digest, typed=typed)
            for clip, sheet in zip(clips, sheets, strict=True)
        ],
        keep_digest=keep if _HEX.fullmatch(keep) else "",
    )


def _row(clip: Known, sheet: Mapping[str, Any], unit: Unit) -> dict[str, Any]:
    same = {"unit_id": unit.unit_id, "kind": "clip", "id": clip.clip_id}
    return {**{name: sheet.get(name) for name in _OF_SHEET}, **same}


def _typed(rows: list[dict[str, Any]]) -> bool:
    """Whether every value of some clips' rows has its column's type."""
    try:
        to_table([{**row, "fate": "kept", "attempts": 1} for row in rows])
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return False
    return True


def _returned(
    clip: Known, sheet: Mapping[str, Any], unit: Unit, *, prep_digest: str, typed: bool
) -> Candidate:
    row = _row(clip, sheet, unit)
    try:
        if not typed and not _typed([row]):
            raise Malformed("its sheet holds values of other types")  # noqa: TRY301
        _check_identity(row, prep_digest)
        payload = _checked(payload_of(clip.part, clip.offered), clip.payload_sha256)
        return Candidate(row=row, fate=Fate(name="kept"), payload=payload, said=_lists(row, sheet))
    except (Malformed, ValueError, TypeError) as error:
        fate = Fate(name="failed", stage="check", error_class="Malformed", message=str(error))
        same = {name: row[name] for name in ("kind", "id")}
        return Candidate(row={**base_row(unit, prep_digest, ""), **same}, fate=fate)


def _checked(payload: bytes, sha256: str) -> bytes:
    if hashlib.sha256(payload).hexdigest() != sha256:
        raise Malformed("the payload is not the one its sheet names; export it again")
    return payload


def _check_identity(row: Mapping[str, Any], prep_digest: str) -> None:
    found = clip_id(
        source_sha256=row["source_sha256"],
        stream_index=row["stream_index"],
        start_pts=row["start_pts"],
        end_pts=row["end_pts"],
        timebase=Fraction(row["timebase_num"], row["timebase_den"]),
        prep_digest=prep_digest,
    )
    if row["prep_digest"] != prep_digest or found != row["id"]:
        raise Malformed("its id is not that of its source, times and preparation")


def _lists(row: Mapping[str, Any], sheet: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the annotation rows that a sheet of ours tells of; raises Malformed, ValueError."""
    found = {}
    for name, shown in LISTS.items():
        value = sheet.get(name, [])
        listed = json.loads(value) if isinstance(value, str) else value
        if not isinstance(listed, list):
            raise Malformed(f"{name} is not a list")
        by = {"source_sha256": row["source_sha256"]}
        if name != "rights":
            by = {"clip_id": row["id"], "payload_sha256": row["payload_sha256"]}
        found[name] = [{**by, **_statement(one, shown)} for one in listed]
    return found


def _statement(said: object, shown: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(said, dict) or set(said) != set(shown):
        raise Malformed(f"a statement without {', '.join(shown)}")
    for name, value in said.items():
        if name == "rank":
            if type(value) is not int or not -(2**31) <= value < 2**31:
                raise Malformed("rank is not a small whole number")
            continue
        if not isinstance(value, str):
            raise Malformed(f"{name} is {type(value).__name__}, not text")
        value.encode()  # half of a pair of surrogates is no text
        if name == "at":
            datetime.fromisoformat(value)  # the latest statement holds: it has to be a moment
    return said
