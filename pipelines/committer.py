"""The one committer of a curate run: rows of finished units go to the ledger in batches, at most one a second."""

import time

import pyarrow as pa

from ingest.schema import captions_schema
from ingest.store import Dataset

COMMIT_EVERY_S = 1.0


class Committer:
    """Collects rows and commits them; `app_id` names the recipe, so that two drivers of one recipe collide."""

    def __init__(self, dataset: Dataset, *, app_id: str) -> None:
        self._dataset, self._app_id = dataset, app_id
        self._rows: list[pa.Table] = []
        self._captions: list[pa.Table] = []
        self._committed_s = time.monotonic()

    def add(self, rows: pa.Table, captions: pa.Table | None = None) -> None:
        """Take the rows of one finished unit; commits when the last commit is a second old."""
        self._rows.append(rows)
        if captions is not None:
            self._captions.append(captions)
        if time.monotonic() - self._committed_s >= COMMIT_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Commit what is finished, in one ledger transaction."""
        if self._rows:
            captions = (
                pa.concat_tables(self._captions)
                if self._captions
                else captions_schema().empty_table()
            )
            batch = self._dataset.next_batch(self._app_id)
            rows = pa.concat_tables(self._rows)
            self._dataset.commit(rows, captions, app_id=self._app_id, batch=batch)
            self._rows, self._captions = [], []
        self._committed_s = time.monotonic()
