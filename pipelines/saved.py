"""The checkpoints that a training in progress keeps in its output folder: which are whole, and letting old ones go."""

import contextlib
import shutil
from pathlib import Path

from ingest.files import TEMPORARY


def steps(folder: Path) -> list[int]:
    """Return the steps of the whole checkpoints in a training's folder, ascending."""
    return sorted(int(p.parent.name[5:]) for p in folder.glob("checkpoints/step-*/checkpoint.json"))


def forget(folder: Path, *, keep: int, every: int = 0, regular: int = 1) -> None:
    """Remove all but the newest `keep` checkpoints, those whose step divides by `every`, and the newest of the regular ones.

    Weights go back to regular ones only, whose steps divide by `regular`: a stop's or a leaving machine's must not
    drive the last of them out.
    """
    there = steps(folder)
    last = max((step for step in there if step % regular == 0), default=None)
    for step in there[:-keep]:
        if step != last and (not every or step % every):
            discard(folder, step)


def discard(folder: Path, step: int) -> None:
    """Remove one checkpoint; it loses its index first, so that no half one is ever read."""
    old = folder_of(folder, step)
    with contextlib.suppress(FileNotFoundError):
        (old / "checkpoint.json").unlink()
    shutil.rmtree(old, ignore_errors=True)


def folder_of(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step is kept."""
    return folder / "checkpoints" / f"step-{step:07d}"


def unfinished(path: Path, attempt: str) -> Path:
    """Return where all workers of an attempt write what becomes the checkpoint `path`."""
    return path.with_name(f".{path.name}{TEMPORARY}{attempt}")


def tidy(folder: Path) -> None:
    """Remove what attempts that are dead left half written or half discarded."""
    for left in (folder / "checkpoints").glob(f".step-*{TEMPORARY}*"):
        shutil.rmtree(left, ignore_errors=True)
    for left in (folder / "checkpoints").glob("step-[0-9]*"):
        if not (left / "checkpoint.json").exists():
            shutil.rmtree(left, ignore_errors=True)
