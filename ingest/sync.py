"""A dataset kept equal in a second place: shards by their content's name, then the tables.

Shards that are there are not sent again, so that a killed run goes on where it was; the tables
follow only when every shard that they name has arrived and was read back. Views, tags and the log
stay where they are, but for takedowns: those reach every copy.
"""

import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ingest.files import TEMPORARY, StorageError, storage_error
from ingest.objects import Root
from ingest.passport import made_with
from ingest.purge import complete
from ingest.schema import ANNOTATIONS, conformed
from ingest.shards import CorruptPayload
from ingest.store import Dataset
from ingest.tables import Table
from ingest.takedown import OPERATION, Taken
from ingest.upkeep import replace_rows

PIECE_BYTES = 8 << 20
SENDERS = 8
LEDGER_KEY = ("unit_id", "kind", "id")
SHOWN = 3
Progress = Callable[[int, int], None]
_SHARD = re.compile(r"data/[0-9a-f]{2}/([0-9a-f]{64})\.arrow")


class WouldLose(ValueError):
    """The destination holds what the source does not; making them equal would lose it."""

    exit_code = 2


class SyncMismatch(RuntimeError):
    """The two places say different things after all, because somebody writes to one of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Synced:
    """What a sync did: shards and bytes sent, shards that were there, tables that changed.

    `digest` is that of both places; see Dataset.digest. `left` says where at the destination
    something still is that was taken down at the source, and what to do.
    """

    destination: str
    copied: int
    bytes: int
    skipped: int
    tables: tuple[str, ...]
    digest: str
    left: tuple[str, ...] = ()


def sync(
    source: Dataset,
    destination: Root | Path | str,
    *,
    workers: int = SENDERS,
    progress: Progress = lambda _done, _total: None,
) -> Synced:
    """Make `destination` say what `source`, at the version it was opened at, says.

    Each is a folder or an object store. What was taken down at the source is taken down there too,
    before anything else. Other settings are refused, and so is a destination with units or
    annotations that the source lacks. `progress` hears how many shards of how many are there.

    Raises WouldLose, SyncMismatch, CorruptPayload naming a damaged shard of the source,
    passport.OtherVersion, store.ContractMismatch, store.NotADataset, StorageError.
    """
    target = Root.of(destination)
    if target.overlaps(source.root):
        raise WouldLose(f"{target}: source and destination overlap; name another place")
    prep = made_with(source)
    dataset = Dataset.create(target, prep.contract, prep)
    left = _carry_takedowns(source, dataset)
    _check_nothing_lost(source, dataset)
    sent = _send(source, dataset, workers, progress)
    changed = _align(source, dataset)
    dataset.refresh()
    digest = source.digest()
    if dataset.digest() != digest:
        raise SyncMismatch(f"{target}: differs from {source.root} after the sync; run it again")
    synced = Synced(
        destination=target.uri,
        copied=sum(size > 0 for size in sent),
        bytes=sum(sent),
        skipped=sent.count(0),
        tables=changed,
        digest=digest,
        left=left,
    )
    if synced.copied or changed:
        _log(source, dataset, synced)
    return synced


def _log(source: Dataset, dataset: Dataset, synced: Synced) -> None:
    told = {
        "digest": synced.digest,
        "version": source.version,
        "copied": synced.copied,
        "bytes": synced.bytes,
        "tables": list(synced.tables),
    }
    dataset.log_operation("sync", told | {"from": source.root.uri})
    source.log_operation("sync", told | {"to": synced.destination})


def _carry_takedowns(source: Dataset, dataset: Dataset) -> tuple[str, ...]:
    """Take down at the destination what was taken down at the source; return what is left of it."""
    taken, ended = Taken.of(source), [row["detail"] for row in dataset.history()]
    done = [d for d in ended if d.get("left") == [] and {"sources", "clips"} <= d.keys()]
    told = {
        "sources": sorted(taken.sources.difference(*(one["sources"] for one in done))),
        "clips": sorted(taken.clips.difference(*(one["clips"] for one in done))),
        "reason": f"taken down at {source.root}",
        "views": {},
        "tags": [],
    }
    if not told["sources"] and not told["clips"]:
        return ()
    dataset.log_operation(OPERATION, told)
    found = complete(dataset)
    dataset.log_operation(OPERATION, told | {"left": list(found.left)})
    return found.left


def _check_nothing_lost(source: Dataset, dataset: Dataset) -> None:
    here, there = (d.ledger().column("unit_id").to_pylist() for d in (dataset, source))
    _refuse(dataset, "units of work", set(here) - set(there))
    for name, (_make, key) in ANNOTATIONS.items():
        here, there = (_keys(d.annotation(name), key) for d in (dataset, source))
        _refuse(dataset, name, here - there)


def _keys(rows: pa.Table, key: str) -> set[str]:
    columns = [rows.column(name).to_pylist() for name in key.split(",")]
    return {" ".join(values) for values in zip(*columns, strict=True)}


def _refuse(dataset: Dataset, what: str, lost: Iterable[str]) -> None:
    names = sorted(lost)
    if names:
        shown = ", ".join(name[:16] for name in names[:SHOWN])
        raise WouldLose(
            f"{dataset.root}: holds {len(names)} {what} that the source lacks ({shown} ...); "
            "sync the other way first, or name another destination"
        )


def _shards(dataset: Dataset) -> set[str]:
    """Return the shards that a version's rows name."""
    tables = (dataset.ledger(), dataset.annotation("latents"))
    return {name for table in tables for name in table.column("shard").to_pylist() if name}


def _send(source: Dataset, dataset: Dataset, workers: int, progress: Progress) -> list[int]:
    """Copy the shards that lack; return the bytes sent for each shard, 0 for one that was there."""
    wanted = sorted(_shards(source))
    there = {entry.name: entry.bytes for entry in dataset.root.names("data")}
    sizes = {entry.name: entry.bytes for entry in source.root.names("data")}
    trusted = _shards(dataset)  # named by its tables, hence read back by an earlier sync

    def send(name: str) -> int:
        if name not in sizes:
            raise CorruptPayload(f"shard {source.root.join(name)}: gone, though rows name it")
        if there.get(name) == sizes[name] and (name in trusted or _is_whole(dataset.root, name)):
            return 0
        _copy(source.root, dataset.root, name, sizes[name])
        return sizes[name]

    sent = []
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        for size in pool.map(send, wanted):
            sent.append(size)
            progress(len(sent), len(wanted))
    finally:
        pool.shutdown(cancel_futures=True)
    return sent


def _copy(source: Root, target: Root, name: str, size: int) -> None:
    folder = target.path / "data" if target.is_local else Path(tempfile.gettempdir())
    temporary = folder / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}"
    said = hashlib.sha256()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            for offset in range(0, size, PIECE_BYTES):
                piece = source.read_range(name, offset, min(PIECE_BYTES, size - offset))
                said.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if said.hexdigest() != _sha256_of(name):
            raise CorruptPayload(
                f"shard {source.join(name)}: its bytes are not those of its name; restore it"
            )
        target.upload(name, temporary)
    except OSError as error:
        raise error if isinstance(error, StorageError) else storage_error(error, folder) from error
    finally:
        temporary.unlink(missing_ok=True)
    if not _is_whole(target, name):
        target.delete(name)
        raise StorageError(0, "reads back other bytes than were written", target.join(name))


def _sha256_of(name: str) -> str:
    found = _SHARD.fullmatch(name)
    if not found:
        raise CorruptPayload(f"{name}: is not a shard's name")
    return found[1]


def _is_whole(root: Root, name: str) -> bool:
    """Read a shard back and compare it with its name."""
    said, size = hashlib.sha256(), root.size(name)
    for offset in range(0, size, PIECE_BYTES):
        said.update(root.read_range(name, offset, min(PIECE_BYTES, size - offset)))
    return said.hexdigest() == _sha256_of(name)


def _align(source: Dataset, dataset: Dataset) -> tuple[str, ...]:
    """Bring the tables to equality, the ledger last; return the names of those that changed."""
    changed = []
    for name, (make, key) in ANNOTATIONS.items():
        rows = source.annotation(name)
        if rows.num_rows or dataset.annotation(name).num_rows:
            table = Table.create(dataset.root, f"annotations/{name}", make(), key=key)
            if _bring(table, rows, key.split(",")):
                changed.append(name)
    ledger = dataset.table("ledger")
    if ledger is not None and _bring(ledger, source.ledger(), list(LEDGER_KEY)):
        changed.append("ledger")
    return tuple(changed)


def _bring(table: Table, rows: pa.Table, order: list[str]) -> bool:
    """Make a table hold `rows`: by appending where that is enough, else by replacing all."""
    table.refresh()
    by = [(name, "ascending") for name in order]
    wanted = rows.sort_by(by)
    held = conformed(table.rows(), rows.schema).sort_by(by)
    if held.equals(wanted):
        return False
    missing = table.fresh(rows)
    if pa.concat_tables([held, missing]).sort_by(by).equals(wanted):
        table.append_missing(missing)
    else:
        replace_rows(table, rows)
    return True
