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
