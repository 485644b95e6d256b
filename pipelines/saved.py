"""The checkpoints that a training in progress keeps in its output folder: which are whole, and letting old ones go."""

from pathlib import Path


def steps(folder: Path) -> list[int]:
    """Return the steps of the whole checkpoints in a training's folder, ascending."""
    return sorted(int(p.parent.name[5:]) for p in folder.glob("checkpoints/step-*/checkpoint.json"))


def forget(folder: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; each loses its index first, so no half one is ever read."""
    for step in steps(folder)[:-keep]:
        old = folder_of(folder, step)
        (old / "checkpoint.json").unlink()
        for path in old.iterdir():
            path.unlink()
        old.rmdir()


def folder_of(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step is kept."""
    return folder / "checkpoints" / f"step-{step:07d}"
