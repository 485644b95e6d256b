"""Annotate: kept clips -> captions, labels, scores, embeddings, by stages that read payloads and facts, never sources.

Each pass looks for clips without a row of the wanted settings, and makes those only: a changed captioner captions again and
decodes no source, a changed side file changes its own clips. What is finished is committed every second; a killed run goes on.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from cluster import pool, resources, worker
from ingest.stage import Failure, Needs, needs_of
from ingest.store import Dataset
from pipelines.annotations import Writer
from pipelines.annotator import Annotator, Answer, annotate_batch
from pipelines.answers import rows_of
from pipelines.context import Context
from pipelines.due import Due, demote, due
from pipelines.passes import Pass

FAILURES_SHOWN = 5
TELL_EVERY_S = 0.5


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

    Made now; unchanged from earlier runs; failed; silent (there is nothing to say of it); skipped (an
    earlier captioner has said something); left (the run was stopped). `rules` counts clean-up.
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

    A clip that fails stays as it was, and is tried again by the next run unless the failure is final.
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
        self._dataset, self._pass, self._context = dataset, one, context
        self._recorder, self._max_attempts = recorder, max_attempts
        self._needs = needs_of(one.stage)
        self._counts: Counter[str] = Counter()
        self._rules: Counter[str] = Counter()
        self._cpu_s, self._done = 0.0, 0
        self._examples: list[str] = []

    def run(self, spoken: set[str]) -> Annotated:
        """Do what is due; `spoken` are the clips with a caption of the chain, and grows."""
        self._dataset.refresh()
        one = self._pass
        found = due(self._dataset, one, skip=spoken if one.chained else frozenset())
        if one.chained:
            spoken |= found.spoken
        self._counts.update(found.counts)
        writer = Writer(self._dataset, one.table, app_id=f"annotate/{one.table}/{one.producer}")
        try:
            for rows, held in found.settled:
                writer.add(rows, held)
            if len(found):
                self._work(found, writer, spoken)
        except BaseException:
            with contextlib.suppress(OSError):  # the failure itself is the news
                writer.flush()
            raise
        writer.flush()
        return self._told(found)

    def _work(self, found: Due, writer: Writer, spoken: set[str]) -> None:
        stage = f"annotate: {self._pass.producer}"
        self._recorder.stage(f"{self._pass.producer}: {len(found)} of {found.clips} clips to do")
        told_s = 0.0
        for index, answer in self._answers(found):
            facts = found.facts(index)
            rows = rows_of(self._pass, facts, found.wanted[index], answer)
            self._rules.update(rows.rules)
            held = found.held.get(index, set())
            if rows.failure is None:
                writer.add(rows.rows, held)
                self._counts["made"] += 1
                if self._pass.chained:
                    spoken.add(facts["clip_id"])
            else:
                self._failed(facts, rows.failure)
                if not held:  # what was said before stays: a failure takes nothing away
                    writer.add(rows.rows, held)
            self._done += 1
            writer.commit_due()
            if self._done == len(found) or time.monotonic() - told_s >= TELL_EVERY_S:
                told_s = time.monotonic()
                self._recorder.progress(self._done, len(found), stage=stage)

    def _failed(self, facts: Mapping[str, Any], failure: Failure) -> None:
        self._counts["failed"] += 1
        if len(self._examples) < FAILURES_SHOWN:
            why = f"{failure.error_class}: {failure.message}"
            self._examples.append(f"{facts['source_uri']} {facts['clip_id'][:12]}: {why}")

    def _answers(self, found: Due) -> Iterator[tuple[int, Answer]]:
        """Yield each clip's answer; a batch that fails is taken apart, so that one clip costs only itself."""
        size = self._needs.batch_clips
        batches = [found.order[start : start + size] for start in range(0, len(found), size)]
        alone: list[Sequence[int]] = []
        for batch, outcome in self._outcomes(found, batches, attempts=1):
            if outcome.failure is None:
                yield from zip(batch, outcome.value, strict=True)
            else:
                alone += [[index] for index in batch]
        if alone:
            for (index,), outcome in self._outcomes(found, alone, attempts=self._max_attempts):
                yield index, outcome.value[0] if outcome.failure is None else _as_failure(outcome)

    def _outcomes(
        self, found: Due, batches: Sequence[Sequence[int]], *, attempts: int
    ) -> Iterator[tuple[Sequence[int], pool.Outcome]]:
        units = (
            pool.Unit(key=str(number), payload=[found.facts(index) for index in batch])
            for number, batch in enumerate(batches)
        )
        for outcome in self._run(units, len(batches), attempts):
            self._cpu_s += outcome.cpu_s
            yield batches[int(outcome.key)], outcome

    def _run(
        self, units: Iterator[pool.Unit], num_units: int, attempts: int
    ) -> Iterator[pool.Outcome]:
        needs, stop = self._needs, self._context.stop
        make, root = self._pass.make, self._dataset.root
        if needs.inline:
            yield from _here(Annotator(make, root), units, stop)
            return
        self._context.start_cluster()
        config = _pool(needs, attempts)
        if needs.costly:
            most = resources.most_workers(config.need)
            num_actors = max(1, min(most, needs.max_workers or most, num_units))
            yield from pool.run_actors(
                Annotator, (make, root), units, num_actors=num_actors, config=config, stop=stop
            )
            return
        work = partial(annotate_batch, make=make, root=root)
        yield from pool.run_tasks(work, units, config=config, stop=stop)

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
            cpu_s=round(self._cpu_s, 3),
            rules=dict(sorted(self._rules.items())),
            **{name: counts[name] for name in ("made", "unchanged", "failed", "silent", "skipped")},
        )


def _pool(needs: Needs, attempts: int) -> pool.Pool:
    has_gpus = any(node.num_gpus for node in resources.nodes())
    return pool.Pool(
        max_attempts=attempts,
        num_cpus=needs.num_cpus,
        num_gpus=needs.num_gpus if has_gpus else 0.0,
        memory_bytes=needs.memory_bytes,
    )


def _here(
    work: Callable[[Any], Any], units: Iterator[pool.Unit], stop: pool.Stop
) -> Iterator[pool.Outcome]:
    """Do in this process what the pool does in others: an attempt a unit."""
    for unit in units:
        if stop.requested:
            return
        report = worker.call(work, unit.payload)
        if report.fatal is not None:
            raise report.fatal
        yield pool.Outcome(
            key=unit.key,
            value=report.value,
            failure=report.failure,
            attempts=1,
            wall_s=report.wall_s,
            cpu_s=report.cpu_s,
            worker=report.worker,
            max_rss_bytes=report.max_rss_bytes,
        )


def _as_failure(outcome: pool.Outcome) -> Failure:
    failure = outcome.failure
    if failure is None:
        raise ValueError("the outcome is no failure")
    return Failure(error_class=failure.error_class, message=failure.message)
