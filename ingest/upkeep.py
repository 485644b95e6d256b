"""What is done to a table besides committing: old versions, clean-up, SQL."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import pyarrow as pa
from deltalake import QueryBuilder, write_deltalake
from deltalake.exceptions import DeltaError

from ingest.files import StorageError
from ingest.tables import NotATable, Table, once, opened


def files(table: Table) -> set[str]:
    """Return the names, below the root, of the files that the version last read is made of."""
    prefix = f"{table.root.join(table.name)}/"
    return {f"{table.name}/{uri.removeprefix(prefix)}" for uri in table.delta.file_uris()}


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
    delta = opened(table.root, table.name)
    try:
        delta.load_as_version(datetime.fromtimestamp(moment_s, UTC))
    except (DeltaError, OSError) as error:
        raise NotATable(f"{table.root.join(table.name)}: was not there yet") from error
    return delta.version()


def merge_update(table: Table, rows: pa.Table, *, on: Sequence[str], update: Sequence[str]) -> int:
    """Give the rows that agree with `rows` in the columns `on` its values of the columns `update`.

    Returns how many rows were updated, in one commit.
    """

    def attempt() -> int:
        table.refresh()
        merger = table.delta.merge(
            rows,
            " AND ".join(f"t.{name} = s.{name}" for name in on),
            source_alias="s",
            target_alias="t",
            commit_properties=once(),
        ).when_matched_update({name: f"s.{name}" for name in update})
        return int(merger.execute()["num_target_rows_updated"])

    updated = table.until_it_lands(attempt)
    table.refresh()
    return updated


def delete_rows(table: Table, condition: str) -> int:
    """Delete the rows that meet an SQL condition; return how many, in one commit."""

    def attempt() -> int:
        table.refresh()
        return int(table.delta.delete(condition, commit_properties=once())["num_deleted_rows"] or 0)

    deleted = table.until_it_lands(attempt)
    table.refresh()
    return deleted


def replace_rows(table: Table, rows: pa.Table) -> None:
    """Make `rows` the whole content, in one commit."""

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


def vacuum(table: Table, *, keep: Sequence[int] = (), retention_hours: int = 168) -> int:
    """Delete the files of versions other than the newest and `keep`, and leftovers; return how many.

    Files younger than the retention stay, so that nobody loses what they are reading or writing.
    """
    table.refresh()
    gone = table.delta.vacuum(
        retention_hours=retention_hours,
        dry_run=False,
        enforce_retention_duration=False,
        full=True,
        keep_versions=list(keep) or None,
    )
    table.refresh()
    return len(gone)


def forget_history(table: Table) -> None:
    """Delete the log before the newest version: its statistics hold values of deleted rows."""
    table.delta = opened(table.root, table.name)
    table.delta.create_checkpoint()
    log = f"{table.name}/_delta_log/"
    for entry in list(table.root.names(log)):
        number = entry.name.removeprefix(log).partition(".")[0]
        if number.isdigit() and int(number) < table.version:
            table.root.delete(entry.name)
    table.delta = opened(table.root, table.name)


def query(tables: Mapping[str, Table], sql: str) -> pa.Table:
    """Return what `sql` selects from the tables; raises ValueError with the engine's words."""
    builder = QueryBuilder()
    for name, table in tables.items():
        builder.register(name, table.delta)
    try:
        found = pa.table(builder.execute(sql).read_all())
    except Exception as error:  # the engine's own classes are not public
        raise ValueError(f"query: {str(error).splitlines()[0][:500]}") from error
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
