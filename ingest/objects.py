"""Where a dataset lives: a folder, or a prefix of an S3 object store. The only obstore.

Settings and credentials of a store come from the environment (AWS_ENDPOINT_URL, AWS_REGION, keys or
a role) and are never written anywhere.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import obstore
from obstore import exceptions
from obstore.store import S3Store

from ingest.files import StorageError, atomic_create, atomic_write, storage_error, sync_folder

SCHEME = "s3://"
MESSAGE_CHARS = 300
CHUNK_BYTES = 1 << 20
REFUSALS = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
RETRY_FOR = timedelta(seconds=60)

if TYPE_CHECKING:  # these exist for the type checker only
    from obstore import GetOptions, ObjectMeta


class NotAPlace(ValueError):
    """A place that no dataset can live in."""

    exit_code = 2


class Superseded(ValueError):
    """An object is no longer the one that was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A file below a root: its name, size, and when it was last changed (seconds since the epoch).

    `etag` is the store's word for the content, "" in a folder.
    """

    name: str
    bytes: int
    modified_s: float
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Root:
    """A folder (absolute path) or `s3://bucket/prefix`; names below it are relative, with slashes."""

    uri: str

    @classmethod
    def of(cls, place: "str | Path | Root") -> "Root":
        """Return the root at a path or URI; raises NotAPlace for a scheme that is not supported."""
        if isinstance(place, Root):
            return place
        text = str(place)
        if text.startswith(SCHEME):
            bucket, _, prefix = text.removeprefix(SCHEME).strip("/").partition("/")
            if not bucket or not prefix:
                raise NotAPlace(f"{text}: name a bucket and a prefix in it: s3://bucket/prefix")
            return cls(f"{SCHEME}{bucket}/{prefix}")
        if "://" in text or text.startswith("s3:"):
            raise NotAPlace(f"{text}: a folder or s3://bucket/prefix is needed")
        path = str(Path(text).expanduser().resolve())
        if "%" in path:  # the table library would take it for a quoted character
            raise NotAPlace(f"{path}: a path with '%' cannot hold a dataset; name another folder")
        return cls(path)

    @property
    def is_local(self) -> bool:
        """Whether this is a folder."""
        return not self.uri.startswith(SCHEME)

    @property
    def path(self) -> Path:
        """The folder; raises NotAPlace for an object store."""
        if not self.is_local:
            raise NotAPlace(f"{self.uri}: lies in an object store; this needs a folder")
        return Path(self.uri)

    @property
    def table_options(self) -> dict[str, str]:
        """What the table library must be told: create only what does not exist."""
        return {} if self.is_local else {"aws_conditional_put": "etag", **_http()}

    def __str__(self) -> str:
        return self.uri

    def overlaps(self, other: "Root") -> bool:
        """Whether one place is the other, or lies inside it."""
        here, there = f"{self.uri}/", f"{other.uri}/"
        return here.startswith(there) or there.startswith(here)

    def join(self, name: str) -> str:
        """Return the URI of a name below the root; raises NotAPlace for one that leads outside."""
        if not name or name[0] == "/" or ".." in name.split("/"):
            raise NotAPlace(f"{name!r}: not a name below {self.uri}")
        return f"{self.uri}/{name}"

    def read(self, name: str) -> bytes:
        """Return a whole file; raises FileNotFoundError."""
        place = self.join(name)
        with _trouble(place):
            if self.is_local:
                return Path(place).read_bytes()
            return bytes(obstore.get(_store(self.uri), name).bytes())

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, or fewer where the file ends; one request.

        Raises FileNotFoundError.
        """
        place = self.join(name)
        with _trouble(place):
            if self.is_local:
                with Path(place).open("rb") as file:
                    return os.pread(file.fileno(), length, offset)
            return bytes(obstore.get_range(_store(self.uri), name, start=offset, length=length))

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless it exists; return False, changing nothing, when it does."""
        place = self.join(name)
        if self.is_local:
            return atomic_create(Path(place), data)
        with _trouble(place, writing=True):
            try:
                obstore.put(_store(self.uri), name, data, mode="create")
            except exceptions.AlreadyExistsError:
                return False
            return True

    def replace(self, name: str, data: bytes) -> None:
        """Write a file so that readers see the old one or the new one."""
        place = self.join(name)
        if self.is_local:
            atomic_write(Path(place), data)
            return
        with _trouble(place, writing=True):
            obstore.put(_store(self.uri), name, data)

    def upload(self, name: str, path: Path) -> None:
        """Make a finished file (on disk, forced) appear under `name`; it is gone from `path` after."""
        place = self.join(name)
        with _trouble(place, writing=True):
            if not self.is_local:
                obstore.put(_store(self.uri), name, path)
                path.unlink()
                return
            final = Path(place)
            final.parent.mkdir(parents=True, exist_ok=True)
            path.replace(final)
            sync_folder(final.parent)
            sync_folder(final.parent.parent)

    def names(self, prefix: str = "") -> Iterator[Entry]:
        """Yield every file below a folder of the root, temporary ones too, in no fixed order."""
        with _trouble(self.uri):
            if self.is_local:
                yield from _walk(Path(self.uri), prefix)
                return
            for found in obstore.list(_store(self.uri), prefix or None):
                yield from map(_entry, found)

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders directly inside `prefix`, sorted."""
        with _trouble(self.uri):
            if self.is_local:
                folder = Path(self.uri) / prefix
                found = folder.iterdir() if folder.is_dir() else ()
                return sorted(p.name for p in found if p.is_dir() and not p.name.startswith("."))
            listed = obstore.list_with_delimiter(_store(self.uri), prefix)["common_prefixes"]
            return sorted(PurePosixPath(name).name for name in listed)

    def size(self, name: str) -> int:
        """Return the bytes of a file; raises FileNotFoundError."""
        place = self.join(name)
        with _trouble(place):
            return Path(place).stat().st_size if self.is_local else self.entry(name).bytes

    def entry(self, name: str) -> Entry:
        """Return what a store says about an object; raises FileNotFoundError."""
        with _trouble(self.join(name)):
            return _entry(obstore.head(_store(self.uri), name))

    def stream(
        self, name: str, *, etag: str = "", start: int = 0, length: int = 0
    ) -> Iterator[bytes]:
        """Yield an object's bytes as they come, or `length` of them from `start`.

        Raises FileNotFoundError, and Superseded when the object is not the one with `etag`.
        """
        options: GetOptions = {"if_match": etag or None}
        if length:
            options["range"] = (start, start + length)
        with _trouble(self.join(name)):
            found = obstore.get(_store(self.uri), name, options=options)
            yield from (bytes(chunk) for chunk in found.stream(min_chunk_size=CHUNK_BYTES))

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True

    def delete(self, name: str) -> None:
        """Remove a file; an absent one is fine."""
        place = self.join(name)
        try:
            with _trouble(place):
                if self.is_local:
                    Path(place).unlink(missing_ok=True)
                else:
                    obstore.delete(_store(self.uri), name)
        except FileNotFoundError:
            return

    def self_test(self) -> None:
        """Prove that a second create of one name is refused: commits rest on it.

        Raises StorageError when it is not, or when the place cannot be written.
        """
        name = f".self-test-{secrets.token_hex(8)}"
        try:
            if not self.create(name, b"1") or self.create(name, b"2") or self.read(name) != b"1":
                raise StorageError(
                    0, "does not refuse to create a file twice: commits would be lost", self.uri
                )
        finally:
            self.delete(name)


def _http() -> dict[str, str]:
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    return {"allow_http": "true"} if endpoint.startswith("http://") else {}


@lru_cache(maxsize=32)
def _store(uri: str) -> S3Store:
    return S3Store.from_url(
        uri,
        client_options={"allow_http": bool(_http())},
        retry_config={"max_retries": 8, "retry_timeout": RETRY_FOR},
    )


@contextmanager
def _trouble(place: str, *, writing: bool = False) -> Iterator[None]:
    """Tell absence (FileNotFoundError) from every other trouble (StorageError), naming the place."""
    try:
        yield
    except FileNotFoundError as error:
        if writing:  # a bucket that does not exist
            raise StorageError(2, "no such place to write to", place) from error
        raise FileNotFoundError(2, "no such file", place) from error
    except OSError as error:
        raise error if isinstance(error, StorageError) else storage_error(error, place) from error
    except exceptions.PreconditionError as error:
        raise Superseded(f"{place}: changed") from error
    except exceptions.BaseError as error:
        refused = isinstance(error, REFUSALS)
        reason = str(error).splitlines()[0][:MESSAGE_CHARS]
        raise StorageError(errno.EACCES if refused else 0, reason, place) from error


def _walk(root: Path, prefix: str) -> Iterator[Entry]:
    for parent, _folders, names in os.walk(root / prefix):
        for name in names:
            path = Path(parent) / name
            try:
                status = path.stat()
            except FileNotFoundError:  # removed meanwhile
                continue
            yield Entry(
                name=path.relative_to(root).as_posix(),
                bytes=status.st_size,
                modified_s=status.st_mtime,
            )


def _entry(meta: "ObjectMeta") -> Entry:
    return Entry(
        name=meta["path"],
        bytes=meta["size"],
        modified_s=meta["last_modified"].timestamp(),
        etag=meta["e_tag"] or "",
    )
