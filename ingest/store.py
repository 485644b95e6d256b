"""The dataset on disk: a Delta ledger that is also the index, captions beside it, frozen views.

A unit of work is done only through its ledger rows, and those land once or not at all; payload
shards that no row names are harmless.
"""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from ingest import views
from ingest.balance import Balance, balance
from ingest.clip import Contract, Prep, digest_of
from ingest.schema import captions_schema, ledger_schema
from ingest.shards import storage_error
from ingest.tables import NotATable, Table

SCHEMA_VERSION = "1"
LEDGER, CAPTIONS = Path("ledger"), Path("annotations") / "captions"
KNOWN_NAMES = frozenset(("ledger", "annotations", "data", "views", "runs", "tags.json"))


class NotADataset(ValueError):
    """The folder is not a dataset, or not one that this version can read."""

    exit_code = 2


class ContractMismatch(ValueError):
    """The dataset was made with another contract or preparation."""

    exit_code = 2


class Dataset:
    """A dataset folder. Make one with `create` or `open`; one instance per process and thread."""

    def __init__(self, root: Path, ledger: Table, captions: Table) -> None:
        self.root = root
        self._ledger, self._captions = ledger, captions
        settings = ledger.settings
        if settings.get("kinoray.schema") != SCHEMA_VERSION:
            raise NotADataset(f"{root}: a table without this version's marks; name another folder")
        self.contract = Contract(**json.loads(settings["kinoray.contract"]))
        self.prep_digest = settings["kinoray.prep_digest"]

    @classmethod
    def create(cls, root: Path, contract: Contract, prep: Prep) -> "Dataset":
        """Make a dataset in an absent or empty folder, or open the same one again.

        Raises NotADataset when the folder holds something else, ContractMismatch when it holds a
        dataset of another contract or preparation, StorageError when it cannot be written.
        """
        settings = {
            "kinoray.schema": SCHEMA_VERSION,
            "kinoray.contract": json.dumps(asdict(contract), sort_keys=True),
            "kinoray.prep": json.dumps(asdict(prep), sort_keys=True),
            "kinoray.prep_digest": prep.digest(),
        }
        try:
            _refuse_strangers(root)
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, root) from error
        Table.create(root / CAPTIONS, captions_schema(), key=_CAPTION_KEY)
        Table.create(root / LEDGER, ledger_schema(), key="unit_id", settings=settings)
        dataset = cls.open(root)
        if dataset.contract != contract or dataset.prep_digest != prep.digest():
            raise ContractMismatch(
                f"{root}: holds clips of another contract or preparation; "
                "name another output folder, or use the recipe that made it"
            )
        return dataset

    @classmethod
    def open(cls, root: Path) -> "Dataset":
        """Open an existing dataset; raises NotADataset."""
        try:
            return cls(root, Table.open(root / LEDGER), Table.open(root / CAPTIONS))
        except NotATable as error:
            raise NotADataset(f"{root}: not a dataset; curate into it first") from error
        except KeyError as error:
            raise NotADataset(f"{root}: its ledger lacks the setting {error}") from error

    @property
    def version(self) -> int:
        """Version of the ledger as last read or written by this instance."""
        return self._ledger.version

    def refresh(self) -> int:
        """Read what other processes committed meanwhile; return the ledger's version."""
        self._captions.refresh()
        return self._ledger.refresh()

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
        fresh = self._ledger.fresh(rows)
        # Captions first: a ledger row then never lacks the caption that its unit had.
        ids = set(fresh.column("id").to_pylist())
        of_fresh = [clip in ids for clip in captions.column("clip_id").to_pylist()]
        self._captions.append_missing(captions.filter(pa.array(of_fresh, pa.bool_())))
        return self._ledger.commit(fresh, app_id=app_id, batch=batch)

    def ledger(self) -> pa.Table:
        """Return all ledger rows."""
        return self._ledger.rows().cast(ledger_schema())

    def captions(self) -> pa.Table:
        """Return all caption rows."""
        return self._captions.rows().cast(captions_schema())

    def kept_clips(self) -> pa.Table:
        """Return one row per kept clip, sorted by clip_id, with its preferred caption ("" if none).

        A caption counts only for the very payload it was made for.
        """
        return views.kept_clips(self.ledger(), self.captions())

    def digest(self) -> str:
        """Return the hex sha256 of what the dataset says.

        It is independent of time, attempts, names of files, packing into shards and order of
        commits.
        """
        said = {
            (row["clip_id"], row["payload_sha256"]): row["caption"]
            for row in self.kept_clips()
            .select(["clip_id", "payload_sha256", "caption"])
            .to_pylist()
        }
        names = ["kind", "id", "fate", "rule", "payload_sha256"]
        rows = (
            [*(row[name] or "" for name in names), said.get((row["id"], row["payload_sha256"]), "")]
            for row in self._ledger.rows(names).to_pylist()
        )
        return digest_of(sorted(rows))

    def info(self) -> dict[str, object]:
        """Return counts: sources and clips by fate, rejections by rule, frames, seconds, bytes."""
        rows = self.ledger()
        fates = _counts(rows, "kind", "fate")
        rules = Counter(rule for rule in rows.column("rule").to_pylist() if rule)
        kept = self.kept_clips()
        frames = sum(kept.column("frame_count").to_pylist())
        return {
            "sources": sum(count for (kind, _), count in fates.items() if kind == "source"),
            "sources_rejected": fates.get(("source", "rejected"), 0),
            "clips_kept": kept.num_rows,
            "clips_rejected": fates.get(("clip", "rejected"), 0),
            "failed": fates.get(("source", "failed"), 0) + fates.get(("clip", "failed"), 0),
            "duplicates": fates.get(("source", "duplicate"), 0)
            + fates.get(("clip", "duplicate"), 0),
            "rules": dict(sorted(rules.items())),
            "frames": frames,
            "seconds": frames / self.contract.fps,
            "payload_bytes": sum(kept.column("length").to_pylist()),
        }

    def balance(self, expected_units: set[str] | None = None) -> Balance:
        """Check that every unit has one source row and every candidate clip one fate."""
        return balance(self.ledger(), expected_units)

    def freeze_view(self, clips: pa.Table | None = None) -> views.View:
        """Write a frozen selection (default: all kept clips) for training; see views.freeze."""
        return views.freeze(self.root, self.kept_clips() if clips is None else clips)


_CAPTION_KEY = "clip_id,producer,payload_sha256"


def _counts(rows: pa.Table, *names: str) -> dict[tuple[str, str], int]:
    grouped = rows.group_by(list(names)).aggregate([([], "count_all")]).to_pylist()
    return {(row[names[0]], row[names[1]]): row["count_all"] for row in grouped}


def _refuse_strangers(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise NotADataset(f"{root}: is a file; name a folder for the dataset")
    strangers = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    if any(name not in KNOWN_NAMES for name in strangers):
        raise NotADataset(
            f"{root}: holds other files ({', '.join(strangers[:3])}); name another output folder"
        )
