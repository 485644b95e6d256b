"""Files that appear whole or not at all: written under another name, forced to disk, renamed."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = ".writing-"


class StorageError(OSError):
    """The place that is written to fails (full, read-only, gone, refused): no fault of any source."""

    fatal = True


def storage_error(error: OSError, path: Path | str) -> StorageError:
    """Return `error` as a StorageError that names the path."""
    return StorageError(error.errno or 0, error.strerror or str(error), str(path))


def sync_folder(folder: Path) -> None:
    """Make names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(path: Path) -> Path:
    return path.parent / f".{path.name[:100]}{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"


@contextmanager
def _written(path: Path, data: bytes) -> Iterator[Path]:
    """Give a temporary file beside `path` that holds `data` on disk; removed if it still exists."""
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        with suppress(OSError):  # renamed, never there, or the disk is gone
            temporary.unlink()


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old one or the new one; raises StorageError."""
    with _written(path, data) as temporary:
        temporary.replace(path)


def atomic_create(path: Path, data: bytes) -> bool:
    """Write a file that must not exist yet; return False, changing nothing, when it does."""
    with _written(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        return True


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
