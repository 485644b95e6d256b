"""`clips`, the relation that people ask and train from: kept clips with what is known of each.

Written as SQL over the stored tables, so that a million rows cost seconds and no Python objects, and
so that a query, a view and the digest all mean the same.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from ingest.schema import ANNOTATIONS, FAILED, SCORES, conformed, ledger_schema, log_schema
from ingest.tables import Table
from ingest.upkeep import query

CLIP_COLUMNS = [
    "source_uri",
    "source_sha256",
    "start_s",
    "end_s",
    "shard",
    "offset",
    "length",
    "crc32",
    "fps_num",
    "fps_den",
    "frame_count",
    "width",
    "height",
    "payload_kind",
    "payload_sha256",
]
HASHES = ("phash",)  # what curation stores for the search of near duplicates
SAID = ("caption", "caption_producer", "label", "licence", "consent")
RIGHTS_ORDER = "at DESC, producer, licence, consent"
READS = re.compile(r"\s*(select|with)\b", re.IGNORECASE)
SCORE_NAME = re.compile("[a-z][a-z0-9_]{0,62}")


class NotAQuery(ValueError):
    """Not one reading SQL statement, or one that the engine refuses."""

    exit_code = 2


def schema(scores: Iterable[str] = ()) -> pa.Schema:
    """Return the columns of `clips`, with those of the scores that annotation passes stored.

    What nobody said of a clip is empty text, a score that it lacks is null.
    """
    ledger = ledger_schema()
    return pa.schema(
        [
            pa.field("clip_id", pa.utf8(), nullable=False),
            *(ledger.field(name) for name in (*CLIP_COLUMNS, *SCORES)),
            *(pa.field(name, pa.utf8()) for name in HASHES),
            *(pa.field(name, pa.utf8(), nullable=False) for name in SAID),
            *(pa.field(name, pa.float64()) for name in scores),
        ]
    )


def own_columns() -> frozenset[str]:
    """Return the names that no score of an annotation pass may have."""
    return frozenset((*schema().names, *ledger_schema().names))


def score_names(tables: Mapping[str, Table]) -> list[str]:
    """Return the names of the scores that annotation passes stored, sorted; each is a column."""
    if "scores" not in tables:
        return []
    names = tables["scores"].rows(["name"]).column("name").unique().to_pylist()
    taken = own_columns()
    return sorted(name for name in names if SCORE_NAME.fullmatch(name) and name not in taken)


def select(tables: Mapping[str, Table], where: str, guards: list[str]) -> pa.Table:
    """Return the clips that meet a person's condition and all guards, sorted by clip_id; raises NotAQuery."""
    # The person's words stand in a query of their own, so that no bracket in them reaches the guards.
    chosen = f"SELECT * FROM clips WHERE (\n{where}\n)" if where.strip() else "SELECT * FROM clips"
    guarded = f" WHERE {' AND '.join(guards)}" if guards else ""
    scores = score_names(tables)
    sql = f"WITH {_relations(tables, scores)} SELECT * FROM ({chosen}){guarded} ORDER BY clip_id"
    return conformed(_asked(tables, sql), schema(scores))


def ask(tables: Mapping[str, Table], sql: str) -> pa.Table:
    """Return what one SELECT finds in the stored tables and in `clips`; raises NotAQuery."""
    text = sql.strip().rstrip(";").strip()
    if not READS.match(text) or ";" in re.sub(r"'[^']*'", "", text):
        raise NotAQuery("query: one SELECT statement is needed; it reads and changes nothing")
    begins = re.match(r"with\s+(recursive\s+)?", text, re.IGNORECASE)
    rest = f", {text[begins.end() :]}" if begins else f" {text}"
    recursive = "RECURSIVE " if begins and begins.group(1) else ""
    relations = _relations(tables, score_names(tables))
    return _asked(tables, f"WITH {recursive}{relations}{rest}")


def _asked(tables: Mapping[str, Table], sql: str) -> pa.Table:
    try:
        return query(tables, sql)
    except ValueError as error:
        raise NotAQuery(str(error)) from error


def _relations(tables: Mapping[str, Table], scores: Sequence[str]) -> str:
    """Return the common table expressions: empty relations for absent tables, then `clips`."""
    known = {name: make() for name, (make, _key) in ANNOTATIONS.items()} | {"log": log_schema()}
    absent = [_empty(name, columns) for name, columns in known.items() if name not in tables]
    stored = set(tables["ledger"].schema().names)
    wanted = (*CLIP_COLUMNS, *SCORES, *HASHES)
    shown = [f"k.{name}" if name in stored else f"NULL AS {name}" for name in wanted]
    measured = "".join(f", m.{name}" for name in scores)
    joined = "LEFT JOIN scored_ m ON m.clip_id = k.id AND m.payload_sha256 = k.payload_sha256"
    return ", ".join(
        [
            *absent,
            # Two recipes may keep the same clip; it is one clip.
            _kept(),
            # A caption or label counts only for the very payload it was made for.
            _first(
                "said_",
                _spoken(tables),
                "clip_id, payload_sha256",
                ("rank, producer, caption", "caption", "producer"),
            ),
            _first("named_", "labels", "clip_id, payload_sha256", ("producer, label", "label")),
            _first("righted_", "rights", "source_sha256", (RIGHTS_ORDER, "licence", "consent")),
            *([_scored(scores)] if scores else []),
            f"""clips AS (
                SELECT k.id AS clip_id, {", ".join(shown)},
                    coalesce(s.caption, '') AS caption, coalesce(s.producer, '') AS caption_producer,
                    coalesce(l.label, '') AS label,
                    coalesce(r.licence, '') AS licence, coalesce(r.consent, '') AS consent{measured}
                FROM kept_ k
                LEFT JOIN said_ s ON s.clip_id = k.id AND s.payload_sha256 = k.payload_sha256
                LEFT JOIN named_ l ON l.clip_id = k.id AND l.payload_sha256 = k.payload_sha256
                LEFT JOIN righted_ r ON r.source_sha256 = k.source_sha256
                {joined if scores else ""}
            )""",
        ]
    )


def _spoken(tables: Mapping[str, Table]) -> str:
    """Return the captions that count: those that did not fail."""
    stored = tables["captions"].schema().names if "captions" in tables else []
    return (
        f"(SELECT * FROM captions WHERE status IS DISTINCT FROM '{FAILED}')"
        if "status" in stored
        else "captions"
    )


def _scored(names: Sequence[str]) -> str:
    """Return one row a clip with a column for each score; of several producers the first by name."""
    firsts = ", ".join(
        f"first_value(value ORDER BY producer) FILTER (WHERE name = '{name}') AS {name}"
        for name in names
    )
    return f"""scored_ AS (
        SELECT clip_id, payload_sha256, {firsts} FROM scores
        WHERE value IS NOT NULL GROUP BY clip_id, payload_sha256
    )"""


def _kept() -> str:
    # Not by numbering the rows of each clip: that would sort all columns of all clips.
    earlier = "e.id = c.id AND e.kind = 'clip' AND e.fate = 'kept' AND e.unit_id < c.unit_id"
    first = f"NOT EXISTS (SELECT 1 FROM ledger e WHERE {earlier})"
    return f"kept_ AS (SELECT * FROM ledger c WHERE kind = 'clip' AND fate = 'kept' AND {first})"


def _first(name: str, table: str, group: str, wanted: tuple[str, ...]) -> str:
    # Several times faster than numbering the rows of each group.
    order, *columns = wanted
    firsts = ", ".join(f"first_value({c} ORDER BY {order}) AS {c}" for c in columns)
    return f"{name} AS (SELECT {group}, {firsts} FROM {table} GROUP BY {group})"


def _empty(name: str, columns: pa.Schema) -> str:
    kinds = {pa.int32(): "INT", pa.int64(): "BIGINT", pa.float64(): "DOUBLE", pa.binary(): "BYTEA"}
    listed = (f"CAST(NULL AS {kinds.get(f.type, 'VARCHAR')}) AS {f.name}" for f in columns)
    return f"{name} AS (SELECT {', '.join(listed)} WHERE false)"
