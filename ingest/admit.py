"""What becomes of an offered clip: its ledger rows, its payload, and what is said about it."""

import os
import zlib
from dataclasses import dataclass, field
from typing import Any

from ingest.clip import digest_of
from ingest.ledger import Fate, Unit, printable, source_row
from ingest.offers import MAX_PAYLOAD_BYTES, Malformed, Offered, Part
from ingest.schema import payload_schema
from ingest.source import Member, Source, tar_in
from ingest.takedown import RULE


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
        rule=RULE,
        message="was taken down from this dataset; it does not come back by an import",
    )


def failed(part: str, name: str, problem: str, *, size: int = 0, sha256: str = "") -> Admitted:
    """Return the unit of something that could not even be read."""
    unit_id = digest_of({"import": name, "sha": sha256, "problem": problem})
    unit = Unit(unit_id=unit_id, source=source_at(f"{part}/{name}", size), source_sha256=sha256)
    fate = Fate(name="failed", stage="open", error_class="Malformed", message=problem)
    return Admitted(unit=unit, fate=fate)


def source_at(uri: str, size: object) -> Source:
    """Return a source from what a stranger said of it."""
    try:
        os.fsencode(uri)
    except UnicodeEncodeError:  # half of a pair of surrogates, as JSON may hold
        uri = printable(uri)
    tar = tar_in(uri)
    return Source(
        uri=uri,
        bytes=size if isinstance(size, int) else 0,
        mtime_ns=0,
        member=Member(tar=tar) if tar else None,
    )


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
