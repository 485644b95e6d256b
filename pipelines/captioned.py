"""Which texts the captions of each video were made from, so that a changed text is noticed instead of ignored."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ingest.caption import Captions
from ingest.files import atomic_write
from ingest.sources import Source
from pipelines.identity import digest
from pipelines.output import Occupied, read_json, to_json

NOTE = "captions.json"


def digests(captions: Captions, sources: Sequence[Source]) -> dict[str, str]:
    """Return for each video a digest of how and from which files its captions are made."""
    shared = [list(captions.captioners), _file(captions.caption_file)]
    return {
        source.printable_uri: digest(
            [shared, [_file(Path(source.uri).with_suffix(s)) for s in (".txt", ".json")]]
        )
        for source in sources
    }


def note(folder: Path, said: Mapping[str, str], *, dataset: str) -> None:
    """Write down a run's digests in its folder; raises Occupied when an earlier run's differ for the same video.

    Captions are not made again in this version: saying so beats finishing with the old ones.
    """
    for path in folder.parent.glob(f"*/{NOTE}"):
        before = read_json(path) or {}
        changed = [uri for uri, value in said.items() if before.get(uri, value) != value]
        if changed:
            raise Occupied(dataset, f"holds {changed[0]} with other captions")
    atomic_write(folder / NOTE, to_json(said))


def _file(path: Path | None) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else ""
