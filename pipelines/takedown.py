"""Takedown: what leaves a dataset, and which runs, checkpoints and evaluation sets had seen it."""

from collections.abc import Sequence
from dataclasses import dataclass

from ingest import refs
from ingest.purge import Purged, purge
from ingest.store import Dataset
from pipelines.lineage import Descendant, descendants


@dataclass(frozen=True, kw_only=True, slots=True)
class TakenDown:
    """What was purged, the runs that descend from it, nearest first, and where the dataset was exported or synced to."""

    purged: Purged
    saw: list[Descendant]
    copies: list[str]


def take_down(
    dataset: Dataset,
    *,
    sources: Sequence[str],
    clips: Sequence[str],
    reason: str,
    dry_run: bool = False,
    tracking_uri: str = "",
) -> TakenDown:
    """Purge sources (by sha256) and clips (by id), and look up what descends from the views that held them.

    Evaluations against the dataset as a whole are found by its digest now and at its tags. Raises as ingest.purge does.
    """
    whole = {dataset.digest(), *(tag.digest for tag in refs.tags(dataset.root))}
    purged = purge(dataset, sources=sources, clips=clips, reason=reason, dry_run=dry_run)
    saw = descendants({*purged.views, *whole}, tracking_uri=tracking_uri)
    return TakenDown(purged=purged, saw=saw, copies=_copies(dataset))


def _copies(dataset: Dataset) -> list[str]:
    """Return where the dataset was copied to; a takedown does not reach there."""
    told = [row for row in dataset.history() if row["operation"] in ("export", "sync")]
    places = (row["detail"].get("out") or row["detail"].get("to", "") for row in told)
    return sorted({place for place in places if place and place != str(dataset.root)})
