"""Clips of strangers: each is its own source, and has to satisfy the dataset's contract."""

import hashlib
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ingest.admit import Admitted, Candidate, failed, payload_of, source_at
from ingest.clip import clip_id, digest_of, played_s
from ingest.ledger import Fate, Unit, base_row
from ingest.offers import Malformed, Offered, Part, Said, said
from ingest.vet import Vetted, Vetting

PRODUCER = "import/v1"


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
        source=source_at(f"{place}/{offered.name}", len(payload)),
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
