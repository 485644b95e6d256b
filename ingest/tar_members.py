"""The videos and pictures inside a tar, found from its headers, and what lies beside them.

WebDataset's naming: files whose names are equal up to the first dot speak of the same thing;
key.txt is the caption of key.mp4, key.cls its class, key.json says either and more. Nothing is
extracted here, and no name in a tar becomes a name on disk.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ingest.files import StorageError
from ingest.places import Facts, InStore, OnDisk, place_of
from ingest.sayings import SayingError, json_object, saying, text_of
from ingest.source import Member, Said, Source, SourceError, Wanted, suffix_of
from ingest.tar_headers import DISK_BYTES, Headers, entries

# A store answers slowly, so that headers of small members come with one request.
AHEAD_BYTES = {InStore: 1 << 18, OnDisk: DISK_BYTES}
SHEETS = ("json", "txt", "cls")
SHEET_BYTES = 1 << 20
HELD_BYTES = 8 << 20  # of sheets of one tar; others are read once more
NAME_BYTES = 4096


def members(uri: str, wanted: Wanted, said: Said) -> Iterator[Source]:
    """Yield a source for each wanted member of a tar; `said` holds for all of them.

    A tar that is none, or ends early, is a source of its own that can only fail.
    """
    place = place_of(uri)
    try:
        facts = place.facts()
    except SourceError as error:
        yield _broken(uri, Facts(bytes=0, mtime_ns=0), error.error_class, error.message)
        return
    listing = _Listing(place, facts, wanted)
    listing.read()
    for key in listing.keys.values():
        yield from listing.sources(key, said)
    if listing.problem:
        yield _broken(uri, facts, "BadTar", listing.problem)


def name_problem(name: str) -> str:
    """Return what is wrong with the name of a member, "" for a good one."""
    if len(os.fsencode(name)) > NAME_BYTES:
        return f"a name of more than {NAME_BYTES} bytes"
    parts = name.replace("\\", "/").split("/")
    return "its name leads outside" if not parts[0] or ".." in parts else ""


@dataclass(kw_only=True)
class _Key:
    """What a tar holds under one key: media with their problems, and where the sheets lie."""

    media: dict[str, Member] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    sheets: dict[str, tuple[int, int]] = field(default_factory=dict)
    problem: str = ""


class _Listing:
    """The members of one tar by key."""

    def __init__(self, place: OnDisk | InStore, facts: Facts, wanted: Wanted) -> None:
        self.keys: dict[str, _Key] = {}
        self.problem = ""
        self._place, self._facts, self._wanted = place, facts, wanted
        self._held: dict[int, bytes] = {}
        self._room = HELD_BYTES
        self._headers = Headers(place.read_at, facts.bytes, AHEAD_BYTES[type(place)])

    def read(self) -> None:
        """Go through all headers; what ends that early becomes the problem."""
        try:
            for entry in entries(self._headers):
                self._add(entry)
        except StorageError:
            raise
        except (tarfile.TarError, OSError, ValueError) as error:
            self.problem = f"not a whole tar: {error}"

    def _add(self, entry: tarfile.TarInfo) -> None:
        folder, slash, base = entry.name.rpartition("/")
        stem, _, extension = base.partition(".")
        extension = extension.lower()
        is_sheet = extension in SHEETS
        if not is_sheet and (suffix_of(base) not in self._wanted.suffixes or base.startswith(".")):
            return
        key = self.keys.setdefault(f"{folder}{slash}{stem}", _Key())
        if is_sheet:
            self._add_sheet(key, extension, entry)
            return
        key.media[entry.name] = Member(
            tar=self._place.uri,
            tar_bytes=self._facts.bytes,
            offset=entry.offset_data,
            problem=_problem(entry, known=entry.name in key.media),
        )
        key.sizes[entry.name] = entry.size

    def _add_sheet(self, key: _Key, name: str, entry: tarfile.TarInfo) -> None:
        if name in key.sheets:
            key.problem = f".{name} occurs twice beside it"
        elif not entry.isreg() or entry.issparse():
            key.problem = f".{name} beside it is a link or no plain file"
        elif entry.size > SHEET_BYTES:
            key.problem = f".{name} has {entry.size} bytes, more than {SHEET_BYTES}"
        else:
            key.sheets[name] = (entry.offset_data, entry.size)
            if entry.size <= self._room:
                self._room -= entry.size
                self._held[entry.offset_data] = self._headers.at(entry.offset_data, entry.size)

    def sources(self, key: _Key, said: Said) -> Iterator[Source]:
        """Yield the sources of a key."""
        if not key.media:
            return
        problem = key.problem
        try:
            said = self._said(key, said)
        except SayingError as error:
            problem = problem or str(error)
        for name, member in key.media.items():
            spoilt = problem and not member.problem
            yield Source(
                uri=f"{self._place.uri}#{name}",
                bytes=key.sizes[name],
                mtime_ns=self._facts.mtime_ns,
                etag=self._facts.etag,
                said=said,
                member=replace(member, problem=("BadSheet", problem)) if spoilt else member,
            )

    def _said(self, key: _Key, outside: Said) -> Said:
        values = json_object(self._text("json", key)) if "json" in key.sheets else {}
        if "txt" in key.sheets and not text_of(values, "caption"):
            values["caption"] = self._text("txt", key)
        if "cls" in key.sheets and values.get("label") in (None, ""):
            values["label"] = self._text("cls", key)
        said = saying(values)
        return replace(said, label=said.label or outside.label)

    def _text(self, name: str, key: _Key) -> str:
        offset, size = key.sheets[name]
        try:
            data = self._held.pop(offset, None) or self._headers.at(offset, size)
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SayingError(f".{name} is not UTF-8") from error
        except StorageError:
            raise
        except OSError as error:
            raise SayingError(f".{name} cannot be read: {error.strerror or error}") from error


def _problem(entry: tarfile.TarInfo, *, known: bool) -> tuple[str, str] | None:
    wrong = name_problem(entry.name)
    if wrong:
        return "BadName", wrong
    if known:
        return "Duplicate", "its name occurs twice in the tar"
    if not entry.isreg() or entry.issparse():
        return "NotAFile", "a link or no plain file in the tar"
    return None


def _broken(uri: str, facts: Facts, error_class: str, message: str) -> Source:
    return Source(
        uri=uri,
        bytes=facts.bytes,
        mtime_ns=facts.mtime_ns,
        etag=facts.etag,
        member=Member(tar=uri, tar_bytes=facts.bytes, problem=(error_class, message)),
    )
