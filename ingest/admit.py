"""What becomes of an offered clip: its ledger rows, its payload, and what is said about it.

A clip of an export of ours comes back as what it was, when its hashes agree. A stranger's clip is
its own source, and has to satisfy the dataset's contract.
"""

import hashlib
import json
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from typing import Any

import pyarrow as pa

from ingest.clip import clip_id, digest_of, played_s
from ingest.ledger import Fate, Unit, base_row, printable, source_row, to_table
from ingest.offers import MAX_PAYLOAD_BYTES, Malformed, Offered, Part, Said, said
from ingest.passport import LISTS, ORIGIN
from ingest.schema import ANNOTATIONS, SCORES, payload_schema
from ingest.sources import Source
from ingest.vet import Vetted, Vetting

PRODUCER = "import/v1"
RULE_CONTRACT, RULE_PURGED = "contract", "purged"
_HEX = re.compile(r"[0-9a-f]{64}")
_OF_SHEET = (
    *("source_uri", "source_sha256", *ORIGIN, "start_s", "end_s", *SCORES, "payload_kind"),
    *("fps_num", "fps_den", "frame_count", "width", "height", "payload_sha256"),
)


@dataclass(kw_only=True)
class Candidate:
    """A clip with its ledger row as yet, its payload if it may be kept, and what is said of it."""

    row: dict[str, Any]
    fate: Fate
    payload: bytes = b""
    said: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def shard_row(self) -> dict[str, Any]:
        """Return the clip as a row of a payload shard."""
        row, digests = self.row, ("source_sha256", "payload_sha256")
        same = {name: row[name] for name in payload_schema().names if name in row}
        return {
            **same,
            **{name: bytes.fromhex(row[name]) for name in digests},
            "clip_id": bytes.fromhex(row["id"]),
            "payload_crc32": zlib.crc32(self.payload),
            "prep_spec_digest": bytes.fromhex(row["prep_digest"]),
            "payload": self.payload,
        }


@dataclass(kw_only=True)
class Admitted:
    """One unit of an import: a source with its candidates, or with a fate that ends it."""

    unit: Unit
    fate: Fate = field(default_factory=lambda: Fate(name="kept"))
    candidates: list[Candidate] = field(default_factory=list)
    keep_digest: str = ""

    def settle(self, kept_ids: set[str], purged: set[str]) -> None:
        """Decide what depends on the clips that are there: taken down before, or known already."""
        for candidate in self.candidates:
            name = candidate.row["id"]
            if name in purged or self.unit.source_sha256 in purged:
                candidate.fate = _taken_down()
            elif candidate.fate.name == "kept" and name in kept_ids:
                candidate.fate = Fate(name="duplicate", duplicate_of=name)
            if candidate.fate.name == "kept":
                kept_ids.add(name)
        if self.candidates:
            self.fate = self._of_all([candidate.fate for candidate in self.candidates])

    def _of_all(self, fates: list[Fate]) -> Fate:
        by_name = {fate.name: fate for fate in reversed(fates)}
        if "kept" in by_name:
            return Fate(name="kept")
        if "duplicate" in by_name:
            return Fate(name="duplicate", duplicate_of=self.unit.source_sha256)
        return by_name.get("failed") or by_name["rejected"]

    def rows(self, prep_digest: str) -> list[dict[str, Any]]:
        """Return the unit's ledger rows, the source's own first."""
        clips = [{**c.row, **c.fate.columns()} for c in self.candidates]
        counted = {
            "num_candidates": len(clips),
            "num_kept": sum(c.fate.name == "kept" for c in self.candidates),
        }
        return [source_row(self.unit, self.fate, prep_digest, self.keep_digest) | counted, *clips]


def _taken_down() -> Fate:
    return Fate(
        name="rejected",
        rule=RULE_PURGED,
        message="was taken down from this dataset; it does not come back by an import",
    )


def failed(part: str, name: str, problem: str, *, size: int = 0, sha256: str = "") -> Admitted:
    """Return the unit of something that could not even be read."""
    unit_id = digest_of({"import": name, "sha": sha256, "problem": problem})
    unit = Unit(unit_id=unit_id, source=_source(f"{part}/{name}", size), source_sha256=sha256)
    fate = Fate(name="failed", stage="open", error_class="Malformed", message=problem)
    return Admitted(unit=unit, fate=fate)


def _source(uri: str, size: object) -> Source:
    try:
        os.fsencode(uri)
    except UnicodeEncodeError:  # half of a pair of surrogates, as JSON may hold
        uri = printable(uri)
    return Source(uri=uri, bytes=size if isinstance(size, int) else 0, mtime_ns=0)


def payload_of(part: Part, offered: Offered) -> bytes:
    """Return the payload of an offered clip; raises Malformed."""
    if offered.length > MAX_PAYLOAD_BYTES:
        raise Malformed(f"{offered.length} bytes are more than {MAX_PAYLOAD_BYTES}")
    try:
        payload = part.payload(offered)
    except OSError as error:
        raise Malformed(f"cannot be read: {error.strerror or error}") from error
    if not payload:
        raise Malformed("no payload: 0 bytes")
    return payload


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
    place = _source(str(first.get("source_uri") or ""), first.get("source_bytes"))
    unit = Unit(unit_id=unit_id, source=place, source_sha256=source)
    keep = str(first.get("keep_digest") or "")
    return Admitted(
        unit=unit,
        candidates=[_returned(clip, unit, prep_digest) for clip in clips],
        keep_digest=keep if _HEX.fullmatch(keep) else "",
    )


def _returned(clip: Known, unit: Unit, prep_digest: str) -> Candidate:
    sheet = clip.part.sheet(clip.offered)
    same = {"unit_id": unit.unit_id, "kind": "clip", "id": clip.clip_id}
    try:
        row = {**{name: sheet.get(name) for name in _OF_SHEET}, **same}
        to_table([{**row, "fate": "kept", "attempts": 1}])  # every type, in one go
        _check_identity(row, prep_digest)
        payload = _checked(payload_of(clip.part, clip.offered), clip.payload_sha256)
        return Candidate(row=row, fate=Fate(name="kept"), payload=payload, said=_lists(row, sheet))
    except (Malformed, pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        fate = Fate(name="failed", stage="check", error_class="Malformed", message=str(error))
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
    """Return the annotation rows that a sheet of ours tells of; raises Malformed, ArrowException."""
    found = {}
    for name, shown in LISTS.items():
        value = sheet.get(name, [])
        listed = json.loads(value) if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            raise Malformed(f"{name} is not a list of objects")
        by = {"source_sha256": row["source_sha256"]}
        if name != "rights":
            by = {"clip_id": row["id"], "payload_sha256": row["payload_sha256"]}
        for moment in (one.get("at", "") for one in listed if name == "rights"):
            datetime.fromisoformat(moment)  # the latest statement holds: it has to be a moment
        found[name] = [{**by, **{key: one.get(key) for key in shown}} for one in listed]
        pa.Table.from_pylist(found[name], schema=ANNOTATIONS[name][0]())
    return found


def stranger(
    part: Part, offered: Offered, *, place: str, vetting: Vetting, skip: set[str]
) -> Admitted | str:
    """Return the unit of a stranger's clip, or the unit's id alone when that is among `skip`."""
    try:
        payload = payload_of(part, offered)
    except Malformed as error:
        return failed(place, offered.name, str(error), size=offered.length)
    sha256, prep_digest = hashlib.sha256(payload).hexdigest(), vetting.prep.digest()
    told = {"import": offered.name, "sha": sha256, "prep": prep_digest}
    unit = Unit(
        unit_id=digest_of(told),
        source=_source(f"{place}/{offered.name}", len(payload)),
        source_sha256=sha256,
    )
    if unit.unit_id in skip:
        return unit.unit_id
    try:
        words = said(part.sheet(offered))
    except Malformed as error:
        fate = Fate(name="failed", stage="open", error_class="Malformed", message=str(error))
        return Admitted(unit=unit, fate=fate)
    verdict = vetting.verdict(payload)
    if isinstance(verdict, Fate):
        return Admitted(unit=unit, fate=verdict)
    row = _new_row(unit, verdict, prep_digest)
    candidate = Candidate(
        row=row, fate=Fate(name="kept"), payload=payload, said=_words(row, words, part.at)
    )
    return Admitted(unit=unit, candidates=[candidate])


def _new_row(unit: Unit, vetted: Vetted, prep_digest: str) -> dict[str, Any]:
    """Return the ledger row of a payload that is its own source: its clock ticks once a frame."""
    timebase = Fraction(vetted.fps_den, vetted.fps_num) if vetted.fps_num else Fraction(1)
    identity = clip_id(
        source_sha256=unit.source_sha256,
        stream_index=0,
        start_pts=0,
        end_pts=vetted.frame_count,
        timebase=timebase,
        prep_digest=prep_digest,
    )
    shape = {name: getattr(vetted, name) for name in vetted.__slots__ if name != "scores"}
    return {
        **base_row(unit, prep_digest, ""),
        **shape,
        **vetted.scores,
        "kind": "clip",
        "id": identity,
        "stream_index": 0,
        "timebase_num": timebase.numerator,
        "timebase_den": timebase.denominator,
        "start_pts": 0,
        "end_pts": vetted.frame_count,
        "start_s": 0.0,
        "end_s": played_s(vetted.frame_count, vetted.fps_num, vetted.fps_den),
        "shot_index": 0,
        "payload_sha256": unit.source_sha256,
    }


def _words(row: Mapping[str, Any], words: Said, at: str) -> dict[str, list[dict[str, Any]]]:
    by = {"clip_id": row["id"], "payload_sha256": row["payload_sha256"], "producer": PRODUCER}
    source = {"source_sha256": row["source_sha256"], "producer": PRODUCER, "at": at}
    rights = {"licence": words.licence, "consent": words.consent}
    return {
        "captions": [{**by, "caption": words.caption, "rank": 0}] if words.caption else [],
        "labels": [{**by, "label": words.label}] if words.label else [],
        "rights": [{**source, **rights}] if any(rights.values()) else [],
    }
