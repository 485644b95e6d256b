"""Naming versions of a dataset, and going back to one."""

from collections.abc import Mapping
from dataclasses import dataclass

from ingest import refs, upkeep
from ingest.moves import NAMING, shards_of
from ingest.objects import Root
from ingest.refs import NoSuchVersion, Place, Tag
from ingest.repack import DATA
from ingest.store import Dataset, ReadOnly, now
from ingest.tables import NotATable, Table
from ingest.takedown import Taken, tells

SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """The version gone back to, and the tables that said something else before."""

    at: str
    tables: tuple[str, ...]


def tag(dataset: Dataset, name: str) -> Tag:
    """Name what this dataset says, at the version that it was opened at; tags do not move.

    What is named is kept by `collect`. Raises TagTaken, NoSuchVersion for a name that cannot be or
    a version whose files are gone.
    """
    refs.check_name(name)
    dataset.refresh()
    found = {key: dataset.table(key) for key in dataset.versions() if key != refs.LOG}
    places = {k: Place(path=t.name, version=t.version) for k, t in found.items() if t is not None}
    # Exactly these versions are summed up, whoever commits meanwhile.
    digest = Dataset(dataset.root, places).digest()
    made = Tag(name=name, at=now(), digest=digest, tables=places)
    refs.write_tag(dataset.root, made)
    try:
        _opened(dataset.root, name, places)
    except NoSuchVersion:  # taken down or collected before the tag could keep it
        refs.remove_tag(dataset.root, name)
        raise
    dataset.log_operation("tag", {"name": name, "digest": digest, "tables": _plain(places)})
    return made


def untag(dataset: Dataset, name: str) -> None:
    """Remove a tag; raises NoSuchVersion. What only it named may be collected from then on."""
    refs.remove_tag(dataset.root, name)
    for entry in list(dataset.root.names(f"{refs.TAGS}/{name}")):  # tables that a takedown made
        dataset.root.delete(entry.name)
    dataset.log_operation("untag", {"name": name})


def restore(dataset: Dataset, at: str, *, dry_run: bool = False) -> Restored:
    """Make every table what it was at a tag or version; annotations that came later become empty.

    It is a new version: nothing is deleted, and one can go back again. One that died is repeated.
    Raises NoSuchVersion, changing nothing, when files or shards of that version are gone.
    """
    if not dataset.is_head:
        raise ReadOnly(f"{dataset.root}: an old version is read-only; open it without `at`")
    if not at:
        raise NoSuchVersion(f"{dataset.root}: name a tag or a version to go back to")
    dataset.refresh()
    old = _opened(dataset.root, at, refs.resolve(dataset.root, at))
    _check(dataset, at, old)
    names = [name for name in dataset.versions() if name not in (refs.LEDGER, refs.LOG)]
    changed = []
    for name in (*names, refs.LEDGER):  # the ledger last: its rows never lack what is said of them
        table = dataset.table(name)
        if table is not None and _differs(table, old.get(name)):
            changed.append(name)
            if not dry_run:
                _go_back(table, old.get(name))
    if changed and not dry_run:
        dataset.log_operation("restore", {"at": at, "tables": changed})
    return Restored(at=at, tables=tuple(changed))


def _opened(root: Root, at: str, places: Mapping[str, Place]) -> dict[str, Table]:
    """Return the tables of a version; raises NoSuchVersion unless all their files are there."""
    found: dict[str, Table] = {}
    for name, place in places.items():
        try:
            found[name] = Table.open(root, place.path, place.version)
        except NotATable as error:
            raise NoSuchVersion(f"{root}: version {at!r}: {error}") from error
        present = {entry.name for entry in root.names(place.path)}
        if gone := sorted(upkeep.files(found[name]) - present):
            raise NoSuchVersion(f"{root}: version {at!r}: {gone[0]} is gone; choose a newer one")
    return found


def _check(dataset: Dataset, at: str, old: Mapping[str, Table]) -> None:
    """Refuse a version whose payloads are gone, or that holds what was taken down."""
    present = {entry.name for entry in dataset.root.names(DATA)}
    named = {shard for name in NAMING if name in old for shard in shards_of(old[name])}
    if gone := sorted(named - present):
        shown = ", ".join(gone[:SHOWN])
        raise NoSuchVersion(
            f"{dataset.root}: version {at!r}: {len(gone)} of its shards are gone: {shown}; "
            "choose a newer version or a tag"
        )
    taken = Taken.of(dataset)
    if any(tells(table.rows(), taken) for table in old.values()):
        raise NoSuchVersion(
            f"{dataset.root}: version {at!r} holds clips that were taken down since; choose a tag"
        )


def _differs(table: Table, old: Table | None) -> bool:
    if old is None:
        return table.rows().num_rows > 0
    return old.name != table.name or upkeep.files(old) != upkeep.files(table)


def _go_back(table: Table, old: Table | None) -> None:
    if old is not None and old.name == table.name:
        upkeep.restore(table, old.version)
    else:  # after a takedown, a tag has tables of its own
        rows = table.rows() if old is None else old.rows()
        upkeep.replace_rows(table, rows.slice(0, 0) if old is None else rows)


def _plain(places: Mapping[str, Place]) -> dict[str, list[object]]:
    return {name: [place.path, place.version] for name, place in places.items()}
