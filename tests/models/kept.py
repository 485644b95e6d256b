"""Weights that tests train, kept outside the repository by a digest of what made them."""

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

CACHE = Path.home() / ".cache" / "kinoray" / "tests"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, made where it is missing: two test workers must not train the same model at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def kept(
    name: str, files: Sequence[Path], make: Callable[[], dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Return what `make` returns; made once a machine, until one of `files` or torch changes."""
    folder = _place(name, files)
    with locked(folder):
        path = folder / "weights.safetensors"
        if not path.exists():
            part = folder / "part"
            save_file({k: v.detach().contiguous() for k, v in make().items()}, part)
            part.rename(path)
    return load_file(path)


def kept_folder(name: str, files: Sequence[Path], make: Callable[[Path], object]) -> Path:
    """Return the folder that `make` wrote at the path it was given; like `kept`, and whole or not there."""
    folder = _place(name, files)
    with locked(folder):
        part, made = folder / "part", folder / "made"
        if not made.exists():
            shutil.rmtree(part, ignore_errors=True)
            make(part)
            part.rename(made)
    return made


def _place(name: str, files: Sequence[Path]) -> Path:
    whole = hashlib.sha256(torch.__version__.encode())
    for path in sorted(files):
        whole.update(path.read_bytes())
    return CACHE / f"{name}-{whole.hexdigest()[:16]}"
