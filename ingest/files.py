"""Files that appear whole or not at all: written under another name, forced to disk, renamed."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ingest.shards import storage_error, sync_folder


def _beside(path: Path) -> Path:
    return path.parent / f".{path.name[:100]}.writing-{os.getpid()}-{secrets.token_hex(4)}"


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old one or the new one; raises StorageError."""
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # never there, or the disk is gone: the first error is the one
            temporary.unlink()
        raise storage_error(error, path) from error


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block ends well, and vanishes if not.

    `path` must not exist or must be empty by then; raises StorageError otherwise.
    """
    temporary = _beside(path)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        yield temporary
        _sync_tree(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for parent, _folders, names in os.walk(folder):
        for name in names:
            handle = os.open(Path(parent) / name, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(parent))
