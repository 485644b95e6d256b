"""One checkpoint on its way: each worker's thread writes that worker's files, the first one's makes them a checkpoint.

Threads meet in the folder alone: a collective beside those of the training would mix with them. The workers' own threads say
in `wait` whether all went well, so that an error anywhere, on a full disk too, is an error everywhere.
"""

import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.group import Place
from ingest.files import StorageError, storage_error, sync_folder
from pipelines import pieces, said

POLL_S = 0.05
# How long rank 0 waits for the files of the others, and how long once they must be there or nobody is left to write them.
# A network file system may show a new file after a minute only.
OTHERS_S, LAST_S = 3600.0, 150.0


class Writing:
    """Writes `own` into the folder `part`, which becomes `path` when every worker has; begins at once."""

    def __init__(
        self,
        part: Path,
        path: Path,
        *,
        own: pieces.Pieces,
        told: Mapping[str, Any],
        of_own: object,
        place: Place,
        then: Callable[[], object],
    ) -> None:
        self._part, self._path, self._place, self._then = part, path, place, then
        self._owner = threading.current_thread()
        self._written, self._all_written, self._given_up = (threading.Event() for _ in range(3))
        self._failed: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, args=(own, told, of_own), name="checkpoint"
        )
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether this worker's thread still writes; that of rank 0 ends when the checkpoint is whole."""
        return self._thread.is_alive()

    def wait(self) -> None:
        """Wait until the checkpoint is whole; raises on every worker what went wrong on one. All must call it at once."""
        self._written.wait()
        try:
            self._agree()
            self._all_written.set()
            self._thread.join()
            self._agree()
        except BaseException:
            self._given_up.set()
            self._thread.join()
            if self._place.rank == 0:
                shutil.rmtree(self._part, ignore_errors=True)
            raise

    def _agree(self) -> None:
        failed = self._failed  # looked at once: the thread may fail after this was said
        told = said.by_all(_words(failed), self._place)
        if failed is not None:
            raise failed
        for rank, words in enumerate(told):
            if words:
                raise _error(rank, words)

    def _run(self, own: pieces.Pieces, told: Mapping[str, Any], of_own: object) -> None:
        try:
            pieces.write(self._part, own, self._place.rank, of_own)
            self._written.set()
            if self._place.rank == 0:
                pieces.finish(self._part, own, told, self._notes())
                self._become()
                self._then()
        except BaseException as error:  # noqa: BLE001  raised again in the training's own thread
            self._failed = error
        finally:
            self._written.set()

    def _notes(self) -> list[dict[str, Any]]:
        """Return all workers' notes, waiting for them no longer than anybody can still write one."""
        names = [pieces.note_name(rank) for rank in range(self._place.world_size)]
        last_s = time.monotonic() + OTHERS_S
        while missing := [name for name in names if not _there(self._part / name)]:
            now_s = time.monotonic()
            if self._all_written.is_set() or not self._owner.is_alive():
                last_s = min(last_s, now_s + LAST_S)
            if now_s > last_s or self._given_up.wait(POLL_S):
                raise self._missing(missing)
        return [json.loads((self._part / name).read_text()) for name in names]

    def _missing(self, names: list[str]) -> Exception:
        if self._all_written.is_set():
            told = (
                "another worker wrote its part of a checkpoint, and the first worker cannot see it; "
                "next: an out= on storage that all workers share"
            )
            return StorageError(2, told, str(self._part / names[0]))
        return TimeoutError(f"{self._part}: no {names[0]}: a worker did not write its part")

    def _become(self) -> None:
        """Give the folder its name, unless a whole checkpoint has it: that of a continuation, with the same bits."""
        try:
            sync_folder(self._part)
            if (self._path / pieces.INDEX).exists():
                shutil.rmtree(self._part)
                return
            shutil.rmtree(self._path, ignore_errors=True)  # half discarded
            self._part.replace(self._path)
            sync_folder(self._path.parent)
        except OSError as error:
            raise storage_error(error, self._path) from error


def _there(path: Path) -> bool:
    """Open it: a listing may be an old one, kept by a network file system."""
    try:
        path.open("rb").close()
    except FileNotFoundError:
        return False
    return True


def _words(error: BaseException | None) -> str:
    if error is None:
        return ""
    if isinstance(error, StorageError):
        return json.dumps([error.errno, error.strerror, error.filename])
    return json.dumps([f"{type(error).__name__}: {error}"])


def _error(rank: int, words: str) -> Exception:
    told = json.loads(words)
    if len(told) == 3:
        return StorageError(*told)
    return RuntimeError(f"worker {rank} could not write its part of a checkpoint: {told[0]}")
