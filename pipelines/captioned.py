"""Which texts the captions of each video are made from, so that a changed text is noticed instead of ignored."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from ingest.caption import Captions
from ingest.objects import SCHEME
from ingest.sources import Source
from pipelines.identity import digest


def digests(captions: Captions, sources: Sequence[Source]) -> dict[str, str]:
    """Return for each video a digest of how and from which files its captions are made."""
    shared = [captions.digest(), _file(captions.caption_file)]
    return {
        source.printable_uri: digest([shared, [_file(path) for path in _beside(source)]])
        for source in sources
    }


def _file(path: Path | None) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else ""


def _beside(source: Source) -> list[Path]:
    if source.member or source.uri.startswith(SCHEME):
        return []  # nothing lies beside it
    return [Path(source.uri).with_suffix(suffix) for suffix in (".txt", ".json")]
