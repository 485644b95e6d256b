"""What a curate run left beside its dataset, as a page needs it: its bounds, and what its work took."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.eventlog import read_events
from ingest.keep import Keep, Rule
from ingest.store import Dataset
from jobs import config
from pipelines.output import Occupied, notes_of, read_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Notes:
    """One run: the bounds of its keep rule, what each unit took (by unit id), and the run as a whole."""

    bounds: tuple[Rule, ...] = ()
    units: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    whole: Mapping[str, float] = field(default_factory=dict)


def latest(dataset: Dataset) -> Notes:
    """Return the notes of the run that wrote to a dataset last; empty ones where there are none here."""
    folder = notes_of(str(dataset.root))
    found = sorted(folder.glob("*/recipe.json"), key=lambda p: _changed(p.parent))
    return notes(found[-1].parent) if found else Notes()


def notes(folder: Path) -> Notes:
    """Return what is in the folder of a run; a file that is not there or torn tells nothing."""
    try:
        recipe = (read_json(folder / "recipe.json") or {}).get("recipe", {})
    except Occupied:
        recipe = {}
    units: dict[str, Mapping[str, float]] = {}
    whole: Counter[str] = Counter()
    log = folder / "events.jsonl"
    for event in read_events(log) if log.exists() else ():
        if event.get("event") == "cost":
            numbers = {k: v for k, v in event.items() if isinstance(v, (int, float))}
            numbers.pop("time", None)
            if event.get("unit") == "run":
                whole.update(numbers)  # a run that was interrupted has several ends
            else:
                units[str(event.get("unit"))] = numbers
    bounds = bounds_of(recipe["keep"]) if "keep" in recipe else ()
    return Notes(bounds=bounds, units=units, whole=whole)


def bounds_of(keep: dict[str, Any]) -> tuple[Rule, ...]:
    """Return the bounds of a keep rule as a recipe tells it; none of one that is not understood any more."""
    try:
        return tuple(config.build(Keep, keep, name="keep").rules())
    except config.ConfigError:
        return ()


def _changed(folder: Path) -> int:
    log = folder / "events.jsonl"
    return (log if log.exists() else folder).stat().st_mtime_ns
