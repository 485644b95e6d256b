"""Changing rows that are there, beside writers who append: file by file, in one commit.

The library's own merge reads the whole table, and against writers who append all the time it loses
every time. Here only files with rows to change are replaced; when others committed first, the commit
moves behind theirs, unless they took away a file that it replaces.
"""

import json
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ingest import upkeep
from ingest.columns import among, plain
from ingest.objects import Root
from ingest.ranged import open_stored
from ingest.schema import conformed
from ingest.tables import NotOurs, Table

ATTEMPTS = 30
ENGINE = "kinoray"
ADDED = ""  # stands for no file that is replaced


def rewrite(
    table: Table,
    change: Callable[[pa.Table], pa.Table],
    *,
    reads: Sequence[str],
    touches: Callable[[pa.Table], bool],
    adds: pa.Table | None = None,
) -> int:
    """Put `change(rows)` in place of the rows of each file; return how many files changed.

    `touches` is asked first, with the columns `reads` of a file; `change` gets all columns, and
    returns the very table it was given where nothing changes. The rows `adds` come in with the same
    commit, or with one of their own where no file changes. Rows that others append meanwhile are not
    seen: call again where they matter. Raises NotOurs when others keep replacing the same files.
    """
    for _ in range(ATTEMPTS):
        table.refresh()
        written: dict[str, str] = {}  # file that is replaced: by which, "" for none
        try:
            for name in sorted(upkeep.files(table)):
                if touches(read_file(table, name, reads)):
                    _replace(table, name, change, written)
            if adds is not None and adds.num_rows:
                written[ADDED] = _write(table, conformed(adds, table.schema()))
            if not written or _commit(table, written):
                table.refresh()
                return len(written)
        except FileNotFoundError:  # a newer version was committed and this one collected
            pass
        for name in filter(None, written.values()):
            table.root.delete(name)
    raise NotOurs(
        f"{table.root.join(table.name)}: {ATTEMPTS} commits lost against others; run again later"
    )


def replace_units(ledger: Table, rows: pa.Table) -> None:
    """Put the rows of units that were read again in place of those that they had, in one commit."""
    units = rows.column("unit_id").unique()

    def change(stored: pa.Table) -> pa.Table:
        gone = among(stored.column("unit_id"), units)
        return stored.filter(pa.array(~gone)) if gone.any() else stored

    def touches(stored: pa.Table) -> bool:
        return bool(among(stored.column("unit_id"), units).any())

    rewrite(ledger, change, reads=["unit_id"], touches=touches, adds=rows)


def _replace(
    table: Table, name: str, change: Callable[[pa.Table], pa.Table], written: dict[str, str]
) -> None:
    rows = read_file(table, name)
    new = change(rows)
    if new is not rows:
        written[name] = _write(table, new)


def read_file(table: Table, name: str, columns: Sequence[str] = ()) -> pa.Table:
    """Return rows of one file of a table, or some of their columns; raises FileNotFoundError."""
    whole = table.schema()
    wanted = pa.schema([field for field in whole if field.name in (columns or whole.names)])
    return conformed(read_parquet(table.root, name, wanted.names), wanted)


def read_parquet(root: Root, name: str, columns: Sequence[str]) -> pa.Table:
    """Return those of the columns that a Parquet file has; raises FileNotFoundError."""
    with open_stored(root, name) as source:
        file = pq.ParquetFile(source)
        stored = file.schema_arrow.names
        return plain(file.read([n for n in columns if n in stored], use_threads=False))


def _write(table: Table, rows: pa.Table) -> str:
    if not rows.num_rows:
        return ""
    sink = pa.BufferOutputStream()
    pq.write_table(rows.cast(table.schema()), sink, compression="zstd")
    name = f"{table.name}/part-00000-{uuid.uuid4()}-c000.zstd.parquet"
    table.root.replace(name, sink.getvalue().to_pybytes())
    return name


def _commit(table: Table, written: dict[str, str]) -> bool:
    """Commit at the next free version; False when others took away a file that is replaced."""
    now_ms = int(time.time() * 1000)
    info = {"timestamp": now_ms, "operation": "UPDATE", "operationParameters": {}}
    actions: list[dict[str, Any]] = [{"commitInfo": {**info, "engineInfo": ENGINE}}]
    for old, new in written.items():
        same = {"dataChange": True, "partitionValues": {}}
        if old != ADDED:
            path = old.removeprefix(f"{table.name}/")
            actions.append({"remove": {**same, "path": path, "deletionTimestamp": now_ms}})
        if new:
            # Without the smallest and greatest values: a log must not tell what rows are to forget.
            path, size = new.removeprefix(f"{table.name}/"), table.root.size(new)
            there = {"path": path, "size": size, "modificationTime": now_ms, "stats": "{}"}
            actions.append({"add": {**same, **there}})
    data = "".join(f"{json.dumps(action)}\n" for action in actions).encode()
    gone = {path.removeprefix(f"{table.name}/") for path in written}
    version = table.version + 1
    while not table.root.create(f"{table.name}/_delta_log/{version:020d}.json", data):
        if any(_disturbs(action, gone) for action in table.log(version)):
            return False
        version += 1
    return True


def _disturbs(action: dict[str, Any], gone: set[str]) -> bool:
    """Whether what others committed is about the same files, or about the table itself."""
    if "metaData" in action or "protocol" in action:
        return True
    return action.get("remove", {}).get("path") in gone
