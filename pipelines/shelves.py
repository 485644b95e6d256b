"""What a training draws from: a frozen view of each of its datasets."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ingest.feed import Part
from ingest.loader import Batch
from ingest.order import mixture_digest, reduced
from ingest.select import Selection
from ingest.store import Dataset
from pipelines.output import WrongInput


@dataclass(frozen=True, kw_only=True, slots=True)
class Shelf:
    """A frozen view of a dataset and its integer weight in the mixture."""

    root: str
    view: str
    weight: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixed:
    """A dataset to draw from: a folder or URI, a version of it (tag or number), which clips, how often."""

    dataset: str
    at: str = ""
    select: Selection = field(default_factory=Selection)
    weight: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Shelves:
    """Frozen views and what their clips have in common: frames a clip, frames a second (1 for stills).

    `digest` is that of the view, or of the mixture; `inputs` names each view for the record.
    """

    shelves: tuple[Shelf, ...]
    digest: str
    inputs: dict[str, str]
    frames: int
    fps: int


def freeze(parts: Sequence[Mixed]) -> Shelves:
    """Freeze the selections; raises WrongInput when one is empty or their clips differ in length."""
    shelves, rates, lengths = [], Counter[int](), {}
    for part in parts:
        dataset = Dataset.open(part.dataset, part.at)
        clips = dataset.select(part.select)
        if not clips.num_rows:
            raise WrongInput(
                f"{part.dataset}: no clip is selected, nothing to train on; "
                "next: look at its fates, or loosen `select`"
            )
        view = dataset.freeze_view(clips, selection=part.select)
        shelves.append(Shelf(root=dataset.root.uri, view=view.digest, weight=part.weight))
        lengths[part.dataset] = dataset.contract.frames
        counted = clips.group_by(["fps_num", "fps_den"]).aggregate([([], "count_all")])
        for row in counted.to_pylist():
            rates[max(1, round(row["fps_num"] / row["fps_den"]))] += row["count_all"]
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} of {frames}" for name, frames in lengths.items())
        raise WrongInput(f"mix: clips differ in frames ({told}); all must have the same number")
    weights = reduced([shelf.weight for shelf in shelves])
    return Shelves(
        shelves=tuple(shelves),
        digest=mixture_digest([shelf.view for shelf in shelves], weights),
        inputs={f"dataset{number or ''}": shelf.view for number, shelf in enumerate(shelves)},
        frames=next(iter(lengths.values())),
        fps=rates.most_common(1)[0][0],
    )


def parts_of(shelves: Iterable[Shelf]) -> list[Part]:
    """Return the views as the reader's parts."""
    return [Part(root=shelf.root, view=shelf.view, weight=shelf.weight) for shelf in shelves]


def substituted(batch: Batch, step: int) -> dict[str, Any]:
    """Return the event that names clips which could not be read and what was trained on instead."""
    told = [{"bad": s.bad, "used": s.used, "reason": s.reason} for s in batch.substitutions]
    return {"event": "substituted", "step": step + 1, "clips": told}
