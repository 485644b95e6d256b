"""What came of a digest: runs that took it in, what they made, and the runs that took that in."""

from collections.abc import Iterable
from dataclasses import dataclass

from cluster.recording import Found
from cluster.tracking import embedded_uri, search
from pipelines.context import EXPERIMENT, INPUT_TAG, STATE

OUTPUT_TAGS = ("kinoray.checkpoint", "kinoray.set")


@dataclass(frozen=True, kw_only=True, slots=True)
class Descendant:
    """A run that saw something, directly or through a checkpoint or set: its verb, and what it made."""

    run_id: str
    name: str
    verb: str
    made: str
    saw: str


def descendants(digests: Iterable[str], *, tracking_uri: str = "") -> list[Descendant]:
    """Return the runs that took in any of `digests` or something made of it, nearest first.

    Runs that another tracker holds are not found.
    """
    runs = list(search(tracking_uri or embedded_uri(STATE.resolve()), EXPERIMENT))
    known, found = set(digests), {}
    while fresh := [r for r in runs if r.id not in found and _inputs(r) & known]:
        for run in fresh:
            made = next((run.tags[tag] for tag in OUTPUT_TAGS if run.tags.get(tag)), "")
            found[run.id] = Descendant(
                run_id=run.id,
                name=run.name,
                verb=run.tags.get("kinoray.verb", ""),
                made=made,
                saw=min(_inputs(run) & known),
            )
        known |= {one.made for one in found.values() if one.made}
    return list(found.values())


def _inputs(run: Found) -> set[str]:
    return {text for name, text in run.tags.items() if name.startswith(INPUT_TAG) and text}
