"""Finding what to curate behind folders, globs, manifests, object stores and tars, and naming it.

Every input gets a fate, so that none is dropped here: what looks like a source but cannot be one is
listed too.
"""

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ingest import buckets, listing, manifests, msrvtt
from ingest.content import Local, check_readable, check_unchanged, fingerprint, local
from ingest.objects import SCHEME
from ingest.source import (
    Layout,
    Said,
    Source,
    SourceError,
    Spoken,
    Wanted,
    suffix_of,
)

# One door to sources, for those who only use them.
__all__ = [
    "Layout",
    "Local",
    "Said",
    "Source",
    "SourceError",
    "Spoken",
    "check_readable",
    "check_unchanged",
    "fingerprint",
    "list_sources",
    "local",
    "sha256_file",
]

PLAIN = Layout()


def list_sources(
    patterns: Sequence[str], *, pictures: bool = False, layout: Layout = PLAIN
) -> list[Source]:
    """List the sources behind `patterns`, sorted by path or URI, each once (see Source.key).

    A pattern is a folder, a file, a glob, or s3://bucket/prefix in the same three ways; *.tar is
    looked into; *.csv, *.tsv, *.jsonl, *.parquet (manifests) and *.json (MSR-VTT's) are read. With
    `pictures`, for a contract of stills, pictures in folders and tars are listed too.

    Raises FileNotFoundError naming the first pattern that matches nothing, ValueError for a
    malformed manifest or when two patterns contradict each other about a source, and StorageError
    when a store is out of reach.
    """
    wanted = Wanted.of(layout, pictures=pictures)
    found: dict[str, Source] = {}
    for pattern in patterns:
        some = False
        for source in _matches(pattern, wanted):
            some = True
            before = found.get(source.key)
            found[source.key] = source if before is None else _joined(before, source)
        if not some:
            what = "video or picture" if pictures else "video"
            raise FileNotFoundError(
                f"source {pattern!r}: no {what} found; check the path, or name a file explicitly"
            )
    for source in list(found.values()):
        member = found.get(source.uri)
        # No file of that name, but words on a member.
        if member and source.key != source.uri and not (source.bytes or source.mtime_ns):
            found[source.uri] = _joined(member, found.pop(source.key))
    return [found[key] for key in sorted(found)]


def _matches(pattern: str, wanted: Wanted) -> Iterator[Source]:
    in_store = pattern.startswith(SCHEME)
    if not in_store and "://" in pattern and not os.path.lexists(pattern):
        raise ValueError(f"source {pattern!r}: a path or {SCHEME}bucket/prefix is wanted")
    suffix = suffix_of(pattern)
    if suffix in manifests.SUFFIXES or suffix == msrvtt.SUFFIX:
        places = [pattern] if in_store else _files(pattern)
        if places:
            for place in places:
                yield from _manifest(place, suffix, wanted)
            return
    yield from (buckets if in_store else listing).matches(pattern, wanted)


def _files(pattern: str) -> list[str]:
    """Return the manifests behind a pattern; none where folders are called like that."""
    path = os.path.abspath(Path(pattern).expanduser())  # noqa: PTH100 - resolve() would follow links
    found = [path] if os.path.lexists(path) else sorted(glob.glob(path, recursive=True))  # noqa: PTH207 - Path.glob refuses absolute patterns
    return [name for name in found if not Path(name).is_dir()]


def _manifest(place: str, suffix: str, wanted: Wanted) -> Iterator[Source]:
    if suffix == msrvtt.SUFFIX:
        yield from msrvtt.sources(place, lambda folder: _matches(folder, wanted))
        return
    said = manifests.read(place, suffix)
    stored = [uri for uri in said if uri.startswith(SCHEME)]
    yield from buckets.named(stored, [said[uri] for uri in stored], wanted)
    for uri, words in said.items():
        if not uri.startswith(SCHEME):
            yield listing.named(uri, wanted, words)


def _joined(one: Source, other: Source) -> Source:
    """Return a source that was found twice, with all that is said of it."""
    if other.said in (Said(), one.said):
        return one
    try:
        said = one.said.joined(other.said)
    except ValueError as error:
        raise ValueError(f"source {one.printable_uri}: {error}") from error
    return replace(one, said=said)


def sha256_file(path: str | Path) -> str:
    """Return the hex sha256 of a file, read as a stream; raises OSError."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
