"""Annotate: kept clips -> captions, labels, scores, embeddings, by stages that read payloads and facts, never sources.

Each pass looks for clips without a row of the wanted settings, and makes those only: a changed captioner captions again and
decodes no source, a changed side file changes its own clips. A killed run goes on: it loses the batches that were being asked,
and what waited to be committed (annotations.Writer: a second, longer for what takes the place of older rows).
"""

import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow.compute as pc

from ingest.restate import Key
from ingest.stage import Failure
from ingest.store import Dataset
from pipelines.annotations import Writer
from pipelines.annotator import Answer
from pipelines.answers import Rows, rows_of
from pipelines.asking import Asker
from pipelines.context import Context
from pipelines.due import Due, demote, demote_clips, due, settled
from pipelines.passes import Pass

FAILURES_SHOWN = 5
TELL_EVERY_S = 0.5
OUTCOMES = ("made", "unchanged", "failed", "silent", "skipped", "final")


class Teller(Protocol):
    """Who hears how it goes: a Recorder, or anything with these."""

    def stage(self, text: str) -> None:
        """Hear that a stage begins."""
        ...

    def warn(self, text: str) -> None:
        """Hear what the user should look at."""
        ...

    def progress(self, done: int, total: int, *, stage: str = "", text: str = "") -> None:
        """Hear how much is done."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotated:
    """The one outcome of each clip in a pass: they add up to `clips`.

    Made now, if only by cleaning an answer anew; unchanged from earlier runs; failed; silent (there is
    nothing to say of it); skipped (an earlier captioner has said something); left (the run was
    stopped). Of those that failed, `final` will not be tried again. `rules` counts clean-up.
    """

    table: str
    producer: str
    clips: int
    made: int = 0
    unchanged: int = 0
    failed: int = 0
    silent: int = 0
    skipped: int = 0
    left: int = 0
    final: int = 0
    cpu_s: float = 0.0
    rules: Mapping[str, int] = field(default_factory=dict)


def annotate(
    dataset: Dataset,
    passes: Sequence[Pass],
    *,
    context: Context,
    recorder: Teller,
    max_attempts: int = 3,
) -> list[Annotated]:
    """Run the passes in order over all kept clips, and tell each one's outcomes.

    A clip that fails is tried again by the next run unless the failure is final, which captions and
    scores keep. Either way older settings have no say any more: scores, labels and embeddings that
    they gave go, a caption goes with a final failure, and else stands behind all others.
    Raises what makes every clip fail (a refused key, an endpoint that is down), after committing what is
    finished; tables.NotOurs, StorageError.
    """
    names = {one.stage.name for one in passes if one.table == "captions"}
    if names and not context.stop.requested:
        dataset.refresh()
        demote(dataset, names)
    spoken: set[str] = set()
    told = []
    for one in passes:
        if context.stop.requested:
            break
        told.append(_Round(dataset, one, context, recorder, max_attempts).run(spoken))
    return told


class _Round:
    """One pass over the clips as they are now."""

    def __init__(
        self, dataset: Dataset, one: Pass, context: Context, recorder: Teller, max_attempts: int
    ) -> None:
        self._dataset, self._pass, self._recorder = dataset, one, recorder
        app_id = f"annotate/{one.table}/{one.producer}"
        self._writer = Writer(dataset, one.table, app_id=app_id)
        self._asker = Asker(
            one,
            dataset.root,
            context,
            max_attempts=max_attempts,
            meanwhile=self._writer.commit_due,
        )
        self._counts: Counter[str] = Counter()
        self._rules: Counter[str] = Counter()
        self._done = 0
        self._examples: list[str] = []
        self._outdated: set[str] = set()

    def run(self, spoken: set[str]) -> Annotated:
        """Do what is due; `spoken` are the clips with a caption of the chain, and grows."""
        self._dataset.refresh()
        one = self._pass
        found = due(self._dataset, one, skip=spoken if one.chained else frozenset())
        self._counts.update(found.counts)
        self._counts["final"] = found.counts[
            "failed"
        ]  # what is stored as a failure is one for good
        try:
            self._settle(found)
            if len(found):
                self._work(found)
        except BaseException:
            with contextlib.suppress(OSError):  # the failure itself is the news
                self._finish()
            raise
        self._finish()
        if one.chained:
            spoken |= found.spoken
        return self._told(found)

    def _finish(self) -> None:
        self._writer.flush()
        demote_clips(self._dataset, self._pass, self._outdated)

    def _settle(self, found: Due) -> None:
        """Do what needs no stage: rows that hold no more, other ranks, other clean-up."""
        for key in found.gone:
            self._writer.add((), {key})
        for key, rows in settled(self._dataset, self._pass, found):
            if key in found.anew:
                self._take(found, key[0], rows, {key})
            else:
                self._writer.add(rows.rows, {key})
            self._writer.commit_due()
        for index, failure in found.failures:
            facts = found.facts(index)
            self._take(found, facts["clip_id"], Rows(failure=failure), found.held.get(index, set()))

    def _work(self, found: Due) -> None:
        stage = f"annotate: {self._pass.producer}"
        self._recorder.stage(f"{self._pass.producer}: {len(found)} of {found.clips} clips to do")
        told_s = 0.0
        for batch in self._asker.answers(found):
            for index, answer in batch:
                self._answered(found, index, answer)
            self._done += len(batch)
            if self._done == len(found) or time.monotonic() - told_s >= TELL_EVERY_S:
                told_s = time.monotonic()
                self._recorder.progress(self._done, len(found), stage=stage)

    def _answered(self, found: Due, index: int, answer: Answer) -> None:
        facts = found.facts(index)
        rows = rows_of(self._pass, facts, found.wanted[index], answer)
        self._take(found, facts["clip_id"], rows, found.held.get(index, set()))

    def _take(self, found: Due, clip_id: str, rows: Rows, held: set[Key]) -> None:
        """Write what a clip got in place of what it had."""
        self._rules.update(rows.rules)
        failure = rows.failure
        if failure is None:
            self._counts["made"] += 1
            found.spoken.add(clip_id)
        else:
            self._failed(found, clip_id, failure)
        passing = failure is not None and not failure.final
        if passing and held and self._pass.table == "captions":
            self._outdated.add(clip_id)  # words may have cost money: they stay, behind all others
        else:
            self._writer.add(rows.rows, held)

    def _failed(self, found: Due, clip_id: str, failure: Failure) -> None:
        self._counts["failed"] += 1
        self._counts["final"] += failure.final
        if len(self._examples) < FAILURES_SHOWN:
            clip = found.table.filter(pc.field("clip_id") == pc.scalar(clip_id))
            uri = clip.column("source_uri")[0].as_py()
            why = f"{failure.error_class}: {failure.message}"
            self._examples.append(f"{uri} {clip_id[:12]}: {why}")

    def _told(self, found: Due) -> Annotated:
        one, counts = self._pass, self._counts
        for example in self._examples:
            self._recorder.warn(f"{one.producer}: {example}")
        if counts["failed"] > len(self._examples):
            more = counts["failed"] - len(self._examples)
            self._recorder.warn(f"{one.producer}: and {more} more clips failed")
        return Annotated(
            table=one.table,
            producer=one.producer,
            clips=found.clips,
            left=len(found) - self._done,
            cpu_s=round(self._asker.cpu_s, 3),
            rules=dict(sorted(self._rules.items())),
            **{name: counts[name] for name in OUTCOMES},
        )
