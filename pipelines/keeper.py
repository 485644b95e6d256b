"""The checkpoints of a training in progress: written beside the steps, whole or not at all, the newest whole one found again.

Every worker copies and writes its own pieces (pipelines/pieces.py): a step waits only for the copies and, where writing is
slower than training, for the writer before. Rank 0 chooses what to go on from; all check it together.
"""

import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.group import Place
from ingest.files import StorageError
from pipelines import pieces, said, saved
from pipelines.pieces_read import Kept
from pipelines.writing import Writing


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """Which checkpoints stay: the newest `newest`, and every one whose step divides by `every` (0 = none besides)."""

    newest: int = 2
    every: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.newest < 1 or self.every < 0:
            raise ValueError("newest: at least 1; every: at least 0")


class Keeper:
    """Writes and finds the checkpoints in a training's folder; errors of any writer are raised everywhere at the next call.

    Every worker must make each call at once, the first one included.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: str,
        retention: Retention,
        place: Place,
        warn: Callable[[str], object],
        regular: int = 1,
    ) -> None:
        self._folder, self._identity, self._retention = folder, identity, retention
        self._place, self._warn, self._regular = place, warn, regular
        self._writing: Writing | None = None
        if place.rank == 0:
            saved.tidy(folder)
        # nobody writes before hearing this, and by then what dead attempts left is gone
        self._attempt = said.by_first(secrets.token_hex(8), place)

    def newest(self, *, every: int = 1) -> Kept | None:
        """Return the newest whole checkpoint whose step divides by `every`, the same on every worker.

        Damaged ones are passed over with a warning; ValueError when it belongs to another recipe or version.
        """
        self.wait()
        first = self._place.rank == 0
        steps = json.loads(self._heard(saved.steps(self._folder) if first else None))
        for step in reversed(steps):
            if step % every == 0 and (found := self._whole(step)) is not None:
                return found
        return None

    def _whole(self, step: int) -> Kept | None:
        folder, first = saved.folder_of(self._folder, step), self._place.rank == 0
        verdict, told = json.loads(self._heard(_looked_at(folder) if first else None))
        if verdict == "refused":
            raise ValueError(told)
        if verdict == "unreadable":
            raise StorageError(*told)
        if verdict == "whole":
            if told["meta"]["identity"] != self._identity:
                raise ValueError(
                    f"{self._folder}: its checkpoints belong to another recipe; next: another out=, or --no-resume"
                )
            bad = self._bad(folder, told)
            if not bad:
                return Kept(folder, told)
            told = f"{folder / bad[0]} is missing or damaged: its sha256 is not the one recorded"
        if first:
            self._warn(f"checkpoint of step {step} is damaged and was passed over: {told}")
            saved.discard(self._folder, step)
        return None

    def _bad(self, folder: Path, index: Mapping[str, Any]) -> list[str]:
        """Return the damaged files, checked by all workers together; the first one's word on each is the last."""
        own = "\n".join(pieces.damaged(folder, index, self._place))
        names = "\n".join(filter(None, said.by_all(own, self._place))).split()
        if not names:
            return []
        bad, unreadable = json.loads(self._heard(_judged(folder, index, names) if self._place.rank == 0 else None))  # fmt: skip
        if unreadable:
            raise StorageError(*unreadable)
        if not bad:  # so nothing is thrown away because one machine cannot read it
            told = "whole for the first worker and not for another; next: an out= on storage that all workers share"
            raise StorageError(5, told, str(folder / names[0]))
        return bad

    def _heard(self, value: object) -> str:
        return said.by_first(json.dumps(value), self._place)

    def save(
        self,
        step: int,
        groups: pieces.Groups,
        *,
        role: str,
        spec: Mapping[str, Any],
        parents: Mapping[str, str],
        meta: Mapping[str, Any],
        own: object = None,
    ) -> float:
        """Copy this worker's pieces, begin to write them, and return the seconds that the writer before was waited for.

        What the index holds besides is rank 0's, and `own` of each worker (JSON).
        """
        started_s = time.monotonic()
        self.wait()
        waited_s = time.monotonic() - started_s
        path = saved.folder_of(self._folder, step)
        self._writing = Writing(
            saved.unfinished(path, self._attempt),
            path,
            own=pieces.cut(groups, self._place),
            told={
                "role": role,
                "spec": dict(spec),
                "parents": dict(parents),
                "meta": {"identity": self._identity, "step": step, **meta},
            },
            of_own=own,
            place=self._place,
            then=self._forget,
        )
        return waited_s

    @property
    def idle(self) -> bool:
        """Whether no checkpoint is being written."""
        return self._writing is None or not self._writing.busy

    def wait(self) -> None:
        """Wait until the last checkpoint is whole; raises what any worker's writer raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.wait()

    def _forget(self) -> None:
        stay = self._retention
        saved.forget(self._folder, keep=stay.newest, every=stay.every, regular=self._regular)


def _looked_at(folder: Path) -> tuple[str, Any]:
    try:
        return "whole", pieces.read_index(folder)
    except pieces.OtherVersion as error:
        return "refused", str(error)
    except (ValueError, FileNotFoundError) as error:
        return "damaged", str(error)
    except OSError as error:
        return "unreadable", _unreadable(error, folder)


def _judged(folder: Path, index: Mapping[str, Any], names: list[str]) -> tuple[list[str], Any]:
    """Return which of the doubtful files are damaged, or what keeps them from being read: that damages nothing."""
    try:
        return [name for name in names if not pieces.sound(folder, index, name)], None
    except OSError as error:
        return [], _unreadable(error, folder)


def _unreadable(error: OSError, folder: Path) -> tuple[int, str, str]:
    told = (
        f"{error.strerror or error} while a checkpoint was checked; next: the same command once the storage answers, or remove "
        "this checkpoint to go on from the one before"
    )
    return error.errno or 5, told, str(error.filename or folder)
