"""Datasets for others to read: WebDataset tars, a folder of files with a table, or Lance.

A run that was killed goes on where it was; `export.json` comes last and says that all is there.
Tars and folders have the same bytes however often the run was killed, Lance has the same rows.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from ingest import folders, lance, passport, tars
from ingest.clip import digest_of
from ingest.files import TEMPORARY, atomic_write, storage_error
from ingest.objects import Root
from ingest.select import Selection
from ingest.shards import read_payload
from ingest.sources import sha256_file
from ingest.store import Dataset
from ingest.tars import Written
from ingest.views import view_digest

Format = Literal["webdataset", "folder", "lance"]
Progress = Callable[[int, int], None]
FORMATS: tuple[Format, ...] = get_args(Format)
DONE, UNFINISHED = "export.json", ".export-unfinished.json"
LAYOUT = 1  # raise it when the same clips begin to give other files
READERS, AT_ONCE = 8, 32
LANCE_BATCH_BYTES = 32 << 20
_TAR = re.compile(r"clips-\d{6,}\.tar")


class NotEmpty(ValueError):
    """The folder holds something else."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What lies in the folder: the view's digest, clips, bytes of payload, names of the main files.

    `found_clips` of the clips were there already, from a run that was killed or from the same one.
    """

    out: str
    format: Format
    view: str
    clips: int
    bytes: int
    files: tuple[str, ...]
    found_clips: int


@dataclass(kw_only=True)
class _Run:
    """One export on its way."""

    dataset: Dataset
    out: Path
    table: pa.Table
    identity: str
    passports: str
    progress: Progress
    shard_bytes: int
    pool: ThreadPoolExecutor
    found_clips: int = 0

    @property
    def num_clips(self) -> int:
        return self.table.num_rows

    def read(self, first: int, last: int) -> Iterator[tuple[dict[str, Any], memoryview]]:
        """Yield the passports of clips [first, last) with their verified payloads."""
        for start in range(first, last, AT_ONCE):
            rows = self.table.slice(start, min(AT_ONCE, last - start)).to_pylist()
            payloads = self.pool.map(self._payload, rows)
            for number, (row, payload) in enumerate(zip(rows, payloads, strict=True), start):
                yield row, payload
                self.progress(number + 1, self.num_clips)

    def _payload(self, row: dict[str, Any]) -> memoryview:
        place = row["shard"], row["offset"], row["length"], row["crc32"]
        return read_payload(self.dataset.root, *place, clip_id=row["clip_id"])

    def note(self, files: list[Written]) -> None:
        """Write down which files are finished."""
        told = {"export": self.identity, "files": [asdict(file) for file in files]}
        atomic_write(self.out / UNFINISHED, json.dumps(told).encode())

    def noted(self) -> list[Written]:
        """Return the first files of an earlier run, as long as they are what it wrote."""
        found = []
        for told in json.loads((self.out / UNFINISHED).read_bytes())["files"]:
            path = self.out / told["name"]
            if not path.is_file() or sha256_file(path) != told["sha256"]:
                break
            found.append(Written(**told))
        return found


def export(
    dataset: Dataset,
    out: Path,
    *,
    format: Format = "webdataset",  # noqa: A002  the word that people type
    selection: Selection | None = None,
    shard_bytes: int = 512 << 20,
    progress: Progress = lambda _done, _total: None,
) -> Exported:
    """Write the clips of a selection (default: all kept ones) to a folder, or finish doing so.

    `progress` hears how many clips of how many are written. What rights the selection asks for is
    all that guards them: without `licences` and `consents` every kept clip leaves the dataset.

    Raises NotEmpty when the folder holds anything but this export, ValueError for an empty
    selection, CorruptPayload naming shard and clip, StorageError, lance.LanceMissing.
    """
    if format not in FORMATS or shard_bytes < 1:
        raise ValueError(f"export: format is one of {', '.join(FORMATS)}; shard_bytes at least 1")
    if Root.of(out).overlaps(dataset.root):
        raise NotEmpty(f"{out}: lies inside the dataset, or around it; name another folder")
    if out.exists() and not out.is_dir():
        raise NotEmpty(f"{out}: is a file; name a folder")
    chosen = selection or Selection()
    table = passport.passports(dataset, chosen)
    passports = passport.digest(passport.rows(table))
    split = shard_bytes if format == "webdataset" else 0
    with ThreadPoolExecutor(READERS) as pool:
        run = _Run(
            dataset=dataset,
            out=out,
            table=table,
            identity=digest_of([LAYOUT, passports, format, split]),
            passports=passports,
            progress=progress,
            shard_bytes=shard_bytes,
            pool=pool,
        )
        if not _is_done(run, format):
            files = WRITERS[format](run)
            atomic_write(out / DONE, _told(run, format, chosen, files))
    (out / UNFINISHED).unlink(missing_ok=True)
    return _exported(run, format)


def _exported(run: _Run, format: Format) -> Exported:  # noqa: A002
    told = json.loads((run.out / DONE).read_bytes())
    return Exported(
        out=str(run.out),
        format=format,
        view=told["view"],
        clips=told["clips"],
        bytes=told["bytes"],
        files=tuple(file["name"] for file in told["files"]),
        found_clips=run.found_clips,
    )


def _told(run: _Run, format: Format, selection: Selection, files: list[Written]) -> bytes:  # noqa: A002
    told = {
        "kinoray.export": LAYOUT,
        "export": run.identity,
        "format": format,
        "passports": run.passports,
        "view": view_digest(run.table),
        "prep": passport.stored_prep(run.dataset),
        "prep_digest": run.dataset.prep_digest,
        "selection": selection.plain(),
        "clips": run.num_clips,
        "bytes": sum(run.table.column("length").to_pylist()),
        "files": [asdict(file) for file in files],
    }
    return (json.dumps(told, indent=1, sort_keys=True) + "\n").encode()


def _is_done(run: _Run, format: Format) -> bool:  # noqa: A002
    """Check that the folder is new, or holds this very export; clean up after a killed run."""
    out = run.out
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in out.iterdir() if TEMPORARY not in path.name)
        state = next((name for name in (DONE, UNFINISHED) if name in found), "")
        if state and _identity(out / state) != run.identity:
            raise NotEmpty(f"{out}: holds another export; name another folder or remove that one")
        allowed = OWN[format] if state else ()
        strangers = [n for n in found if n not in (DONE, UNFINISHED) and not _fits(n, allowed)]
        if strangers:
            raise NotEmpty(
                f"{out}: holds other files ({', '.join(strangers[:3])}); name another folder"
            )
        for path in list(out.rglob(f".*{TEMPORARY}*")):
            path.unlink()
    except OSError as error:
        raise storage_error(error, out) from error
    if not state:
        run.note([])
    if state == DONE:
        run.found_clips = run.num_clips
    return state == DONE


def _fits(name: str, allowed: tuple[str | re.Pattern[str], ...]) -> bool:
    return any(p == name if isinstance(p, str) else bool(p.fullmatch(name)) for p in allowed)


def _identity(path: Path) -> str:
    try:
        return json.loads(path.read_bytes())["export"]
    except (ValueError, KeyError, TypeError):
        return ""


def _webdataset(run: _Run) -> list[Written]:
    files = run.noted()
    first = run.found_clips = sum(file.clips for file in files)
    for last in tars.bounds(run.table, first, run.shard_bytes):
        samples = (tars.sample(row, payload) for row, payload in run.read(first, last))
        files.append(tars.write_tar(run.out / f"clips-{len(files):06d}.tar", samples))
        run.note(files)
        first = last
    return files


def _folder(run: _Run) -> list[Written]:
    for row, payload in run.read(0, run.num_clips):
        run.found_clips += not folders.write_clip(run.out, row, payload)
    data = folders.write_table(run.out, run.table)
    sha256 = hashlib.sha256(data).hexdigest()
    return [
        Written(name=folders.TABLE, bytes=len(data), sha256=sha256, clips=run.num_clips),
    ]


def _lance(run: _Run) -> list[Written]:
    writer = lance.LanceWriter(run.out, run.table.column("clip_id").to_pylist())
    first = run.found_clips = writer.done
    waiting: list[bytes] = []
    waiting_bytes = 0
    for number, (row, payload) in enumerate(run.read(first, run.num_clips), first + 1):
        waiting.append(bytes(payload))
        waiting_bytes += row["length"]
        if waiting_bytes >= LANCE_BATCH_BYTES or number == run.num_clips:
            writer.append(run.table.slice(first, number - first), waiting)
            first, waiting, waiting_bytes = number, [], 0
    writer.close()
    return [Written(name=lance.FOLDER, bytes=0, sha256="", clips=run.num_clips)]


WRITERS: dict[Format, Callable[[_Run], list[Written]]] = {
    "webdataset": _webdataset,
    "folder": _folder,
    "lance": _lance,
}
OWN: dict[Format, tuple[str | re.Pattern[str], ...]] = {
    "webdataset": (_TAR,),
    "folder": (folders.FILES, folders.TABLE),
    "lance": (lance.FOLDER, lance.UNFINISHED),
}
