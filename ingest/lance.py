"""Lance datasets: one table with a blob column. The only place that uses Lance, an optional extra.

The library is imported when it is needed: it costs most of a second, and it may be absent.
"""

import importlib
import importlib.util
import json
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from ingest import passport
from ingest.clip import digest_of
from ingest.files import storage_error, sync_folder
from ingest.offers import MAX_PAYLOAD_BYTES, Malformed, Offered, json_object, written_at

FOLDER = "clips.lance"
UNFINISHED = ".clips.lance.unfinished"
PAYLOAD = "payload"
PAYLOADS = (PAYLOAD, "video", "clip", "image", "data", "bytes")
FORMAT = "2.2"  # the first whose blobs lie beside the columns


class LanceMissing(RuntimeError):
    """The optional library is not installed."""

    exit_code = 2


def library() -> Any:
    """Return the library; raises LanceMissing."""
    if importlib.util.find_spec("lance") is None:
        raise LanceMissing("the Lance format needs an extra: pip install 'kinoray[lance]'")
    return importlib.import_module("lance")


class LanceWriter:
    """Writes one dataset batch by batch below `folder`; a second one goes on where a first was killed.

    `ids` are the clip ids in their order. Raises StorageError.
    """

    def __init__(self, folder: Path, ids: list[str]) -> None:
        self._lance, self._folder = library(), folder
        self._path = folder / UNFINISHED
        self.done = self._already(ids)

    def _already(self, ids: list[str]) -> int:
        named = self._folder / FOLDER
        if named.exists():  # killed when only the last word was missing
            named.replace(self._path)
        if not self._path.exists():
            return 0
        try:
            there = self._lance.dataset(str(self._path)).to_table(columns=["clip_id"])
            found = there.column("clip_id").to_pylist()
        except (OSError, ValueError):  # killed before its first version was whole
            found = [""]
        if found != ids[: len(found)]:
            shutil.rmtree(self._path)
            return 0
        return len(found)

    def append(self, passports: pa.Table, payloads: list[bytes]) -> None:
        """Add clips, in one version."""
        schema = pa.schema([*passport.schema(), self._lance.blob_field(PAYLOAD, nullable=False)])
        columns = [passports.column(name) for name in passport.schema().names]
        table = pa.table([*columns, self._lance.blob_array(payloads)], schema=schema)
        mode = "append" if self._path.exists() else "create"
        try:
            self._lance.write_dataset(
                table, str(self._path), mode=mode, data_storage_version=FORMAT
            )
        except OSError as error:
            raise storage_error(error, self._folder / FOLDER) from error

    def close(self) -> None:
        """Give the dataset its name; what killed runs left half written goes."""
        try:
            if self.done:
                data = self._lance.dataset(str(self._path))
                data.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
            self._path.replace(self._folder / FOLDER)
            sync_folder(self._folder)
        except OSError as error:
            raise storage_error(error, self._folder / FOLDER) from error


class LancePart:
    """A Lance dataset to import: its rows in order."""

    def __init__(self, path: Path) -> None:
        self.name, self.problem = path.name, ""
        self.at = written_at(path)
        self._data = library().dataset(str(path))
        # Files are written once, under names that are never used again.
        files = [f.path for part in self._data.get_fragments() for f in part.data_files()]
        self.sha256 = digest_of(files)
        names = self._data.schema.names
        self._payload = next((name for name in PAYLOADS if name in names), "")
        if not self._payload:
            raise ValueError(f"{path}: no column of payloads ({', '.join(PAYLOADS)})")
        self._sheets: list[str] = []
        self.offers: list[Offered] = []
        self._is_blob = self._read([name for name in names if name != self._payload])

    def _read(self, names: list[str]) -> bool:
        kind = self._data.scanner(columns=[self._payload], limit=1).to_table().schema.field(0).type
        is_blob = pa.types.is_struct(kind)
        if not is_blob and not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise ValueError(f"{self.name}: column {self._payload} holds {kind}, not bytes")
        wanted = [*names, self._payload] if is_blob else names
        for batch in self._data.to_batches(columns=wanted or None):
            for row in batch.to_pylist():
                described = row.pop(self._payload, None) if is_blob else {}
                self._offer(row, described)
        return is_blob

    def _offer(self, row: dict[str, Any], described: dict[str, Any] | None) -> None:
        problem = "" if described is not None else "no payload"
        if described and described.get("blob_uri"):
            problem = "its payload lies elsewhere"  # any file of this machine, or any address
        number, size = len(self.offers), int((described or {}).get("size") or 0)
        self._sheets.append(json.dumps(row, default=str))
        name = f"{self.name}/{number}"
        self.offers.append(Offered(name=name, at=number, length=size, problem=problem))

    def sheet(self, offered: Offered) -> dict[str, Any]:
        """Return the row about a clip without its payload; raises Malformed."""
        return json_object(self._sheets[offered.at])

    def payload(self, offered: Offered) -> bytes:
        """Return the bytes of a clip's payload; raises Malformed."""
        if offered.length > MAX_PAYLOAD_BYTES:
            raise Malformed(f"{offered.length} bytes")
        if self._is_blob:
            data = self._data.read_blobs(self._payload, indices=[offered.at])[0][1]
        else:
            taken = self._data.take([offered.at], columns=[self._payload])
            data = taken.column(0)[0].as_py()
        if not data:
            raise Malformed("no payload")
        return data
