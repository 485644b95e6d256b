"""A small dataset of real clips for the bench of training."""

from pathlib import Path

from ingest.clip import Prep
from ingest.keep import Keep
from ingest.sources import list_sources
from ingest.store import Dataset, empty_captions
from ingest.unit import curate_unit, plan_unit
from tests.bench import ingest

SECONDS = 60


def dataset(root: Path) -> Path:
    """Curate a minute of film into small clips and return the dataset's root."""
    beside = root.parent
    film = ingest.made(
        ingest.unpacked(beside), beside / "film.mp4", "-ss", "61", "-t", str(SECONDS), "-c", "copy"
    )
    prep = Prep(payload_short_side_px=64)
    made = Dataset.create(root, prep.contract, prep)
    unit = plan_unit(list_sources([str(film)])[0], prep=prep)
    rows = curate_unit(unit, prep=prep, keep=Keep(), root=made.root).rows
    made.commit(rows, empty_captions(), app_id="bench", batch=1)
    return root
