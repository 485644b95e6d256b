"""Curate: videos -> shots -> clips -> scores -> captions -> keep -> shards, one Ray task per source.

Workers write payload shards under their content's name; this driver is the one committer, appending the rows of finished
sources to the ledger, so that a kill at any moment loses nothing and doubles nothing (dataset.md 3.4).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cluster import pool
from cluster.session import Cluster
from ingest.caption import Captions
from ingest.clip import Prep
from ingest.keep import Keep
from ingest.likeness import Duplicates
from ingest.scorers import Scorers
from ingest.sources import Layout, Source, list_sources
from ingest.store import Dataset
from ingest.unit import (
    SCRATCH,
    Named,
    Unit,
    curate_unit,
    duplicate_rows,
    failed_rows,
    name_source,
    units_of,
    with_attempts,
)
from pipelines import captioned
from pipelines.annotate import Annotated, annotate
from pipelines.captioners import passes_of
from pipelines.committer import Committer
from pipelines.context import Context, Recorder, recorded
from pipelines.deciding import Decider, Own, own_of
from pipelines.fates import Result, first_of_each, record, summed
from pipelines.identity import digest, plain, recipe_digest
from pipelines.output import claim, notes_of, start_over
from pipelines.passes import Pass
from pipelines.plan import Plan

VERB = "curate"
STAGES = (
    *("list", "hash", "decode", "shots", "scores", "keep", "encode", "check", "shard", "commit"),
    *("decide", "annotate", "decide"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What to curate: `source` lists folders, globs, files, manifests, tars, s3:// URIs; `out` is the dataset.

    `layout` says what folders mean. Remote sources are copied to `scratch` ("" for the system's) one at a time.
    `detector` is a shot detector of your own, {use = "package.module:Class", ...}; see ingest.stage.
    """

    source: tuple[str, ...]
    out: str
    seed: int = 0
    prep: Prep = field(default_factory=Prep)
    layout: Layout = field(default_factory=Layout)
    scratch: str = ""
    detector: dict[str, Any] = field(default_factory=dict)
    keep: Keep = field(default_factory=Keep)
    duplicates: Duplicates = field(default_factory=Duplicates)
    captions: Captions = field(default_factory=Captions)
    scorers: Scorers = field(default_factory=Scorers)
    max_failed_share: float = 0.1
    max_attempts: int = 3
    tracking_uri: str = ""
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        """Check shares and counts."""
        if not self.source or not all(self.source):
            raise ValueError("source: at least one folder, glob or file, none of them empty")
        if not 0 <= self.max_failed_share <= 1:
            raise ValueError("max_failed_share: between 0 and 1")
        if self.max_attempts < 1:
            raise ValueError("max_attempts: at least 1")
        if self.prep.detector:
            raise ValueError("prep.detector: a digest; name yours with detector.use")
        if self.out in self.duplicates.against:
            raise ValueError("duplicates.against: names the dataset itself; all of it would leak")


def plan(config: Config) -> Plan:
    """Count the videos; touches nothing. Raises FileNotFoundError for a source that is not there."""
    sources, _own, _passes = _stages(config)
    counts: dict[str, int | float | str] = {
        "videos": len(sources),
        "bytes": sum(source.bytes for source in sources),
        "contract": config.prep.contract.describe(),
    }
    return Plan(verb=VERB, out=str(config.out), counts=counts, stages=STAGES)


def _listed(config: Config) -> list[Source]:
    stills = config.prep.contract.is_still
    return list_sources(config.source, pictures=stills, layout=config.layout)


def _stages(config: Config) -> tuple[list[Source], Own, tuple[Pass, ...]]:
    """List the sources and load what the recipe names, or refuse it before anything runs."""
    own = own_of(config.prep, config.detector, config.keep)
    sources = _listed(config)
    return sources, own, passes_of(config.captions, config.scorers, sources)


def run(config: Config, *, context: Context) -> Result:
    """Give every source and every candidate clip its one fate; continues where an earlier run ended."""
    sources, own, passes = _stages(config)
    if not context.resume:
        start_over(config.out)
    dataset = Dataset.create(config.out, config.prep.contract, own.prep)
    decider = Decider(dataset, own, passes, keep=config.keep, duplicates=config.duplicates)
    inputs = _inputs(config, sources, decider)
    folder = notes_of(config.out) / digest([recipe_digest(config), *inputs.values()])[:12]
    claimed = claim(folder, VERB, config, inputs=inputs, resume=True)
    # If others changed the dataset since, perhaps its fates, all is looked at again.
    if claimed.finished and claimed.finished["version"] == dataset.version:
        return Result(**claimed.finished)
    with recorded(context, claimed, verb=VERB, name=VERB, config=config) as recorder:
        app_id = f"{VERB}/{claimed.digest}"
        work = _Work(config, dataset, context, recorder, own=own, decider=decider, app_id=app_id)
        units = work.units(sources)
        work.give_fates(units)
        told = annotate(dataset, passes, context=context, recorder=recorder)
        work.decide(units, last=True)
        result = work.told(units, told)
        record(recorder, result, dataset, VERB)
        recorder.finish(claimed, plain(result))
    return result


def _inputs(config: Config, sources: Sequence[Source], decider: Decider) -> dict[str, str]:
    listed = digest([[s.uri, s.bytes, s.mtime_ns, s.etag, plain(s.said)] for s in sources])
    said = captioned.digests(config.captions, sources)
    return {"sources": listed, "captions": digest(said), "stages": decider.inputs()}


class _Work:
    """One run of curate: the units it was given, what it has committed and what it has spent."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        context: Context,
        recorder: Recorder,
        *,
        own: Own,
        decider: Decider,
        app_id: str,
    ) -> None:
        self.config, self.dataset, self.context, self.recorder = config, dataset, context, recorder
        self._own, self._decider = own, decider
        self._committer = Committer(dataset, app_id=app_id)
        self._scratch = Path(config.scratch) if config.scratch else SCRATCH
        self._again: frozenset[str] = frozenset()
        self.cpu_s = 0.0
        self.source_s = 0.0

    def units(self, sources: Sequence[Source]) -> list[Unit]:
        """Name each source by its content; hashing is a full read, so it is spread over the cluster."""
        self.context.start_cluster()
        named: dict[str, Named] = {}
        by_key = {source.key: source for source in sources}
        work = (pool.Unit(key=key, payload=source) for key, source in by_key.items())
        for outcome in self._pooled(
            partial(name_source, prep=self._own.prep, scratch=self._scratch), work
        ):
            named[outcome.key] = outcome.value or Named(sha256="", num_parts=1)
            self.recorder.progress(len(named), len(sources), stage="curate: hash")
        # Interrupted while hashing: only the named ones are units, the rest is found again by the next run.
        return [
            unit
            for key, source in by_key.items()
            if key in named
            for unit in units_of(source, named[key], prep=self._own.prep)
        ]

    def give_fates(self, units: Sequence[Unit]) -> None:
        """Process what the ledger does not know yet and commit as results come."""
        mine = {unit.unit_id for unit in units}
        committed = self.dataset.committed_units()
        self._again = self._decider.unstored(mine)
        known = committed - self._again
        todo = [unit for unit in units if unit.unit_id not in known]
        first = first_of_each(self.dataset, units)
        fresh = [
            u
            for u in todo
            if first.get(u.source_sha256, u.source.printable_uri) == u.source.printable_uri
        ]
        named = {unit.unit_id: unit for unit in fresh}
        done = len(units) - len(todo)
        if done:
            self.recorder.stage(f"{done} of {len(units)} videos have their fate, continuing")
        for unit in todo:
            if unit.unit_id not in named:
                self._committer.add(
                    duplicate_rows(unit, duplicate_of=unit.source_sha256, **self._rules)
                )
        done = len(units) - len(fresh)
        try:
            for outcome in self._curated(fresh):
                done += 1
                self._take(outcome, named[outcome.key])
                self.recorder.progress(
                    done, len(units), text=f"{self.source_s / 60:.1f} video minutes"
                )
        except BaseException:
            # What is finished is kept even when the run fails; the failure itself is the news.
            with contextlib.suppress(OSError):
                self._committer.flush()
            raise
        self._committer.flush()
        self.decide(units, last=False)

    def told(self, units: Sequence[Unit], passes: Sequence[Annotated]) -> Result:
        """Return the run in numbers, and say what failed."""
        return summed(
            self.dataset,
            units,
            passes,
            self.recorder,
            verb=VERB,
            out=self.config.out,
            max_failed_share=self.config.max_failed_share,
            interrupted=self.context.stop.requested,
            cpu_s=self.cpu_s,
            source_s=self.source_s,
        )

    def decide(self, units: Sequence[Unit], *, last: bool) -> None:
        """Give each clip its fate, by columns alone: nothing is decoded for other thresholds."""
        changed = self._decider.decide({unit.unit_id for unit in units}, last=last)
        if changed:
            self.recorder.stage(f"{changed} fates decided anew")
        for name in self._decider.strangers() if last else ():
            self.recorder.warn(f"keep: nothing gives the score {name}, so its rule rejects nothing")

    @property
    def _rules(self) -> dict[str, Any]:
        return {"prep": self._own.prep, "keep": self.config.keep}

    def _curated(self, units: Sequence[Unit]) -> Iterator[pool.Outcome]:
        work = partial(
            curate_unit,
            **self._rules,
            root=self.dataset.root,
            purged=frozenset(self.dataset.purged()),
            scratch=self._scratch,
            detector=self._own.detector,
        )
        # Longest first, so that the last unit running is a short one.
        by_size = sorted(units, key=lambda u: -u.source.bytes)
        yield from self._pooled(work, (pool.Unit(key=u.unit_id, payload=u) for u in by_size))

    def _pooled(
        self, work: Callable[[Any], Any], units: Iterator[pool.Unit]
    ) -> Iterator[pool.Outcome]:
        settings = pool.Pool(max_attempts=self.config.max_attempts)
        for outcome in pool.run_tasks(work, units, config=settings, stop=self.context.stop):
            self.cpu_s += outcome.cpu_s
            yield outcome

    def _take(self, outcome: pool.Outcome, unit: Unit) -> None:
        if outcome.failure is None:
            spent = {"cpu_s": outcome.cpu_s, "wall_s": outcome.wall_s}
            self.recorder.cost(unit.unit_id, {**outcome.value.stats, **spent})
            self.source_s += outcome.value.stats.get("source_s", 0.0)
            rows = with_attempts(outcome.value.rows, outcome.attempts)
            if unit.unit_id in self._again:
                self.dataset.replace_units(rows)
            else:
                self._committer.add(rows)
            return
        failure = outcome.failure
        rows = failed_rows(
            unit,
            stage=failure.stage,
            error_class=failure.error_class,
            message=failure.message,
            attempts=outcome.attempts,
            **self._rules,
        )
        self._committer.add(rows)
