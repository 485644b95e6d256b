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

    `digest` is that of the view, or of the mixture; `inputs` names each view for the record, `sizes` counts its clips.
    """

    shelves: tuple[Shelf, ...]
    digest: str
    inputs: dict[str, str]
    sizes: tuple[int, ...]
    frames: int
    fps: int

    def crowded(self, global_batch: int) -> str:
        """Say which dataset has fewer clips than a batch takes of it; "" when none has.

        The order goes on into the next epoch, so such a batch is well defined: a clip comes again under another
        position, with a timestep and noise of its own. It learns less than its size says, which somebody should know.
        """
        total = sum(shelf.weight for shelf in self.shelves)
        for shelf, size in zip(self.shelves, self.sizes, strict=True):
            share = global_batch * shelf.weight / total
            if share > size:
                return (
                    f"a batch takes {share:g} clips of {shelf.root}, which has {size}: each step sees them "
                    f"{share / size:.1f} times; next: a smaller global_batch, or more clips"
                )
        return ""


def freeze(parts: Sequence[Mixed]) -> Shelves:
    """Freeze the selections; raises WrongInput when one is empty or their clips differ in length."""
    shelves, sizes, rates, lengths = [], [], Counter[int](), {}
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
        sizes.append(view.num_clips)
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
        sizes=tuple(sizes),
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
