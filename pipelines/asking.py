"""Asking a stage about clips: in this process, or by the executor in others; a clip that ends its worker costs only itself."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from cluster import pool, resources, worker
from ingest.objects import Root
from ingest.stage import Failure, needs_of
from pipelines.annotator import Annotator, Answer, annotate_batch
from pipelines.context import Context
from pipelines.due import Due
from pipelines.passes import Pass

Batch = list[tuple[int, Answer]]


class Asker:
    """Asks the stage of a pass, batch by batch; `meanwhile` is called every second or so. Counts `cpu_s`."""

    def __init__(
        self,
        one: Pass,
        root: Root,
        context: Context,
        *,
        max_attempts: int,
        meanwhile: Callable[[], object],
    ) -> None:
        self._pass, self._root, self._context = one, root, context
        self._max_attempts, self._meanwhile = max_attempts, meanwhile
        self._needs = needs_of(one.stage)
        self._limit_s = one.call_timeout_s or self._needs.call_timeout_s
        self.cpu_s = 0.0

    def answers(self, found: Due) -> Iterator[Batch]:
        """Yield the answers of each batch; one that fails is taken apart, so that one clip costs only itself."""
        size = self._needs.batch_clips
        batches = [found.order[start : start + size] for start in range(0, len(found), size)]
        alone: list[Sequence[int]] = []
        for batch, outcome in self._outcomes(found, batches, attempts=1):
            if outcome.failure is None:
                yield list(zip(batch, outcome.value, strict=True))
            else:
                alone += [[index] for index in batch]
        if alone:
            for (index,), outcome in self._outcomes(found, alone, attempts=self._max_attempts):
                yield [(index, outcome.value[0] if outcome.failure is None else self._why(outcome))]

    def _outcomes(
        self, found: Due, batches: Sequence[Sequence[int]], *, attempts: int
    ) -> Iterator[tuple[Sequence[int], pool.Outcome]]:
        units = (
            pool.Unit(key=str(number), payload=[found.facts(index) for index in batch])
            for number, batch in enumerate(batches)
        )
        for outcome in self._run(units, len(batches), attempts):
            self.cpu_s += outcome.cpu_s
            yield batches[int(outcome.key)], outcome
            self._meanwhile()

    def _run(
        self, units: Iterator[pool.Unit], num_units: int, attempts: int
    ) -> Iterator[pool.Outcome]:
        needs, stop = self._needs, self._context.stop
        make, root = self._pass.make, self._root
        if needs.inline:
            yield from _here(Annotator(make, root), units, stop)
            return
        self._context.start_cluster()
        config = self._pool(attempts)
        most = resources.most_workers(config.need)
        if needs.costly:
            num_actors = max(1, min(most, needs.max_workers or most, num_units))
            yield from pool.run_actors(
                Annotator,
                (make, root, self._limit_s),
                units,
                num_actors=num_actors,
                config=config,
                stop=stop,
            )
            return
        work = partial(annotate_batch, make=make, root=root, call_timeout_s=self._limit_s)
        yield from pool.run_tasks(work, units, config=config, stop=stop)

    def _pool(self, attempts: int) -> pool.Pool:
        needs = self._needs
        has_gpus = any(node.num_gpus for node in resources.nodes())
        return pool.Pool(
            max_attempts=attempts,
            num_cpus=needs.num_cpus,
            num_gpus=needs.num_gpus if has_gpus else 0.0,
            memory_bytes=needs.memory_bytes,
            meanwhile=self._meanwhile,
        )

    def _why(self, outcome: pool.Outcome) -> Failure:
        failure = outcome.failure
        if failure is None:
            raise ValueError("the outcome is no failure")
        # A worker that was ended sends no report: that it took so long is what is known of it here.
        if not outcome.worker and outcome.wall_s >= self._limit_s:
            words = (
                f"{self._pass.producer}: no answer within call_timeout_s = {self._limit_s:g}; "
                "its worker was ended"
            )
            return Failure(error_class="CallTimeout", message=words)
        return Failure(error_class=failure.error_class, message=failure.message)


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
