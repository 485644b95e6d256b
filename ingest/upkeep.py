"""What is done to a table besides committing: old versions, clean-up, SQL."""

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

import pyarrow as pa
from deltalake import QueryBuilder, Schema, write_deltalake

from ingest.files import StorageError
from ingest.tables import NotATable, Table, once, opened

THREADS = 8


def files(table: Table) -> set[str]:
    """Return the names, below the root, of the files that the version last read is made of."""
    # From the log, not by taking the root off the library's addresses: those are quoted and resolved.
    paths = pa.table(table.delta.get_add_actions(flatten=True)).column("path").to_pylist()
    return {f"{table.name}/{unquote(path)}" for path in paths}


def committed_at_s(table: Table, version: int) -> float:
    """Return when a version was committed, seconds since the epoch; raises NotATable."""
    try:
        for action in table.log(version):
            if "commitInfo" in action:
                return action["commitInfo"]["timestamp"] / 1000
    except FileNotFoundError as error:
        raise _gone(table, version) from error
    raise NotATable(f"{table.root.join(table.name)}: version {version} does not tell its time")


def version_at(table: Table, moment_s: float) -> int:
    """Return the newest version that was committed by then; raises NotATable without one."""

    def later(version: int) -> bool:
        try:
            return committed_at_s(table, version) > moment_s
        except NotATable:  # its log was cleaned away: it is older than all that are left
            return False

    # By what the logs say, not by when their files changed: a copy of a dataset has other times.
    found = bisect_left(range(table.refresh() + 1), 1, key=later) - 1
    if found < 0:
        raise NotATable(f"{table.root.join(table.name)}: was not there yet")
    return found


def merge_update(
    table: Table, rows: pa.Table, *, on: Mapping[str, str], update: Sequence[str]
) -> int:
    """Give the rows that agree with `rows` its values of the columns `update`, in one commit.

    `on` says which columns must agree: that of the table, and that of `rows`. Returns how many rows
    were updated. Where others append all the time, rewrite.rewrite wins and this does not.
    """

    def attempt() -> int:
        table.refresh()
        merger = table.delta.merge(
            rows,
            " AND ".join(f"t.{name} = s.{given}" for name, given in on.items()),
            source_alias="s",
            target_alias="t",
            commit_properties=once(),
        ).when_matched_update({name: f"s.{name}" for name in update})
        return int(merger.execute()["num_target_rows_updated"])

    updated = table.until_it_lands(attempt)
    table.refresh()
    return updated


def widen(table: Table, schema: pa.Schema) -> None:
    """Give a table that an older version made the columns that it lacks; they are null in its rows."""

    def attempt() -> None:
        table.refresh()
        known = set(table.schema().names)
        new = [field for field in schema if field.name not in known]
        if new:
            fields = Schema.from_arrow(pa.schema(new)).fields
            table.delta.alter.add_columns(fields, commit_properties=once())

    table.until_it_lands(attempt)
    table.refresh()


def replace_rows(table: Table, rows: pa.Table) -> None:
    """Make `rows` the whole content, in one commit."""
    widen(table, rows.schema)

    def attempt() -> None:
        table.refresh()
        write_deltalake(table.delta, rows, mode="overwrite", commit_properties=once())

    table.until_it_lands(attempt)
    table.refresh()


def restore(table: Table, version: int) -> None:
    """Make an old version the newest; raises NotATable when its files are gone."""

    def attempt() -> None:
        table.refresh()
        table.delta.restore(version)

    try:
        table.until_it_lands(attempt)
    except StorageError as error:
        raise _gone(table, version) from error
    table.refresh()


def vacuum(
    table: Table,
    *,
    keep: Sequence[int] = (),
    retention_hours: int = 168,
    leftovers: bool = True,
    dry_run: bool = False,
) -> list[str]:
    """Delete the files of versions other than the newest and `keep`; return their names below the root.

    Files younger than the retention stay, so that nobody loses what they are reading or writing.
    With `leftovers`, files that no version ever named go too: those of somebody who is just
    committing look the same, so keep a retention then.
    """
    table.refresh()
    gone = table.delta.vacuum(
        retention_hours=retention_hours,
        dry_run=dry_run,
        enforce_retention_duration=False,
        full=leftovers,
        keep_versions=list(keep) or None,
    )
    table.refresh()
    return [f"{table.name}/{name}" for name in gone]


def forget_history(table: Table) -> None:
    """Take the values of deleted rows out of the log: the statistics of files that are gone.

    Run it after `vacuum`. The log's files stay: who writes meanwhile compares with them.
    """
    table.delta = opened(table.root, table.name)
    table.delta.create_checkpoint()
    entries = {entry.name.removeprefix(f"{table.name}/") for entry in table.root.names(table.name)}
    logs: list[str] = []
    for name in entries:
        number, _, kind = name.removeprefix("_delta_log/").partition(".")
        if not name.startswith("_delta_log/") or not number.isdigit():
            continue
        if "checkpoint" in kind and int(number) < table.version:
            table.root.delete(f"{table.name}/{name}")
        elif kind == "json":
            logs.append(f"{table.name}/{name}")
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda name: _forget(table, name, entries), logs))
    table.delta = opened(table.root, table.name)


def _forget(table: Table, name: str, present: set[str]) -> None:
    actions = [json.loads(line) for line in table.root.read(name).splitlines() if line]
    files = [a[kind] for a in actions for kind in ("add", "remove") if kind in a]
    gone = [file for file in files if unquote(file["path"]) not in present]
    if sum(file.pop("stats", None) is not None for file in gone):
        table.root.replace(name, "".join(f"{json.dumps(a)}\n" for a in actions).encode())


def query(tables: Mapping[str, Table], sql: str) -> pa.Table:
    """Return what `sql` selects from the tables; raises ValueError with the engine's words."""
    builder = QueryBuilder()
    for name, table in tables.items():
        builder.register(name, table.delta)
    try:
        found = pa.table(builder.execute(sql).read_all())
    except Exception as error:  # the engine's own classes are not public
        line = f"query: {str(error).splitlines()[0][:500]}"
        if any(word in line for word in ("Object Store error", "External error", "IO error")):
            raise StorageError(
                0, line, ", ".join(t.root.join(t.name) for t in tables.values())
            ) from error
        raise ValueError(line) from error
    return _plain(found)


def _plain(found: pa.Table) -> pa.Table:
    """Return the table with ordinary text columns: views of text are not known everywhere."""
    schema = pa.schema(
        [
            pa.field(f.name, pa.utf8() if f.type == pa.string_view() else f.type)
            for f in found.schema
        ]
    )
    return found.cast(schema)


def _gone(table: Table, version: int) -> NotATable:
    return NotATable(f"{table.root.join(table.name)}: version {version} is gone")
