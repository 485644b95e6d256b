"""Which texts the captions of each video are made from: a changed text is noticed, one that means no video is told."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from ingest.caption import Captions, sidecars, small
from ingest.caption_file import matched
from ingest.objects import SCHEME
from ingest.sources import Source, sha256_file
from pipelines.annotate import Teller
from pipelines.identity import digest

SHOWN = 3


def digests(captions: Captions, sources: Sequence[Source]) -> dict[str, str]:
    """Return for each video a digest of how and from which files its captions are made."""
    file = captions.caption_file
    shared = [captions.digest(), sha256_file(file) if file and file.is_file() else ""]
    return {
        source.printable_uri: digest([shared, [_told(path) for path in _beside(source)]])
        for source in sources
    }


def tell_unmatched(captions: Captions, sources: Sequence[Source], teller: Teller) -> None:
    """Warn of the rows of the caption file that speak of no listed video, or of no certain one."""
    file = captions.caption_file
    if file is None:
        return
    if "sidecar" not in captions.captioners:
        teller.warn(f"{file}: not read, for captions.captioners does not name sidecar")
        return
    found = matched(file, (source.uri for source in sources))
    for names, what in (
        (found.unknown, "mean no listed video"),
        (found.ambiguous, "mean several listed videos, so that nothing is said of them"),
    ):
        if names:
            teller.warn(f"{file}: {len(names)} names {what}: {', '.join(names[:SHOWN])}")


def _told(path: Path) -> str:
    """Return a digest of what is read of a file, "" where nothing is."""
    begins = small(path)
    return hashlib.sha256(begins).hexdigest() if begins else ""


def _beside(source: Source) -> Sequence[Path]:
    if source.member or source.uri.startswith(SCHEME):
        return ()  # nothing lies beside it
    return sidecars(Path(source.uri))
