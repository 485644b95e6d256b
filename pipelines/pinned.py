"""The files of weights that a recipe pins by their sha256: there, and what they are to be, before anything else begins."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ingest.caption import Captions
from ingest.scorers import Scorers
from models.clip_weights import present, verified

LARGE_BYTES = 512 << 20  # reading so much takes seconds
Pinned = tuple[Path, str]


def pinned(captions: Captions, scorers: Scorers, *, embedded: bool) -> tuple[Pinned, ...]:
    """Return the files that the passes of a recipe would load; raises FileNotFoundError, ValueError, reads none."""
    used = [captions.coca.weights] if "coca" in captions.captioners else []
    used += [scorers.weights] if embedded else []
    files = [(one.path, one.sha256) for one in used if one.model]
    if "aesthetic" in scorers.scorers:
        files.append((scorers.aesthetic.path, scorers.aesthetic.sha256))
    found = tuple(dict.fromkeys((path, sha256) for path, sha256 in files if path is not None))
    for path, sha256 in found:
        present(path, sha256)
    return found


def verify(files: Sequence[Pinned], say: Callable[[str], None]) -> None:
    """Read files and compare their hashes, once a process; raises ValueError for another content."""
    total = sum(path.stat().st_size for path, _ in files)
    if total >= LARGE_BYTES:
        say(f"checking the sha256 of {len(files)} files of weights, {total / 2**30:.1f} GiB")
    for path, sha256 in files:
        verified(path, sha256)
