"""Copies of what lies elsewhere, in a scratch folder: rooms of one's own, and copies that parts share.

Who uses a place holds the lock in it, which the kernel lets go of when its holder is killed; what
nobody holds is cleared by the next comer.
"""

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from ingest.files import storage_error

ROOM, SHARED = "kinoray-source-", "kinoray-shared-"
LOCK, PARTIAL, WHOLE, READ = "lock", "partial", "source", "read-"
KEPT_S, KEPT_BYTES = 3600.0, 64 << 30  # of copies that nobody reads now; and no more than is free


@contextmanager
def room(scratch: Path) -> Iterator[Path]:
    """Give a folder of one's own in `scratch` that vanishes after; raises StorageError."""
    folder = scratch / f"{ROOM}{secrets.token_hex(8)}"
    unlocked = scratch / f".{folder.name}"
    with ExitStack() as held:
        try:
            unlocked.mkdir(parents=True)
            held.callback(shutil.rmtree, unlocked, ignore_errors=True)
            lock = held.enter_context((unlocked / LOCK).open("xb"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            unlocked.rename(folder)
            held.callback(shutil.rmtree, folder, ignore_errors=True)
            _clear(scratch)
        except OSError as error:
            raise storage_error(error, folder) from error
        yield folder


@contextmanager
def shared(
    path: Path, num_bytes: int, fetch: Callable[[Path], None], *, reading: tuple[int, int]
) -> Iterator[None]:
    """Have at `path` a file that `fetch` writes, once for all who read it; see shared_path.

    `reading` is which of how many this is. The file goes with the last of them, or for the next comer
    when it has lain idle for KEPT_S or takes too much room. Raises StorageError, and what `fetch` raises.
    """
    folder = path.parent
    with ExitStack() as held:
        try:
            lock = held.enter_context(_entered(folder))
            _clear(folder.parent, num_bytes)
        except OSError as error:
            raise storage_error(error, folder) from error
        try:
            while not path.exists():
                fcntl.flock(lock, fcntl.LOCK_EX)  # others wait for us, or we for who was quicker
                if _is_there(folder, lock) and not path.exists():
                    partial = folder / PARTIAL
                    partial.unlink(missing_ok=True)
                    fetch(partial)
                    partial.rename(path)
                fcntl.flock(lock, fcntl.LOCK_SH)  # between the two it may have been cleared
                if not _is_there(folder, lock):
                    lock = held.enter_context(_entered(folder))
            yield
        finally:
            _leave(path, lock, reading)


def shared_path(scratch: Path, digest: str, suffix: str) -> Path:
    """Return where the shared copy of what has a digest lies."""
    return scratch / f"{SHARED}{digest}" / f"{WHOLE}{suffix}"


def _entered(folder: Path) -> IO[bytes]:
    """Return the lock of a folder, which is made if need be, shared with other readers."""
    while True:
        with suppress(FileNotFoundError):  # it was cleared just now
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / LOCK).open("ab")
            fcntl.flock(lock, fcntl.LOCK_SH)
            if _is_there(folder, lock):
                os.utime(folder / LOCK)
                return lock
            lock.close()


def _is_there(folder: Path, lock: IO[bytes]) -> bool:
    with suppress(FileNotFoundError):
        return (folder / LOCK).stat().st_ino == os.fstat(lock.fileno()).st_ino
    return False


def _leave(path: Path, lock: IO[bytes], reading: tuple[int, int]) -> None:
    number, count = reading
    with suppress(OSError):  # it is left to the next comer
        (path.parent / f"{READ}{number}").touch()
        os.utime(path.parent / LOCK)
        last = all((path.parent / f"{READ}{n}").exists() for n in range(count))
        if last or not path.exists():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_there(path.parent, lock):
                _remove(path.parent)


def _remove(folder: Path) -> None:
    gone = folder.with_name(f"{ROOM}{secrets.token_hex(8)}")
    folder.rename(gone)  # at once, so that nobody enters what is half gone
    shutil.rmtree(gone, ignore_errors=True)


def _clear(scratch: Path, wanted: int = 0) -> None:
    """Remove what the killed left, and idle copies: the old ones, and more until `wanted` bytes fit."""
    for path in scratch.glob(f"{ROOM}*"):
        with suppress(OSError), (path / LOCK).open("rb") as lock:  # held, or just removed
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
    idle: list[tuple[float, int, Path]] = []
    for folder in scratch.glob(f"{SHARED}*"):
        with suppress(OSError), _unread(folder):
            idle_s = time.time() - (folder / LOCK).stat().st_mtime
            whole = next(folder.glob(f"{WHOLE}*"), None)
            if whole is None or idle_s > KEPT_S:
                _remove(folder)
            else:
                idle.append((-idle_s, whole.stat().st_size, folder))
    over = sum(size for _, size, _ in idle)
    over -= min(KEPT_BYTES, shutil.disk_usage(scratch).free - wanted)
    for _, size, folder in sorted(idle):
        if over > 0:
            with suppress(OSError), _unread(folder):
                _remove(folder)
                over -= size


@contextmanager
def _unread(folder: Path) -> Iterator[None]:
    """Hold a folder that nobody reads; raises OSError for another."""
    with suppress(OSError):
        folder.rmdir()  # whoever made it was killed before it had a lock
    with (folder / LOCK).open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_there(folder, lock):
            raise BlockingIOError(0, "just cleared", str(folder))
        yield
