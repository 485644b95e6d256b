"""The manifest of an evaluation set: one row a sample, with all that its pixels and its making depend on.

A Delta table beside the videos, committed by the same protocol as the dataset's ledger. A failed sample keeps its row and its
reason; when a later run succeeds, the success is what counts.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.pool import Outcome
from ingest.files import atomic_write
from ingest.objects import Root
from ingest.tables import Table
from pipelines.identity import digest
from pipelines.order import Order
from pipelines.output import read_json, to_json

KEY = "key"
FOLDER = "manifest"
ASKED = "asked.json"
EVERY_S = 1.0


class Incomplete(Exception):
    """An evaluation set has holes; a number over it would be a number over something else."""

    exit_code = 3

    def __init__(self, folder: str, missing: int, total: int) -> None:
        super().__init__(folder, missing, total)
        self.folder, self.missing, self.total = folder, missing, total

    def __str__(self) -> str:
        """Return one line with the way out."""
        return (
            f"{self.folder}: {self.missing} of {self.total} samples are missing; "
            "next: run its sample recipe again, it continues"
        )


SCHEMA = pa.schema(
    [
        pa.field(KEY, pa.string(), nullable=False),
        pa.field("identity", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("negative", pa.string()),
        pa.field("task", pa.string()),
        pa.field("condition", pa.string()),
        pa.field("style", pa.string()),
        pa.field("style_alpha", pa.float64()),
        pa.field("prompt_name", pa.string()),
        pa.field("more", pa.string()),
        pa.field("index", pa.int32(), nullable=False),
        pa.field("seed", pa.string(), nullable=False),
        pa.field("noise_id", pa.string()),
        pa.field("base_digest", pa.string()),
        pa.field("motion_digest", pa.string()),
        pa.field("ssr_digest", pa.string()),
        pa.field("settings", pa.string()),
        pa.field("recipe_digest", pa.string()),
        pa.field("window_starts", pa.list_(pa.int32())),
        pa.field("window_frames", pa.int32()),
        pa.field("windows", pa.int32()),
        pa.field("frames", pa.int32()),
        pa.field("fps", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("base_path", pa.string()),
        pa.field("lossless_path", pa.string()),
        pa.field("view_path", pa.string()),
        pa.field("base_sha256", pa.string()),
        pa.field("frames_sha256", pa.string()),
        pa.field("device", pa.string()),
        pa.field("dtype", pa.string()),
        pa.field("torch", pa.string()),
        pa.field("cuda", pa.string()),
        pa.field("cudnn", pa.string()),
        pa.field("code", pa.string()),
        pa.field("worker", pa.string()),
        pa.field("attempts", pa.int32()),
        pa.field("started_at", pa.string()),
        pa.field("ended_at", pa.string()),
        pa.field("base_s", pa.float64()),
        pa.field("ssr_s", pa.float64()),
        pa.field("wall_s", pa.float64()),
    ]
)


def read_set(folder: Path) -> list[dict[str, Any]]:
    """Return one row for each sample of the set, a success before any failure, sorted by prompt and index."""
    table = Table.open(Root.of(folder), FOLDER)
    best: dict[str, dict[str, Any]] = {}
    for row in table.rows().to_pylist():
        held = best.get(row["identity"])
        if held is None or held["status"] != "done":
            best[row["identity"]] = row
    return sorted(best.values(), key=_order)


@dataclass(frozen=True, slots=True)
class Asked:
    """The samples that a set was last asked for: it may hold others, and is complete when these are there."""

    identities: tuple[str, ...]

    @classmethod
    def of(cls, orders: Iterable[Order]) -> "Asked":
        """Return what these orders ask for."""
        return cls(tuple(order.identity for order in orders))

    @classmethod
    def read(cls, folder: Path) -> "Asked | None":
        """Return what a set's folder was asked for, None where that is not said."""
        told = read_json(folder / ASKED)
        return None if told is None else cls(tuple(told["identities"]))

    def write(self, folder: Path) -> None:
        """Put it beside the manifest."""
        atomic_write(folder / ASKED, to_json({"identities": list(self.identities)}))

    @property
    def digest(self) -> str:
        """The same for the same samples in any order."""
        return digest(sorted(self.identities))


def complete_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of all samples that were asked for; Incomplete where one is missing."""
    rows = {row["identity"]: row for row in read_set(folder)}
    done = {identity: row for identity, row in rows.items() if row["status"] == "done"}
    asked = Asked.read(folder)
    if asked is not None:
        wanted = asked.identities
    else:  # a set of an earlier version says how many; without a result nobody knows, so that one at least is missing
        made = read_json(folder / "result.json")
        total = made["asked"] if made else len(rows) + 1
        wanted = (*done, *("" for _ in range(total - len(done))))
    missing = sum(identity not in done for identity in wanted)
    if missing:
        raise Incomplete(str(folder), missing, len(wanted))
    return sorted((done[i] for i in wanted), key=_order)


def _order(row: Mapping[str, Any]) -> tuple[str, int, str]:
    return row["prompt_id"], row["index"], row["identity"]


def set_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the hex sha256 of what a set holds: each sample's identity and frames."""
    return digest(sorted([row["identity"], row["frames_sha256"]] for row in rows))


class Writer:
    """The one committer of a manifest: at once where samples come slowly, else at most once in EVERY_S."""

    def __init__(self, table: Table, *, app_id: str) -> None:
        self._table, self._app_id = table, app_id
        self._waiting: list[dict[str, Any]] = []
        self._last_s = float("-inf")

    def add(self, row: dict[str, Any]) -> None:
        """Commit one sample, soon."""
        self._waiting.append(row)
        self.tick()

    def tick(self) -> None:
        """Commit what waits if it is time."""
        if time.monotonic() - self._last_s >= EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Commit what waits."""
        if not self._waiting:
            return
        batch = self._table.next_batch(self._app_id)
        # A failure must not take the name under which a later success is committed.
        rows = [
            {
                **row,
                KEY: row["identity"]
                if row["status"] == "done"
                else f"{row['identity']}/failed/{batch}",
            }
            for row in self._waiting
        ]
        self._table.commit(
            pa.Table.from_pylist(rows, schema=SCHEMA), app_id=self._app_id, batch=batch
        )
        self._waiting.clear()
        self._last_s = time.monotonic()


def failed_row(order: Order, outcome: Outcome) -> dict[str, Any]:
    """Return the row of a sample that was given up, with its reason."""
    failure = outcome.failure
    return {
        "status": "failed",
        "error": f"{failure.error_class}: {failure.message}" if failure else None,
        **order.columns(),
        "attempts": outcome.attempts,
        "wall_s": outcome.wall_s,
    }
