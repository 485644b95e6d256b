"""The dataset: a Delta ledger that is also the index, annotations beside it, shards, frozen views.

A unit of work is done only through its ledger rows, and those land once or not at all; payload
shards that no row names are harmless.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from ingest import clips, facts, refs, views
from ingest.balance import Balance, balance
from ingest.clip import Contract, Prep
from ingest.columns import among
from ingest.grounds import NotADataset, prepare
from ingest.objects import Root
from ingest.rewrite import replace_units
from ingest.schema import ANNOTATIONS, captions_schema, conformed, ledger_schema, log_schema
from ingest.select import Selection
from ingest.tables import NotATable, Table
from ingest.takedown import Taken, clips_left, hidden, spared

SCHEMA_VERSION = "1"
LEDGER, LOG = refs.LEDGER, refs.LOG


class ContractMismatch(ValueError):
    """The dataset was made with another contract or preparation."""

    exit_code = 2


class ReadOnly(ValueError):
    """An old version or a tag was opened, and these are not written to."""

    exit_code = 2


class Dataset:
    """A dataset. Make one with `create` or `open`; one instance per process and thread."""

    def __init__(self, root: Root, places: Mapping[str, refs.Place]) -> None:
        self.root = root
        self._places = dict(places)
        self._tables: dict[str, Table] = {}
        ledger = self.table(LEDGER)
        if ledger is None or ledger.settings.get("kinoray.schema") != SCHEMA_VERSION:
            raise NotADataset(f"{root}: a table without this version's marks; name another folder")
        self._ledger = ledger
        self.contract = Contract(**json.loads(ledger.settings["kinoray.contract"]))
        self.prep_digest = ledger.settings["kinoray.prep_digest"]

    @classmethod
    def create(cls, place: Root | Path | str, contract: Contract, prep: Prep) -> "Dataset":
        """Make a dataset in an absent or empty folder or prefix, or open the same one again.

        Raises NotADataset when the place holds something else, ContractMismatch when it holds a
        dataset of another contract or preparation, StorageError when it cannot be written.
        """
        root = Root.of(place)
        settings = {
            "kinoray.schema": SCHEMA_VERSION,
            "kinoray.contract": json.dumps(contract.settings(), sort_keys=True),
            "kinoray.prep": json.dumps(asdict(prep), sort_keys=True),
            "kinoray.prep_digest": prep.digest(),
        }
        prepare(root)
        _create_annotation(root, "captions")
        Table.create(root, LEDGER, ledger_schema(), key="unit_id", settings=settings)
        dataset = cls.open(root)
        if dataset.contract != contract or dataset.prep_digest != prep.digest():
            raise ContractMismatch(
                f"{root}: holds clips of another contract or preparation; "
                "name another output folder, or use the recipe that made it"
            )
        return dataset

    @classmethod
    def open(cls, place: Root | Path | str, at: str = "") -> "Dataset":
        """Open an existing dataset, or what it was at a tag or version (then it is read-only).

        Raises NotADataset, refs.NoSuchVersion.
        """
        root = Root.of(place)
        try:
            return cls(root, refs.resolve(root, at))
        except NotATable as error:
            raise NotADataset(f"{root}: not a dataset; curate into it first") from error
        except KeyError as error:
            raise NotADataset(f"{root}: its ledger lacks the setting {error}") from error

    @property
    def version(self) -> int:
        """Version of the ledger as last read or written by this instance."""
        return self._ledger.version

    def versions(self) -> dict[str, int]:
        """Return the version of every table there is, as last read or written by this instance."""
        found = ((name, self.table(name)) for name in sorted(self._places))
        return {name: table.version for name, table in found if table}

    @property
    def is_head(self) -> bool:
        """Whether this is the newest version, which may be written to."""
        return all(place.version < 0 for place in self._places.values())

    def table(self, name: str) -> Table | None:
        """Return the table of a name (ledger, log, annotations/captions ...), None if there is none."""
        if name not in self._tables and name in self._places:
            place = self._places[name]
            version = None if place.version < 0 else place.version
            try:
                self._tables[name] = Table.open(self.root, place.path, version)
            except NotATable:
                if name == LEDGER or version is not None:
                    raise
        return self._tables.get(name)

    @property
    def ledger_table(self) -> Table:
        """The ledger's table, as other processes left it."""
        self.refresh()
        return self._ledger

    def refresh(self) -> int:
        """Read what other processes committed meanwhile; return the ledger's version."""
        if self.is_head:
            self._places = refs.head(self.root)
            for table in self._tables.values():
                table.refresh()
        return self._ledger.version

    def committed_units(self) -> set[str]:
        """Return the ids of all units that are done."""
        self.refresh()
        return set(self._ledger.keys())

    def next_batch(self, app_id: str) -> int:
        """Return the number that the next commit of `app_id` must carry."""
        return self._ledger.next_batch(app_id)

    def commit(self, rows: pa.Table, captions: pa.Table, *, app_id: str, batch: int) -> int:
        """Append the rows of finished units with their captions; return the ledger's version.

        Units that are in the ledger already are dropped, so repeating a commit changes nothing.
        Raises NotOurs when another run of `app_id` took this batch number, StorageError when the
        dataset cannot be written.
        """
        self._writable()
        fresh = self._ready(self._ledger.fresh(rows), captions)
        return self._ledger.commit(fresh, app_id=app_id, batch=batch)

    def replace_units(self, rows: pa.Table) -> int:
        """Put rows of units that were worked on again in place of theirs; as `commit` otherwise."""
        self._writable()
        replace_units(self._ledger, self._ready(rows, empty_captions()))
        return self._ledger.version

    def _ready(self, rows: pa.Table, captions: pa.Table) -> pa.Table:
        """Return rows without what was taken down, and write their captions."""
        taken = Taken.of(self)  # somebody may have been taken down since the work on a unit began
        if taken:
            rows = hidden(rows, taken, clips_left(rows, taken))
        # Captions first: a ledger row then never lacks the caption that its unit had.
        kept = rows.filter(pa.array(among(rows.column("fate"), ["kept"])))
        ids = set(kept.column("id").to_pylist())
        of_fresh = [clip in ids for clip in captions.column("clip_id").to_pylist()]
        said = captions.filter(pa.array(of_fresh, pa.bool_()))
        if said.num_rows:
            self._annotations("captions").append_missing(said)
        return rows

    def annotate(self, name: str, rows: pa.Table, *, app_id: str, batch: int) -> int:
        """Append rows to an annotation (see schema.ANNOTATIONS); return its version.

        Rows whose key is there already are dropped. Raises as `commit` does.
        """
        self._writable()
        make, _key = ANNOTATIONS[name]
        rows = spared(rows, Taken.of(self))
        return self._annotations(name).commit(conformed(rows, make()), app_id=app_id, batch=batch)

    def next_annotation(self, name: str, app_id: str) -> int:
        """Return the number that the next `annotate` of `app_id` must carry."""
        return self._annotations(name).next_batch(app_id)

    def _annotations(self, name: str) -> Table:
        path = f"{refs.ANNOTATED}/{name}"
        if path not in self._places:
            _create_annotation(self.root, name)
            self._places[path] = refs.Place(path=path)
        table = self.table(path)
        if table is None:
            raise NotADataset(f"{self.root}: {path} vanished")
        return table

    def _writable(self) -> None:
        if not self.is_head:
            raise ReadOnly(f"{self.root}: an old version is read-only; open it without `at`")

    def ledger(self) -> pa.Table:
        """Return all ledger rows."""
        return conformed(self._ledger.rows(), ledger_schema())

    def annotation(self, name: str) -> pa.Table:
        """Return all rows of an annotation, none when it was never written."""
        make, _key = ANNOTATIONS[name]
        table = self.table(f"{refs.ANNOTATED}/{name}")
        return conformed(table.rows(), make()) if table else make().empty_table()

    def captions(self) -> pa.Table:
        """Return all caption rows."""
        return self.annotation("captions")

    def kept_clips(self) -> pa.Table:
        """Return one row per kept clip, sorted by clip_id; see clips.schema."""
        return self.select(Selection())

    def select(self, selection: Selection) -> pa.Table:
        """Return the kept clips of a selection, sorted by clip_id; raises clips.NotAQuery."""
        return clips.select(self._named(), selection.where, selection.guards())

    def query(self, sql: str) -> pa.Table:
        """Return what one SELECT finds in ledger, captions, labels, rights, latents, log and clips.

        Raises clips.NotAQuery.
        """
        return clips.ask(self._named(), sql)

    def _named(self) -> dict[str, Table]:
        found = {name.removeprefix(f"{refs.ANNOTATED}/"): name for name in self._places}
        tables = {short: self.table(name) for short, name in found.items()}
        return {short: table for short, table in tables.items() if table}

    def digest(self) -> str:
        """Return the hex sha256 of what the dataset says; see facts.digest."""
        return facts.digest(self._ledger.rows(facts.SAID_BY_LEDGER), self.kept_clips())

    def info(self) -> dict[str, object]:
        """Return counts: sources and clips by fate, rejections by rule, frames, seconds, bytes."""
        return facts.info(self.ledger(), self.kept_clips())

    def balance(self, expected_units: set[str] | None = None) -> Balance:
        """Check that every unit has one source row and every candidate clip one fate."""
        return balance(self.ledger(), expected_units)

    def freeze_view(
        self, clips: pa.Table | None = None, *, selection: Selection | None = None
    ) -> views.View:
        """Write a frozen selection (default: all kept clips) for training; see views.freeze."""
        chosen = selection or Selection()
        return views.freeze(self.root, self.select(chosen) if clips is None else clips, chosen)

    def log_operation(self, operation: str, detail: Mapping[str, Any]) -> None:
        """Write down an operation on the dataset as a whole; see schema.log_schema."""
        if self.table(LOG) is None:
            Table.create(self.root, LOG, log_schema(), key="op")
            self._places[LOG] = refs.Place(path=LOG)
        table = self.table(LOG)
        row = {
            "op": secrets.token_hex(16),
            "at": now(),
            "operation": operation,
            "version": self.version,
            "detail": json.dumps(detail, sort_keys=True),
        }
        if table is not None:
            table.append_missing(pa.Table.from_pylist([row], schema=log_schema()))

    def history(self) -> list[dict[str, Any]]:
        """Return the operations on the dataset, oldest first, with their details as values."""
        table = Table.open(self.root, LOG) if self.root.folders(LOG) else None
        rows = conformed(table.rows(), log_schema()).to_pylist() if table else []
        listed = [row | {"detail": json.loads(row["detail"])} for row in rows]
        return sorted(listed, key=lambda row: (row["at"], row["op"]))

    def purged(self) -> set[str]:
        """Return the hashes of sources and the ids of clips that were taken down."""
        return {*(taken := Taken.of(self)).sources, *taken.clips}


def now() -> str:
    """Return the moment as ISO 8601 in UTC, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def empty_captions() -> pa.Table:
    """Return a table of captions without rows."""
    return captions_schema().empty_table()


def _create_annotation(root: Root, name: str) -> None:
    make, key = ANNOTATIONS[name]
    Table.create(root, f"{refs.ANNOTATED}/{name}", make(), key=key)
