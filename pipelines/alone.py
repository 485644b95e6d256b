"""One run at a time in an output folder, and nothing in it that a killed one left half written.

A lock tells, not a process id: ids are reused, and differ between machines that share the folder. Whoever holds it
knows that everything with a temporary name belongs to nobody.
"""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from ingest.files import TEMPORARY
from pipelines import saved
from pipelines.output import WrongInput


@contextlib.contextmanager
def alone(
    folder: Path,
    *,
    scratch: Path | None = None,
    temporary: Sequence[str] = ("", "checkpoints", "samples"),
) -> Iterator[int]:
    """Hold a claimed folder for the time of a with block; give the bytes that were cleared away.

    What is cleared: files that were being written, in the folder and those of its folders that match `temporary`,
    checkpoints without an index, `scratch`. Raises WrongInput when another run holds the folder. Where the file system has
    no locks nothing is held, and nothing cleared.
    """
    # the kernel gives the lock up, however this process ends
    with (folder / "recipe.json").open("r+b") as lock:
        if not _lock(lock, folder):
            yield 0
            return
        yield sum(map(_removed, [*_abandoned(folder, temporary), *([scratch] if scratch else [])]))


def refuse_running(folder: Path) -> None:
    """Raise WrongInput when a run holds the folder: moved aside, it would go on writing where the next one works."""
    if (folder / "recipe.json").exists():
        with (folder / "recipe.json").open("r+b") as lock:
            _lock(lock, folder)


def _lock(lock: IO[bytes], folder: Path) -> bool:
    """Take the lock until the file is closed, and return whether the file system has locks; WrongInput when it is held."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WrongInput(
            f"{folder}: another run is at work in it; next: wait for its end, or choose another folder with out=..."
        ) from None
    except OSError:
        return False
    return True


def _abandoned(folder: Path, temporary: Sequence[str]) -> list[Path]:
    whole = {saved.folder_of(folder, step) for step in saved.steps(folder)}
    half = {path for path in folder.glob("checkpoints/step-*") if path not in whole}
    # not in what lies deeper, which may be the output of another run; and a claim is written before the lock is held
    places = [place for name in temporary for place in (folder.glob(name) if name else [folder])]
    left = {p for place in places for p in place.glob(f".*{TEMPORARY}*")}
    return sorted({*left.difference(folder.glob(f".recipe.json{TEMPORARY}*")), *half})


def _removed(path: Path) -> int:
    """Remove a file or folder and return the bytes that it had."""
    if not path.is_dir():
        size = path.stat().st_size if path.exists() else 0
        path.unlink(missing_ok=True)
        return size
    size = sum(inner.lstat().st_size for inner in path.rglob("*") if inner.is_file())
    shutil.rmtree(path, ignore_errors=True)
    return size
