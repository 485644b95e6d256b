"""Clips from elsewhere into a dataset: exports of ours exactly as they were, strangers' when they fit.

A unit is one source of an export, or one clip of a stranger; each gets one fate, and lands once
however often the import is killed and run again.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from ingest import admit
from ingest.admit import Admitted
from ingest.arrivals import Arrival, Format, arrival
from ingest.clip import Contract, Prep
from ingest.ledger import to_table
from ingest.objects import Root
from ingest.offers import Malformed, Offered, Part
from ingest.passport import LISTS, made_with
from ingest.returning import Known, known, returning
from ingest.schema import ANNOTATIONS
from ingest.shards import ShardWriter
from ingest.store import ContractMismatch, Dataset, NotADataset
from ingest.strangers import stranger
from ingest.vet import Vetting

BATCH_BYTES = 128 << 20  # a payload shard
BATCH_UNITS = 512
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What became of everything offered, over all runs of this import; each clip counts once.

    `new_units` were committed by this run; `digest` names what was imported.
    """

    kept: int
    rejected: int
    failed: int
    duplicates: int
    units: int
    new_units: int
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """A unit before it is read: how to read it (its id alone where it is done), its payload bytes."""

    run: Callable[[], Admitted | str]
    bytes: int = 0

    def read(self) -> Admitted | str:
        return self.run()


@dataclass(kw_only=True)
class _Intake:
    """Units on their way into a dataset, a batch at a time."""

    dataset: Dataset
    app_id: str
    done: set[str]
    kept: set[str]
    purged: set[str]
    units: list[str] = field(default_factory=list)
    new_units: int = 0

    def take(self, batch: Iterable[Admitted | str]) -> None:
        """Commit the units of a batch that are not done; a text is the id of one that is."""
        rows: list[dict[str, Any]] = []
        said: dict[str, list[dict[str, Any]]] = defaultdict(list)
        units = 0
        with ShardWriter(self.dataset.root) as shard:
            for unit in batch:
                self.units.append(unit if isinstance(unit, str) else unit.unit.unit_id)
                if not isinstance(unit, str) and self.units[-1] not in self.done:
                    self.done.add(self.units[-1])
                    rows += self._rows(unit, shard, said)
                    units += 1
            kept = [row for row in rows if row["kind"] == "clip" and row["fate"] == "kept"]
            for row, place in zip(kept, shard.close(), strict=True):
                row |= {name: getattr(place, name) for name in place.__slots__}
        if rows:
            self._commit(rows, said)
            self.new_units += units

    def _rows(
        self, unit: Admitted, shard: ShardWriter, said: dict[str, list[dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        unit.settle(self.kept, self.purged)
        for candidate in unit.candidates:
            if candidate.fate.name == "kept":
                shard.append(candidate.shard_row())
            # What is said of a clip that is there already is news all the same.
            if candidate.fate.name in ("kept", "duplicate"):
                for name, told in candidate.said.items():
                    said[name] += told
        return unit.rows(self.dataset.prep_digest)

    def _commit(self, rows: list[dict[str, Any]], said: dict[str, list[dict[str, Any]]]) -> None:
        dataset, app_id = self.dataset, self.app_id
        for name in LISTS:  # before the ledger: a clip then never lacks what was said of it
            table = _once(name, said[name])
            if table.num_rows and name != "captions":
                number = dataset.next_annotation(name, app_id)
                dataset.annotate(name, table, app_id=app_id, batch=number)
        captions = _once("captions", said["captions"])
        number = dataset.next_batch(app_id)
        dataset.commit(to_table(rows), captions, app_id=app_id, batch=number)


def _once(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    make, key = ANNOTATIONS[name]
    once = {tuple(row[part] for part in key.split(",")): row for row in rows}
    return pa.Table.from_pylist(list(once.values()), schema=make())


def import_clips(
    root: Root | Path | str,
    place: Path,
    *,
    format: Format = "auto",  # noqa: A002  the word that people type
    contract: Contract | None = None,
    workers: int = 2,
    progress: Progress = lambda _done, _total: None,
) -> Imported:
    """Bring the clips at `place` into the dataset at `root`, which is made when it is absent.

    `place` is a folder or a tar: an export of ours, WebDataset tars, a folder with a table that
    names its files, or a Lance dataset. A stranger's clip has to satisfy the contract: that of the
    dataset, or `contract` (default: 80 frames at 16 fps) for a new one; `workers` processes check.
    `progress` hears how many units of how many are decided.

    Raises arrivals.NotImportable, passport.OtherVersion, store.ContractMismatch, store.NotADataset,
    tables.NotOurs, StorageError.
    """
    found = arrival(Path(place), format)
    dataset = _dataset(Root.of(root), found, contract)
    intake = _Intake(
        dataset=dataset,
        app_id=f"import/{found.digest}",
        done=dataset.committed_units(),
        kept=set(dataset.kept_clips().column("clip_id").to_pylist()),
        purged=dataset.purged(),
    )
    with Vetting(made_with(dataset)) as vetting:
        jobs = _jobs(found, dataset.prep_digest, vetting, intake.done)
        pool = ThreadPoolExecutor(max(1, workers))
        try:
            for batch in _batches(jobs):
                intake.take(pool.map(_Job.read, batch))
                progress(len(intake.units), len(jobs))
        finally:
            pool.shutdown(cancel_futures=True)
    return _counted(intake, found)


def _dataset(root: Root, found: Arrival, contract: Contract | None) -> Dataset:
    if found.prep is not None:
        if contract not in (None, found.prep.contract):
            raise ContractMismatch(f"{found.place}: was exported from clips of another contract")
        return Dataset.create(root, found.prep.contract, found.prep)
    try:
        dataset = Dataset.open(root)
    except NotADataset:
        wanted = contract or Contract()
        return Dataset.create(root, wanted, Prep(contract=wanted))
    if contract not in (None, dataset.contract):
        raise ContractMismatch(f"{root}: holds clips of another contract; leave `contract` out")
    return dataset


def _jobs(found: Arrival, prep_digest: str, vetting: Vetting, done: set[str]) -> list[_Job]:
    place = str(found.place)
    broken = [(p.name, p.problem, p.sha256) for p in found.parts if p.problem]
    broken += [(o.name, o.problem, "") for p in found.parts for o in p.offers if o.problem]
    whole = [(p, o) for p in found.parts for o in p.offers if not o.problem]
    jobs: list[_Job] = []
    if found.prep is None:
        for part, offered in whole:
            run = partial(stranger, part, offered, place=place, vetting=vetting, skip=done)
            jobs.append(_Job(run=run, bytes=offered.length))
    else:
        sources, wrong = _by_source(whole)
        broken += wrong
        for clips in sources:
            run = partial(returning, clips, prep_digest=prep_digest, skip=done)
            jobs.append(_Job(run=run, bytes=sum(clip.offered.length for clip in clips)))
    return jobs + [
        _Job(run=partial(admit.failed, place, name, problem, sha256=sha256))
        for name, problem, sha256 in broken
    ]


def _by_source(
    offers: list[tuple[Part, Offered]],
) -> tuple[list[list[Known]], list[tuple[str, str, str]]]:
    """Group clips by the source that their sheets name; tell also which have no good sheet."""
    sources: dict[str, dict[str, Known]] = defaultdict(dict)
    wrong = []
    for part, offered in offers:
        try:
            clip = known(part, offered)
        except Malformed as error:
            wrong.append((offered.name, str(error), ""))
            continue
        if clip.clip_id in sources[clip.source_sha256]:
            wrong.append((offered.name, "a clip of this id was offered before", ""))
        else:
            sources[clip.source_sha256][clip.clip_id] = clip
    return [list(clips.values()) for _, clips in sorted(sources.items())], wrong


def _batches(jobs: list[_Job]) -> Iterator[list[_Job]]:
    batch: list[_Job] = []
    filled = 0
    for job in jobs:
        if batch and (filled + job.bytes > BATCH_BYTES or len(batch) == BATCH_UNITS):
            yield batch
            batch, filled = [], 0
        batch.append(job)
        filled += job.bytes
    if batch:
        yield batch


def _counted(intake: _Intake, found: Arrival) -> Imported:
    """Count the fates of all units of the import, and write down that it took place."""
    dataset, ours = intake.dataset, set(intake.units)
    rows = dataset.ledger().select(["unit_id", "kind", "fate", "num_candidates"]).to_pylist()
    fates = Counter(
        row["fate"]
        for row in rows
        if row["unit_id"] in ours and (row["kind"] == "clip" or not row["num_candidates"])
    )
    imported = Imported(
        kept=fates["kept"],
        rejected=fates["rejected"],
        failed=fates["failed"],
        duplicates=fates["duplicate"],
        units=len(ours),
        new_units=intake.new_units,
        digest=found.digest,
    )
    logged = [r["detail"].get("digest") for r in dataset.history() if r["operation"] == "import"]
    if found.digest not in logged:
        counts = {name: fates[name] for name in ("kept", "rejected", "failed", "duplicate")}
        detail = {"place": str(found.place), "format": found.format, "digest": found.digest}
        dataset.log_operation("import", detail | counts)
    return imported
