"""Sources in object stores: prefixes, single objects and globs, listed page by page."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase

from ingest import frames
from ingest.objects import Entry
from ingest.places import Facts, split
from ingest.source import TAR_SUFFIX, WILD, Said, Source, Wanted, fixed_part, suffix_of
from ingest.tar_members import members

REQUESTS = 32  # at a time: a store answers each within milliseconds, but answers many


def matches(pattern: str, wanted: Wanted) -> Iterator[Source]:
    """Yield what is behind s3://bucket, a prefix, an object or a glob; nothing when nothing is.

    Raises ValueError without a bucket, StorageError when the store is out of reach.
    """
    root, key = split(pattern)
    key = key.strip("/")
    entry = _entry(f"{root.uri}/{key}") if key else None
    if entry is not None:
        # A name may end like a tar, or like nothing that we know: it was named, so it is wanted.
        yield from _Listed(root.uri, key.rpartition("/")[0], wanted).sources([entry], named=True)
        return
    if WILD & set(key):
        fixed = fixed_part(key)
        listed = _Listed(root.uri, fixed, wanted, parts=key.split("/"))
        yield from listed.sources(root.names(fixed))
    else:
        yield from _Listed(root.uri, key, wanted).sources(root.names(key))


def named(uris: Sequence[str], said: Sequence[Said], wanted: Wanted) -> Iterator[Source]:
    """Yield the source at each URI that somebody named, in order, whatever is there."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        for uri, entry, words in zip(uris, pool.map(_entry, uris), said, strict=True):
            if entry is not None:
                yield _source(uri, entry, words)
            elif wanted.layout.rate and suffix_of(uri) not in wanted.suffixes:
                listed = frames.list_frames(uri)
                yield frames.source_of(uri, listed, wanted.layout.rate, words)
            else:  # its fate will say that nothing is there
                yield Source(uri=uri, bytes=0, mtime_ns=0, said=words)


def _entry(uri: str) -> Entry | None:
    root, key = split(uri)
    try:
        return root.entry(key)
    except (FileNotFoundError, ValueError):  # the library takes some keys for no path
        return None


def _source(uri: str, entry: Entry, said: Said) -> Source:
    facts = Facts.of(entry)
    return Source(uri=uri, bytes=facts.bytes, mtime_ns=facts.mtime_ns, etag=facts.etag, said=said)


class _Listed:
    """What of a listing below `root` is wanted: all of it, or what fits the parts of a glob."""

    def __init__(self, bucket: str, root: str, wanted: Wanted, parts: Sequence[str] = ()) -> None:
        self._bucket, self._wanted, self._parts = bucket, wanted, parts
        self._below = f"{root}/" if root else ""
        self._tars: list[str] = []
        self._pictures: dict[str, list[Entry]] = defaultdict(list)

    def sources(self, entries: Iterable[Entry], *, named: bool = False) -> Iterator[Source]:
        """Yield the sources among objects: files, then what tars hold, then folders of frames."""
        for entry in entries:
            if named or self._fits(entry.name):
                yield from self._whole(entry)
            elif self._inside(entry.name):
                yield from self._found(entry)
        with ThreadPoolExecutor(frames.DOWNLOADS) as pool:
            for found in pool.map(self._members, self._tars):
                yield from found
        rate = self._wanted.layout.rate
        for folder, pictures in self._pictures.items() if rate else ():
            listed = frames.of_objects(pictures, f"{folder}/" if folder else "")
            uri = f"{self._bucket}/{folder}".rstrip("/")
            if listed and rate:
                yield frames.source_of(uri, listed, rate, self._said(folder))

    def _whole(self, entry: Entry) -> Iterator[Source]:
        if suffix_of(entry.name) == TAR_SUFFIX:
            self._tars.append(entry.name)
        else:
            yield _source(f"{self._bucket}/{entry.name}", entry, self._said(entry.name))

    def _found(self, entry: Entry) -> Iterator[Source]:
        suffix = suffix_of(entry.name)
        if suffix in self._wanted.suffixes or suffix == TAR_SUFFIX:
            yield from self._whole(entry)
        elif self._wanted.layout.rate and frames.is_frame(entry.name.rpartition("/")[2]):
            self._pictures[entry.name.rpartition("/")[0]].append(entry)

    def _members(self, name: str) -> list[Source]:
        return list(members(f"{self._bucket}/{name}", self._wanted, self._said(name)))

    def _fits(self, name: str) -> bool:
        return bool(self._parts) and not self._hidden(name) and _fits(name.split("/"), self._parts)

    def _inside(self, name: str) -> bool:
        if self._hidden(name):
            return False
        names = name.split("/")
        return not self._parts or any(
            _fits(names[:count], self._parts) for count in range(1, len(names))
        )

    def _hidden(self, name: str) -> bool:
        return any(part.startswith(".") for part in name.removeprefix(self._below).split("/"))

    def _said(self, name: str) -> Said:
        return self._wanted.said(name.removeprefix(self._below))


def _fits(names: Sequence[str], parts: Sequence[str]) -> bool:
    if not parts:
        return not names
    if parts[0] == "**":
        return any(_fits(names[skipped:], parts[1:]) for skipped in range(len(names) + 1))
    fits = bool(names) and fnmatchcase(names[0], parts[0])
    return fits and _fits(names[1:], parts[1:])
