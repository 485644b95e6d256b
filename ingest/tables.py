"""The one commit protocol: a Delta table whose rows have a key, each key appended exactly once.

A commit carries an application transaction (who, how many), so it lands once or not at all, however
often its process dies; rows whose key is there already are dropped before each attempt. Datasets
and evaluation sets are both made of such tables, in folders and in object stores.
"""

import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from ingest.files import StorageError, storage_error
from ingest.objects import Root

T = TypeVar("T")
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
COMMIT_ATTEMPTS = 30
MAX_PAUSE_S = 1.0
LOOKS_AGAIN = 3
REOPEN_EVERY = (
    16  # an instance that only follows the log grows slower with every version it followed
)
COMPACT_EVERY = (
    256  # versions; so that neither opening nor committing depends on how many there were
)
_KEY = "kinoray.key"
PIECE_ROWS = 1 << 13
# The library would drop logs after a month, and with them every tag that old.
_FOR_EVER = {"delta.enableExpiredLogCleanup": "false"}


class NotOurs(RuntimeError):
    """Another run with the same recipe commits to this table."""


class NotATable(ValueError):
    """There is no such table or version, or it is not one of ours."""

    exit_code = 2


class Table:
    """A keyed table; one instance per process and thread. Make one with `create` or `open`."""

    def __init__(self, root: Root, name: str, table: DeltaTable) -> None:
        self.root, self.name = root, name
        self.delta = table
        self._followed = 0
        self.settings: Mapping[str, str] = table.metadata().configuration
        if _KEY not in self.settings:
            raise NotATable(f"{root.join(name)}: a Delta table without this version's marks")
        self._keys: set[str] = set()
        self._keys_version = -1

    @classmethod
    def create(
        cls,
        root: Root,
        name: str,
        schema: pa.Schema,
        *,
        key: str,
        settings: Mapping[str, str] | None = None,
    ) -> "Table":
        """Make the table, or open the one that is there.

        `key` names the column whose values are unique per commit, or several joined by commas.
        Raises StorageError when the table cannot be written.
        """
        try:
            if root.is_local:
                (root.path / name).mkdir(parents=True, exist_ok=True)
            with suppress(DeltaError):  # two drivers may start at once: the second finds it made
                DeltaTable.create(
                    root.join(name),
                    schema,
                    mode="ignore",
                    configuration={_KEY: key, **_FOR_EVER, **(settings or {})},
                    raise_if_key_not_exists=False,
                    storage_options=root.table_options,
                )
            return cls(root, name, opened(root, name))
        except (OSError, DeltaError) as error:
            raise _storage(error, root.join(name)) from error

    @classmethod
    def open(cls, root: Root, name: str, version: int | None = None) -> "Table":
        """Open an existing table, or an old version of it; raises NotATable."""
        try:
            return cls(root, name, opened(root, name, version))
        except (TableNotFoundError, FileNotFoundError) as error:
            raise NotATable(f"{root.join(name)}: no such table") from error
        except (OSError, DeltaError) as error:
            what = "cannot be opened" if version is None else f"version {version} is gone"
            line = str(error).splitlines()[0][:300]
            raise NotATable(f"{root.join(name)}: {what}: {line}") from error

    @property
    def version(self) -> int:
        """The version last read or written by this instance."""
        return self.delta.version()

    def refresh(self) -> int:
        """Read what other processes committed meanwhile; return the version."""
        self._followed += 1
        if self._followed % REOPEN_EVERY:
            self.delta.update_incremental()
        else:
            self.delta = opened(self.root, self.name)
        return self.version

    def schema(self) -> pa.Schema:
        """Return the columns of the table."""
        return pa.schema(self.delta.schema())

    def rows(self, columns: list[str] | None = None) -> pa.Table:
        """Return all rows, or some of their columns."""
        # One thread: Arrow's readers, if still starting when a process ends, abort it (seen).
        return self.delta.to_pyarrow_dataset().to_table(columns=columns, use_threads=False)

    def pieces(self, columns: list[str], where: Any) -> Iterator[pa.Table]:
        """Yield some columns of the rows that meet an Arrow expression, piece by piece."""
        stored = self.delta.to_pyarrow_dataset()
        # Little ahead of the reader: vectors and texts of a large table do not fit into memory.
        bounds = {"batch_size": PIECE_ROWS, "batch_readahead": 2, "fragment_readahead": 1}
        for batch in stored.to_batches(columns=columns, filter=where, use_threads=False, **bounds):
            yield pa.Table.from_batches([batch])

    def keys(self) -> set[str]:
        """Return the committed keys, as of the version last read; several columns join by a space."""
        version = self.version
        added = self._added_since(self._keys_version, version)
        if added is None:
            self._keys = set(self._keys_of(self.rows(self._key_columns)))
        else:
            for name in added:
                data = pa.BufferReader(self.root.read(f"{self.name}/{name}"))
                self._keys.update(
                    self._keys_of(pq.read_table(data, columns=self._key_columns, use_threads=False))
                )
        self._keys_version = version
        return self._keys

    def _added_since(self, known: int, version: int) -> list[str] | None:
        """Return the data files added in (known, version], or None when rows may also have gone."""
        # Only files that were not read before: a writer that lost a commit must not fall further behind by
        # reading everything again while the others go on.
        if known < 0 or version < known:
            return None
        added: list[str] = []
        for number in range(known + 1, version + 1):
            try:
                actions = list(self.log(number))
            except FileNotFoundError:
                return None
            for action in actions:
                if action.get("remove", {}).get("dataChange"):
                    return None
                if action.get("add", {}).get("dataChange"):
                    added.append(action["add"]["path"])
        return added

    def log(self, version: int) -> Sequence[dict[str, Any]]:
        """Return the actions of one version's log file; raises FileNotFoundError when it is gone."""
        text = self.root.read(f"{self.name}/_delta_log/{version:020d}.json").decode()
        return [json.loads(line) for line in text.splitlines() if line]

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
        return self.delta.transaction_version(app_id) or 0

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

        def attempt() -> None:
            fresh = self.fresh(rows)
            if not fresh.num_rows:
                return
            if self._last_batch(app_id) >= batch:
                raise NotOurs(
                    f"{self.root.join(self.name)}: another run of this recipe is committing here; "
                    "stop one of the two, then run again"
                )
            self._append(fresh, Transaction(app_id, batch))

        self.until_it_lands(attempt)
        return self.version

    def append_missing(self, rows: pa.Table) -> None:
        """Append the rows whose keys are new, outside any application's count of commits."""

        def attempt() -> None:
            fresh = self.fresh(rows)
            if fresh.num_rows:
                self._append(fresh, None)

        self.until_it_lands(attempt)

    def compact(self) -> None:
        """Merge small files into bigger ones; the rows stay."""
        self.refresh()
        with suppress(CommitFailedError):  # somebody else does it, or commits: the next time, then
            self.delta.optimize.compact(commit_properties=once())
        self.refresh()

    def _append(self, rows: pa.Table, transaction: Transaction | None) -> None:
        new = set(rows.schema.names) - set(self.schema().names)
        write_deltalake(
            self.delta,
            rows,
            mode="append",
            commit_properties=once(transaction),
            schema_mode="merge" if new else None,
        )
        before = self._keys_version
        if self.refresh() == before + 1:
            self._keys.update(self._keys_of(rows))
            self._keys_version = self.version
        if self.version % COMPACT_EVERY == 0:
            self.compact()

    def until_it_lands(self, attempt: Callable[[], T]) -> T:
        """Repeat a commit that lost against others; raises NotOurs, StorageError."""
        for number in range(COMMIT_ATTEMPTS):
            try:
                return attempt()
            except CommitFailedError:  # somebody else committed first: look again
                _step_back(number)
            except FileNotFoundError as error:  # a clean-up took a file that was being read
                if number >= LOOKS_AGAIN:
                    raise _storage(error, self.root.join(self.name)) from error
                self.delta = opened(self.root, self.name)
                _step_back(number)
            except (OSError, DeltaError) as error:
                raise _storage(error, self.root.join(self.name)) from error
        raise NotOurs(
            f"{self.root.join(self.name)}: {COMMIT_ATTEMPTS} commits lost against others; "
            "run again later"
        )


def opened(root: Root, name: str, version: int | None = None) -> DeltaTable:
    """Return the library's table; its errors are its own."""
    return DeltaTable(root.join(name), version=version, storage_options=root.table_options)


def once(transaction: Transaction | None = None) -> CommitProperties:
    """Return what makes a commit land at its first attempt or not at all."""
    # No blind retry by the library: after a conflict the rows are filtered again.
    return CommitProperties(
        max_commit_retries=0, app_transactions=[transaction] if transaction else None
    )


def _step_back(attempt: int) -> None:
    """Wait a random moment, longer after each loss, so that two writers do not meet again at once."""
    time.sleep(random.uniform(0.0, min(MAX_PAUSE_S, 0.01 * 2**attempt)))


def _storage(error: Exception, place: str) -> StorageError:
    if isinstance(error, StorageError):
        return error
    if isinstance(error, OSError) and error.errno:
        return storage_error(error, place)
    said = str(error)
    if found := _OS_ERROR.search(said):  # the engine wraps what the system said
        return StorageError(int(found[1]), os.strerror(int(found[1])), place)
    return StorageError(0, said.splitlines()[0][:300], place)
