"""`clips`, the relation that people ask and train from: kept clips with what is known of each.

Written as SQL over the stored tables, so that a million rows cost seconds and no Python objects, and
so that a query, a view and the digest all mean the same.
"""

import re
from collections.abc import Mapping

import pyarrow as pa

from ingest.schema import ANNOTATIONS, SCORES, conformed, ledger_schema, log_schema
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
SAID = ("caption", "caption_producer", "label", "licence", "consent")
RIGHTS_ORDER = "at DESC, producer, licence, consent"
READS = re.compile(r"\s*(select|with)\b", re.IGNORECASE)


class NotAQuery(ValueError):
    """Not one reading SQL statement, or one that the engine refuses."""

    exit_code = 2


def schema() -> pa.Schema:
    """Return the columns of `clips`; what nobody said of a clip is empty text."""
    ledger = ledger_schema()
    return pa.schema(
        [
            pa.field("clip_id", pa.utf8(), nullable=False),
            *(ledger.field(name) for name in (*CLIP_COLUMNS, *SCORES)),
            *(pa.field(name, pa.utf8(), nullable=False) for name in SAID),
        ]
    )


def select(tables: Mapping[str, Table], where: str, guards: list[str]) -> pa.Table:
    """Return the clips that meet a person's condition and all guards, sorted by clip_id; raises NotAQuery."""
    # The person's words stand in a query of their own, so that no bracket in them reaches the guards.
    chosen = f"SELECT * FROM clips WHERE (\n{where}\n)" if where.strip() else "SELECT * FROM clips"
    guarded = f" WHERE {' AND '.join(guards)}" if guards else ""
    sql = f"WITH {_relations(tables)} SELECT * FROM ({chosen}){guarded} ORDER BY clip_id"
    return conformed(_asked(tables, sql), schema())


def ask(tables: Mapping[str, Table], sql: str) -> pa.Table:
    """Return what one SELECT finds in the stored tables and in `clips`; raises NotAQuery."""
    text = sql.strip().rstrip(";").strip()
    if not READS.match(text) or ";" in re.sub(r"'[^']*'", "", text):
        raise NotAQuery("query: one SELECT statement is needed; it reads and changes nothing")
    begins = re.match(r"with\s+(recursive\s+)?", text, re.IGNORECASE)
    rest = f", {text[begins.end() :]}" if begins else f" {text}"
    recursive = "RECURSIVE " if begins and begins.group(1) else ""
    return _asked(tables, f"WITH {recursive}{_relations(tables)}{rest}")


def _asked(tables: Mapping[str, Table], sql: str) -> pa.Table:
    try:
        return query(tables, sql)
    except ValueError as error:
        raise NotAQuery(str(error)) from error


def _relations(tables: Mapping[str, Table]) -> str:
    """Return the common table expressions: empty relations for absent tables, then `clips`."""
    known = {name: make() for name, (make, _key) in ANNOTATIONS.items()} | {"log": log_schema()}
    absent = [_empty(name, columns) for name, columns in known.items() if name not in tables]
    stored = set(tables["ledger"].schema().names)
    shown = [
        f"k.{name}" if name in stored else f"NULL AS {name}" for name in (*CLIP_COLUMNS, *SCORES)
    ]
    return ", ".join(
        [
            *absent,
            # Two recipes may keep the same clip; it is one clip.
            _kept(),
            # A caption or label counts only for the very payload it was made for.
            _first(
                "said_",
                "captions",
                "clip_id, payload_sha256",
                ("rank, producer, caption", "caption", "producer"),
            ),
            _first("named_", "labels", "clip_id, payload_sha256", ("producer, label", "label")),
            _first("righted_", "rights", "source_sha256", (RIGHTS_ORDER, "licence", "consent")),
            f"""clips AS (
                SELECT k.id AS clip_id, {", ".join(shown)},
                    coalesce(s.caption, '') AS caption, coalesce(s.producer, '') AS caption_producer,
                    coalesce(l.label, '') AS label,
                    coalesce(r.licence, '') AS licence, coalesce(r.consent, '') AS consent
                FROM kept_ k
                LEFT JOIN said_ s ON s.clip_id = k.id AND s.payload_sha256 = k.payload_sha256
                LEFT JOIN named_ l ON l.clip_id = k.id AND l.payload_sha256 = k.payload_sha256
                LEFT JOIN righted_ r ON r.source_sha256 = k.source_sha256
            )""",
        ]
    )


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
    kinds = {pa.int32(): "INT", pa.int64(): "BIGINT"}
    listed = (f"CAST(NULL AS {kinds.get(f.type, 'VARCHAR')}) AS {f.name}" for f in columns)
    return f"{name} AS (SELECT {', '.join(listed)} WHERE false)"
