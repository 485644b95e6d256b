"""What annotation passes found of clips, beside the ledger's columns: scores, and vectors of some clips."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.columns import Column, among, index_in, joined
from ingest.refs import ANNOTATED
from ingest.store import Dataset
from ingest.upkeep import query

Alike = Callable[[str, str], bool]
_SHOWN = 5000  # clips named in one query


@dataclass(frozen=True, kw_only=True, slots=True)
class Pending:
    """What passes of this run are still to make, so that older answers do not decide before them.

    `scores`: the settings that a row of a score must have to count; "" when none of them counts.
    `vectors`: the settings of the vectors that both of two clips will have.
    """

    scores: Mapping[str, str] = field(default_factory=dict)
    vectors: str = ""


NOTHING_PENDING = Pending()


def scored(
    dataset: Dataset, ledger: pa.Table, names: Sequence[str], pending: Pending = NOTHING_PENDING
) -> pa.Table:
    """Return ledger rows with a column for each score of `names` that passes stored.

    `ledger` has the columns id and payload_sha256: a score counts only for the very payload that it
    was taken of. Unknown is null. Of several producers the first by name is believed.
    """
    table = dataset.table(f"{ANNOTATED}/scores")
    if table is None or not names:
        return ledger
    rows = table.rows(["clip_id", "producer", "payload_sha256", "settings", "name", "value"])
    rows = rows.filter(pa.array(among(rows.column("name"), names)))
    rows = rows.filter(rows.column("value").is_valid())
    of_clip = ledger.column("id"), ledger.column("payload_sha256")
    for name in names:
        mine = among(rows.column("name"), [name])
        if name in pending.scores:
            mine &= among(rows.column("settings"), [pending.scores[name]])
        said = rows.filter(pa.array(mine)).select(
            ["clip_id", "producer", "payload_sha256", "value"]
        )
        if len(said.column("producer").unique()) > 1:
            said = said.sort_by("producer")
        at = _found(of_clip, (said.column("clip_id"), said.column("payload_sha256")))
        ledger = ledger.append_column(name, said.column("value").take(at).cast(pa.float64()))
    return ledger


def _found(wanted: tuple[Column, Column], stored: tuple[Column, Column]) -> Column:
    """Return where each wanted pair of id and payload is first stored, null where it is not."""
    ids = index_in(wanted[0], stored[0])
    if len(stored[0].unique()) < len(stored[0]):  # several rows a clip: the pairs are compared
        return index_in(joined(*wanted), joined(*stored))  # never stored: no payload, so no key
    same = pc.call_function("equal", [stored[1].take(ids), wanted[1]])
    return pc.call_function("if_else", [same, ids, pa.scalar(None, ids.type)])


def alike(
    dataset: Dataset,
    clips: Collection[str],
    *,
    min_cosine: float,
    pending: Pending = NOTHING_PENDING,
) -> Alike:
    """Return whether two of `clips`, whose hashes are near, are copies by their vectors too.

    Vectors of one producer and settings are compared. Where one clip has none the hashes alone decide,
    unless both will have one: then they are no copies yet.
    """
    found = _vectors(dataset, clips)

    def decide(one: str, other: str) -> bool:
        first, second = found.get(one, {}), found.get(other, {})
        if pending.vectors and pending.vectors not in first.keys() & second.keys():
            return False
        shared = sorted(first.keys() & second.keys(), key=lambda key: (key != pending.vectors, key))
        if not shared:
            return True
        return float(first[shared[0]] @ second[shared[0]]) >= min_cosine

    return decide


def _vectors(dataset: Dataset, clips: Collection[str]) -> dict[str, dict[str, np.ndarray]]:
    """Return the vectors of clips by their settings, of length 1."""
    table = dataset.table(f"{ANNOTATED}/embeddings")
    found: dict[str, dict[str, np.ndarray]] = {}
    names = sorted(name.replace("'", "''") for name in clips)
    if table is None:
        return found
    for start in range(0, len(names), _SHOWN):
        shown = ", ".join(f"'{name}'" for name in names[start : start + _SHOWN])
        sql = (
            "SELECT e.clip_id, e.producer, e.settings, e.vector FROM embeddings e JOIN ledger k "
            "ON k.id = e.clip_id AND k.payload_sha256 = e.payload_sha256 "
            f"WHERE e.clip_id IN ({shown})"
        )
        for row in query({"embeddings": table, "ledger": dataset.ledger_table}, sql).to_pylist():
            vector = np.frombuffer(row["vector"], "<f2").astype(np.float32)
            key = row["settings"] or row["producer"]
            found.setdefault(row["clip_id"], {})[key] = vector / np.linalg.norm(vector)
    return found
