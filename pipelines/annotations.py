"""Rows of annotations on their way into a dataset: new ones appended, others put in place of their older selves."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from ingest.restate import Key, key_of, restate
from ingest.schema import ANNOTATIONS
from ingest.store import Dataset

COMMIT_EVERY_S = 1.0
# Replacing rewrites the files that hold the old rows: it takes at most this share of the time, but for tables so large
# that rows would then wait longer than MOST_WAIT_S.
REWRITE_SHARE = 0.25
MOST_WAIT_S = 20.0


class Writer:
    """Collects rows of one annotation and commits what is finished when `commit_due` is called.

    New rows wait for COMMIT_EVERY_S, rows in place of older ones up to MOST_WAIT_S; a kill loses what waits.
    """

    def __init__(self, dataset: Dataset, name: str, *, app_id: str) -> None:
        self._dataset, self._name, self._app_id = dataset, name, app_id
        self._new: list[Mapping[str, Any]] = []
        self._changed: list[Mapping[str, Any]] = []
        self._gone: set[Key] = set()
        self._appended_s = self._rewrote_s = time.monotonic()
        self._rewrite_cost_s = 0.0

    def add(self, rows: Sequence[Mapping[str, Any]], held: set[Key]) -> None:
        """Take the rows of one clip; `held` are the keys of the rows that they take the place of."""
        keys = {key_of(self._name, row) for row in rows}
        for row in rows:
            known = key_of(self._name, row) in held
            (self._changed if known else self._new).append(row)
        self._gone |= held - keys

    def commit_due(self) -> None:
        """Commit what has waited long enough."""
        now_s = time.monotonic()
        if self._new and now_s - self._appended_s >= COMMIT_EVERY_S:
            self._append()
        pause_s = max(COMMIT_EVERY_S, min(self._rewrite_cost_s / REWRITE_SHARE, MOST_WAIT_S))
        if (self._changed or self._gone) and now_s - self._rewrote_s >= pause_s:
            self._rewrite()

    def flush(self) -> None:
        """Commit everything."""
        if self._new:
            self._append()
        if self._changed or self._gone:
            self._rewrite()

    def _append(self) -> None:
        make, _key = ANNOTATIONS[self._name]
        rows = pa.Table.from_pylist([dict(row) for row in self._new], schema=make())
        batch = self._dataset.next_annotation(self._name, self._app_id)
        self._dataset.annotate(self._name, rows, app_id=self._app_id, batch=batch)
        self._new = []
        self._appended_s = time.monotonic()

    def _rewrite(self) -> None:
        # A row whose new form is not stored yet must not lose the old one: what is new goes first.
        if self._new:
            self._append()
        begun_s = time.monotonic()
        restate(self._dataset, self._name, self._changed, retract=self._gone)
        self._changed, self._gone = [], set()
        self._rewrote_s = time.monotonic()
        self._rewrite_cost_s = self._rewrote_s - begun_s
