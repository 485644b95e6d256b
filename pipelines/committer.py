"""The one committer of a curate run: rows of finished units go to the ledger in batches, at most one a second."""

import time

import pyarrow as pa

from ingest.store import Dataset, empty_captions

COMMIT_EVERY_S = 1.0


class Committer:
    """Collects rows and commits them; `app_id` names the recipe, so that two drivers of one recipe collide."""

    def __init__(self, dataset: Dataset, *, app_id: str) -> None:
        self._dataset, self._app_id = dataset, app_id
        self._rows: list[pa.Table] = []
        self._committed_s = time.monotonic()

    def add(self, rows: pa.Table) -> None:
        """Take the rows of one finished unit; commits when the last commit is a second old."""
        self._rows.append(rows)
        if time.monotonic() - self._committed_s >= COMMIT_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Commit what is finished, in one ledger transaction."""
        if self._rows:
            batch = self._dataset.next_batch(self._app_id)
            rows = pa.concat_tables(self._rows)
            self._dataset.commit(rows, empty_captions(), app_id=self._app_id, batch=batch)
            self._rows = []
        self._committed_s = time.monotonic()


class Rereads:
    """Units that the ledger knows and that are read once more; their new rows replace the old ones.

    `stored` have clips, of which other thresholds ask for more; `failed` have nothing to lose. A replacement rewrites files of
    the ledger, so they come together, at most a tenth of the time.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._rows: list[pa.Table] = []
        self._next_s = 0.0
        self.stored: frozenset[str] = frozenset()
        self.failed: frozenset[str] = frozenset()

    @property
    def units(self) -> frozenset[str]:
        """All that are read again."""
        return self.stored | self.failed

    def add(self, unit: str, rows: pa.Table) -> str:
        """Take the new rows of a unit; return why not when it failed and its clips of before stay."""
        source = rows.slice(0, 1).to_pylist()[0]
        if unit in self.stored and source["fate"] == "failed":
            return f"{source['error_class']}: {source['message']}"
        self._rows.append(rows)
        if time.monotonic() >= self._next_s:
            self.flush()
        return ""

    def flush(self) -> None:
        """Replace the rows of what was read, in one transaction."""
        begin_s = time.monotonic()
        if self._rows:
            self._dataset.replace_units(pa.concat_tables(self._rows))
            self._rows = []
        end_s = time.monotonic()
        self._next_s = end_s + max(COMMIT_EVERY_S, 10 * (end_s - begin_s))
