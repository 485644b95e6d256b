"""The one executor: units of work over Ray tasks or actors, with attempts counted and every unit accounted for.

Ray schedules, places and transports. What is ours is the bookkeeping that it does not do: a bounded window of units in flight,
attempts that blame only the unit that was running, quarantine with a reason, and a stop that keeps what is finished.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray import exceptions as failures

from cluster import raylet, resources
from cluster.hands import Crew, Hands, Tasks, first_line, node_lost
from cluster.worker import STAGE_WORKER, Failure, Report, describe

MAX_LOST_NODES = 10
# How often the stop flag is looked at while nothing ends.
POLL_S = 0.25


class Stop(Protocol):
    """Anything with a flag that asks for an end."""

    @property
    def requested(self) -> bool:
        """Whether to start nothing more."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A piece of work; `key` names it in its outcome."""

    key: str
    payload: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The one end of a unit: a value, or a failure after `attempts` attempts.

    `wall_s`, `cpu_s` (child processes included) and `max_rss_bytes` (of the worker process so far) are the last attempt's.
    """

    key: str
    value: Any
    failure: Failure | None
    attempts: int
    wall_s: float
    cpu_s: float
    worker: str
    max_rss_bytes: int


def _nothing() -> None:
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """How units run; `window` bounds the units in flight (0 = twice what runs at once).

    `meanwhile` is called while units run, every POLL_S at least.
    """

    max_attempts: int = 3
    window: int = 0
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory_bytes: int = 0
    meanwhile: Callable[[], object] = _nothing

    def __post_init__(self) -> None:
        """Check counts."""
        if self.max_attempts < 1:
            raise ValueError("max_attempts: at least 1")
        if self.window < 0:
            raise ValueError("window: at least 0")

    @property
    def need(self) -> resources.Need:
        """What one unit, or one actor, occupies."""
        return resources.Need(
            num_cpus=self.num_cpus, num_gpus=self.num_gpus, memory_bytes=self.memory_bytes
        )


def run_tasks(
    function: Callable[[Any], Any], units: Iterable[Unit], *, config: Pool, stop: Stop
) -> Generator[Outcome, None, None]:
    """Yield the outcome of `function(payload)` for each unit as they end; one Ray task an attempt.

    `units` may be lazy and endless. An exception with `retryable = False` is not tried again; one with `fatal = True` ends the
    run: what is in flight is yielded first, then it is raised here. Raises NotEnough when no unit could ever run.
    """
    resources.fit(config.need, num_workers=1)
    window = config.window or min(2 * resources.most_workers(config.need), 1024)
    yield from _Loop(Tasks(function, config.need, window=window), config, stop).run(units)


def run_actors(
    actor: Callable[..., Any],
    arguments: tuple[Any, ...],
    units: Iterable[Unit],
    *,
    num_actors: int,
    config: Pool,
    stop: Stop,
) -> Generator[Outcome, None, None]:
    """Yield the outcome of `actor(*arguments)(payload)` for each unit; one unit at a time on each of the actors.

    A dead actor is replaced and only its running unit is charged an attempt. Raises PoolError when an actor cannot be built and
    NotEnough when the actors cannot all run at once; else as run_tasks.
    """
    resources.fit(config.need, num_workers=num_actors)
    crew = Crew(actor, arguments, config.need, size=num_actors)
    yield from _Loop(crew, config, stop).run(units)


@dataclass(slots=True)
class _Flight:
    """A unit on its way, and what it has been through."""

    unit: Unit
    attempts: int = 0
    lost_nodes: int = 0
    started_s: float = 0.0


class _Loop:
    """Keeps the window full, collects what ends, decides what is tried again."""

    def __init__(self, hands: Hands, config: Pool, stop: Stop) -> None:
        self._hands, self._config, self._stop = hands, config, stop
        self._flights: dict[Any, _Flight] = {}
        self._again: deque[_Flight] = deque()
        self._fatal: BaseException | None = None

    def run(self, units: Iterable[Unit]) -> Generator[Outcome, None, None]:
        source = iter(units)
        try:
            while True:
                more = self._fill(source)
                if not self._flights and not more:
                    break
                waiting = [*self._flights, *self._hands.building()]
                raylet.check()
                ready, _ = ray.wait(waiting, timeout=POLL_S)
                self._config.meanwhile()
                for reference in ready:
                    if reference not in self._flights:
                        self._hands.built(reference)
                    elif (outcome := self._collect(reference)) is not None:
                        yield outcome
        finally:
            if not raylet.lost():
                self._hands.dismiss()
        if self._fatal is not None:
            raise self._fatal

    def _fill(self, source: Iterator[Unit]) -> bool:
        """Submit while there is room; return whether there is more to submit."""
        while self._fatal is None and not self._stop.requested:
            if not self._hands.free():
                return True
            flight = self._again.popleft() if self._again else _next(source)
            if flight is None:
                return False
            flight.attempts += 1
            flight.started_s = time.monotonic()
            self._flights[self._hands.submit(flight.unit.payload)] = flight
        return False

    def _collect(self, reference: Any) -> Outcome | None:
        """Take an attempt that has ended; None when its unit has not."""
        flight = self._flights.pop(reference)
        try:
            report: Any = ray.get(reference)
        except failures.RayError as error:
            self._hands.release(reference, alive=isinstance(error, failures.RayTaskError))
            if node_lost(error) and flight.lost_nodes < MAX_LOST_NODES:
                # The loss of a machine is nobody's fault; the cap ends a unit that takes machines down.
                flight.lost_nodes += 1
                flight.attempts -= 1
                self._again.append(flight)
                return None
            report = _lost(flight, error)
        else:
            self._hands.release(reference, alive=True)
        if report.fatal is not None:
            self._fatal = self._fatal or report.fatal
            return None
        tries_left = flight.attempts < self._config.max_attempts
        if report.failure is not None and report.retryable and tries_left:
            self._again.append(flight)
            return None
        return _outcome(flight, report)


def _lost(flight: _Flight, error: failures.RayError) -> Report:
    """Return the report of an attempt whose worker sent none."""
    cause = error.cause if isinstance(error, failures.RayTaskError) else None
    if isinstance(cause, BaseException):
        # The worker lives: the unit could not be unpacked there, or its value not be packed.
        failure = describe(cause)
    else:
        words = f"its worker process died: {first_line(error)}"
        failure = Failure(stage=STAGE_WORKER, error_class=type(error).__name__, message=words)
    return Report(failure=failure, wall_s=time.monotonic() - flight.started_s)


def _next(source: Iterator[Unit]) -> _Flight | None:
    unit = next(source, None)
    return _Flight(unit) if unit is not None else None


def _outcome(flight: _Flight, report: Report) -> Outcome:
    return Outcome(
        key=flight.unit.key,
        value=report.value,
        failure=report.failure,
        attempts=flight.attempts,
        wall_s=report.wall_s,
        cpu_s=report.cpu_s,
        worker=report.worker,
        max_rss_bytes=report.max_rss_bytes,
    )
