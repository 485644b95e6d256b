"""Who decides in a curate run: thresholds, rules and a shot detector of somebody's own, and when what passes say counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ingest import detectors
from ingest.clip import Prep
from ingest.decide import Decision, give_fates
from ingest.evidence import NOTHING_PENDING, Pending
from ingest.keep import Keep, own_rules, rules_digest, wanted_scores
from ingest.likeness import Duplicates, decision
from ingest.stage import KeepRule
from ingest.store import Dataset
from pipelines.identity import digest
from pipelines.passes import Pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Own:
    """What a recipe names with `use`, loaded and checked; `prep` tells of the detector."""

    prep: Prep
    detector: detectors.Make | None
    rules: tuple[KeepRule, ...]


def own_of(prep: Prep, detector: Mapping[str, Any], keep: Keep) -> Own:
    """Load a recipe's own detector and keep rules; raises stage.NotAStage."""
    make, made_by = detectors.made_by(detector)
    return Own(prep=replace(prep, detector=made_by), detector=make, rules=own_rules(keep))


class Decider:
    """Decides the fates of clips by columns alone, as often as is wanted."""

    def __init__(
        self,
        dataset: Dataset,
        own: Own,
        passes: Sequence[Pass],
        *,
        keep: Keep,
        duplicates: Duplicates,
    ) -> None:
        self._dataset, self._own, self._keep, self._duplicates = dataset, own, keep, duplicates
        self._passes, self._asked = passes, wanted_scores(keep, own.rules)
        self._pending = _pending(passes, self._asked)

    def inputs(self) -> str:
        """Return a digest of what decides beside recipe and sources: own stages, sets that must not leak."""
        against = [Dataset.open(place).version for place in self._duplicates.against]
        passes = [one.settings for one in self._passes]
        return digest([rules_digest(self._own.rules), self._own.prep.detector, passes, against])

    def strangers(self) -> list[str]:
        """Return the scores that rules of the recipe ask for and that nothing gives."""
        given = {fact.name for one in self._passes for fact in getattr(one.stage, "scores", ())}
        table = self._dataset.table("annotations/scores")
        given |= set(table.rows(["name"]).column("name").unique().to_pylist()) if table else set()
        usual = {one.score for one in Keep().bounds if one in self._keep.bounds}
        return [name for name in self._asked if name not in given | usual]

    def unstored(self, units: set[str]) -> frozenset[str]:
        """Return the units with clips that other rules rejected: wanted now, but never stored."""
        return self._found(units, self._pending, final=False).unstored

    def decide(self, units: set[str], *, last: bool) -> int:
        """Give clips their fates; return how many changed.

        The `last` time counts all that is stored. Before, what the passes still make does not: what
        they are to look at stays in until they have.
        """
        found = self._found(units, NOTHING_PENDING if last else self._pending, final=last)
        if found.changes.num_rows:
            give_fates(self._dataset.ledger_table, found.changes)
        return found.changes.num_rows

    def _found(self, units: set[str], pending: Pending, *, final: bool) -> Decision:
        return decision(
            self._dataset,
            units,
            keep=self._keep,
            duplicates=self._duplicates,
            own=self._own.rules,
            pending=pending,
            final=final,
        )


def _pending(passes: Sequence[Pass], asked: Sequence[str]) -> Pending:
    """Return what passes will make: their settings, "" where those are another for each clip."""
    scores = {
        fact.name: "" if hasattr(one.stage, "decides") else one.settings
        for one in passes
        if one.table == "scores"
        for fact in one.stage.scores
        if fact.name in asked
    }
    vectors = next((one.settings for one in passes if one.table == "embeddings"), "")
    return Pending(scores=scores, vectors=vectors)
