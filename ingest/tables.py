"""The one commit protocol: a Delta table whose rows have a key, each key appended exactly once.

A commit carries an application transaction (who, how many), so it lands once or not at all, however
often its process dies; rows whose key is there already are dropped before each attempt. Datasets
and evaluation sets are both made of such tables.
"""

import random
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from ingest.shards import StorageError, storage_error

COMMIT_ATTEMPTS = 30
MAX_PAUSE_S = 1.0
_KEY = "kinoray.key"


class NotOurs(RuntimeError):
    """Another run with the same recipe commits to this table."""


class NotATable(ValueError):
    """There is no such table, or it is not one of ours."""

    exit_code = 2


class Table:
    """A keyed table; one instance per process and thread."""

    def __init__(self, path: Path, table: DeltaTable) -> None:
        self.path = path
        self._table = table
        self.settings: Mapping[str, str] = table.metadata().configuration
        if _KEY not in self.settings:
            raise NotATable(f"{path}: a Delta table without this version's marks")
        self._keys_of_file: dict[str, set[str]] = {}

    @classmethod
    def create(
        cls, path: Path, schema: pa.Schema, *, key: str, settings: Mapping[str, str] | None = None
    ) -> "Table":
        """Make the table, or open the one that is there.

        `key` names the column whose values are unique per commit, or several joined by commas.
        Raises StorageError when the table cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(DeltaError):  # two drivers may start at once: the second finds it made
                DeltaTable.create(
                    path,
                    schema,
                    mode="ignore",
                    configuration={_KEY: key, **(settings or {})},
                    raise_if_key_not_exists=False,
                )
            return cls(path, DeltaTable(path))
        except (OSError, DeltaError) as error:
            raise _storage(error, path) from error

    @classmethod
    def open(cls, path: Path) -> "Table":
        """Open an existing table; raises NotATable."""
        try:
            return cls(path, DeltaTable(path))
        except (TableNotFoundError, OSError) as error:
            raise NotATable(f"{path}: no such table") from error

    @property
    def version(self) -> int:
        """The version last read or written by this instance."""
        return self._table.version()

    def refresh(self) -> int:
        """Read what other processes committed meanwhile; return the version."""
        self._table.update_incremental()
        return self.version

    def rows(self, columns: list[str] | None = None) -> pa.Table:
        """Return all rows, or some of their columns."""
        # One thread: Arrow's readers, if still starting when a process ends, abort it (seen).
        return self._table.to_pyarrow_dataset().to_table(columns=columns, use_threads=False)

    def keys(self) -> set[str]:
        """Return the committed keys, as of the version last read; several columns join by a space."""
        # Only files that were not read before: a writer that lost a commit must not fall further behind by
        # reading everything again while the others go on.
        fragments = {f.path: f for f in self._table.to_pyarrow_dataset().get_fragments()}
        self._keys_of_file = {
            path: self._keys_of_file[path]
            if path in self._keys_of_file
            else set(self._keys_of(f.to_table(columns=self._key_columns, use_threads=False)))
            for path, f in fragments.items()
        }
        return set().union(*self._keys_of_file.values())

    @property
    def _key_columns(self) -> list[str]:
        return self.settings[_KEY].split(",")

    def _keys_of(self, rows: pa.Table) -> list[str]:
        columns = [rows.column(name).to_pylist() for name in self._key_columns]
        return [" ".join(values) for values in zip(*columns, strict=True)]

    def next_batch(self, app_id: str) -> int:
        """Return the number that the next commit of `app_id` must carry."""
        self.refresh()
        return self._last_batch(app_id) + 1

    def _last_batch(self, app_id: str) -> int:
        return self._table.transaction_version(app_id) or 0

    def fresh(self, rows: pa.Table) -> pa.Table:
        """Return the rows whose key is not committed yet."""
        self.refresh()
        known = self.keys()
        return rows.filter(pa.array([key not in known for key in self._keys_of(rows)], pa.bool_()))

    def commit(self, rows: pa.Table, *, app_id: str, batch: int) -> int:
        """Append the rows whose keys are new; return the version. A repeat changes nothing.

        Raises NotOurs when another run of `app_id` took this batch number, StorageError when the
        table cannot be written.
        """
        for attempt in range(COMMIT_ATTEMPTS):
            fresh = self.fresh(rows)
            if not fresh.num_rows:
                return self.version
            if self._last_batch(app_id) >= batch:
                raise NotOurs(
                    f"{self.path}: another run of this recipe is committing here; "
                    "stop one of the two, then run again"
                )
            try:
                self._append(fresh, Transaction(app_id, batch))
            except CommitFailedError:  # somebody else committed first: look again
                _step_back(attempt)
                continue
            except (OSError, DeltaError) as error:
                raise _storage(error, self.path) from error
            return self.version
        raise NotOurs(
            f"{self.path}: {COMMIT_ATTEMPTS} commits lost against others; run again later"
        )

    def append_missing(self, rows: pa.Table) -> None:
        """Append the rows whose keys are new, outside any application's count of commits."""
        for attempt in range(COMMIT_ATTEMPTS):
            fresh = self.fresh(rows)
            if not fresh.num_rows:
                return
            try:
                self._append(fresh, None)
            except CommitFailedError:
                _step_back(attempt)
                continue
            except (OSError, DeltaError) as error:
                raise _storage(error, self.path) from error
            return
        raise NotOurs(
            f"{self.path}: {COMMIT_ATTEMPTS} commits lost against others; run again later"
        )

    def _append(self, rows: pa.Table, transaction: Transaction | None) -> None:
        # No blind retry by the library: after a conflict the rows are filtered again.
        properties = CommitProperties(
            max_commit_retries=0, app_transactions=[transaction] if transaction else None
        )
        write_deltalake(self._table, rows, mode="append", commit_properties=properties)
        self._table.update_incremental()


def _step_back(attempt: int) -> None:
    """Wait a random moment, longer after each loss, so that two writers do not meet again at once."""
    time.sleep(random.uniform(0.0, min(MAX_PAUSE_S, 0.01 * 2**attempt)))


def _storage(error: Exception, path: Path) -> StorageError:
    if isinstance(error, OSError):
        return storage_error(error, path)
    return StorageError(0, str(error).splitlines()[0][:300], str(path))
