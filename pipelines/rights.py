"""Rights: what the listing of the sources says of licence and consent, as statements of the rights annotation.

The listing states a thing once: what somebody else states later holds until the listing says something new. No payload is read.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from ingest.annotate import VALUES, moment_after
from ingest.caption import clean
from ingest.schema import rights_schema
from ingest.store import Dataset
from ingest.unit import Unit
from pipelines.annotate import Teller
from pipelines.identity import digest

PRODUCER = "manifest/v1"
REFUSED = "refused"
SHOWN = 3
Words = dict[str, str]  # by column; one that is absent was not spoken of, "" is unknown


def state(dataset: Dataset, units: Sequence[Unit], teller: Teller) -> int:
    """State what the listing newly says of the contents of its sources; return of how many.

    What it says nothing of stays as it is. Where it says two things of one content, one of them that
    consent is refused, that holds; else nobody knows, and a warning names the sources.
    Raises tables.NotOurs, StorageError, store.ReadOnly.
    """
    said = _said(units, teller)
    if not said:
        return 0
    dataset.refresh()
    gone, rows = dataset.purged(), dataset.annotation("rights")
    held, ours = _latest(rows.to_pylist())
    at = moment_after(rows)
    fresh = [
        held.get(source, dict.fromkeys(VALUES["rights"], ""))
        | {"source_sha256": source, "producer": PRODUCER, "at": at, "settings": told}
        | words
        for source, words in said.items()
        if source not in gone and ours.get(source) != (told := digest(words))
    ]
    if fresh:
        table = pa.Table.from_pylist(fresh, schema=rights_schema())
        app_id = f"rights/{PRODUCER}"
        number = dataset.next_annotation("rights", app_id)
        dataset.annotate("rights", table, app_id=app_id, batch=number)
        teller.stage(f"rights: licence or consent of {len(fresh)} sources stated")
    return len(fresh)


def _said(units: Iterable[Unit], teller: Teller) -> dict[str, Words]:
    """Return by content what the listing says of it."""
    by_content: dict[str, dict[str, Mapping[str, str]]] = {}
    for unit in units:
        words = {column: clean(getattr(unit.source.said, column)) for column in VALUES["rights"]}
        if unit.source_sha256 and any(words.values()):
            by_content.setdefault(unit.source_sha256, {})[unit.source.printable_uri] = words
    found, torn = {}, []
    for source, told in sorted(by_content.items()):
        found[source], is_torn = _agreed(told.values())
        torn += [" and ".join(sorted(told))] if is_torn else []
    if torn:
        what = f"rights: {len(torn)} contents with two statements of licence or consent, such as"
        teller.warn(f"{what} {'; '.join(torn[:SHOWN])}")
    return found


def _agreed(told: Iterable[Mapping[str, str]]) -> tuple[Words, bool]:
    """Return what all that is told of one content comes to, and whether it contradicts itself."""
    found, is_torn = Words(), False
    told = list(told)
    for column in VALUES["rights"]:
        values = {words[column] for words in told} - {""}
        is_torn |= len(values) > 1
        if len(values) > 1:
            found[column] = REFUSED if REFUSED in values else ""
        elif values:
            (found[column],) = values
    return found, is_torn


def _latest(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Words], dict[str, str]]:
    """Return by content the rights that hold, and the digest of what the listing stated last."""
    columns = VALUES["rights"]
    # The order of clips.RIGHTS_ORDER, the last one first.
    ordered = sorted(rows, key=lambda row: (row["producer"], *(row[c] for c in columns)))
    ordered.sort(key=lambda row: row["at"], reverse=True)
    held: dict[str, Words] = {}
    ours: dict[str, str] = {}
    for row in ordered:
        held.setdefault(row["source_sha256"], {column: row[column] for column in columns})
        if row["producer"] == PRODUCER:
            ours.setdefault(row["source_sha256"], row["settings"])
    return held, ours
