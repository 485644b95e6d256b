"""The executor's loop: who is given what, what came of it, what is tried again."""

import secrets
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import length_hint
from typing import Any

import ray
from ray import exceptions as failures

from cluster import raylet
from cluster.hands import Hands, first_line, node_lost
from cluster.units import Outcome, Part, Pool, Stop, Unit
from cluster.worker import STAGE_WORKER, Failure, Report, describe

MAX_LOST_NODES = 10
MANY = 1 << 30
# How often the stop flag is looked at while nothing ends.
POLL_S = 0.25


@dataclass(slots=True, eq=False)
class Flight:
    """A unit on its way, and what it has been through."""

    unit: Unit
    payload: Any
    attempts: int = 0
    most_attempts: int = 0
    lost_nodes: int = 0
    alone: bool = False
    started_s: float = 0.0
    running: int = 0
    reports: dict[int, Report] = field(default_factory=dict)
    passed: list[Report] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Place:
    """One station at work: its hands, and the flights that wait for them; those that begin again go first."""

    hands: Hands
    config: Pool
    size: int
    wide: bool = True
    again: deque[Flight] = field(default_factory=deque)
    waiting: deque[Flight] = field(default_factory=deque)

    def head(self) -> deque[Flight] | None:
        """Return the queue whose first flight is next, None when nothing waits."""
        return self.again or self.waiting or None

    def free_for(self, flight: Flight, *, left: int) -> bool:
        """Return whether a flight can begin here now, the first of `left` that are still to begin.

        The last ones wait for idle workers: who has begun another unit would be the last to begin this one.
        """
        last = left <= self.size
        return self.hands.free(width=self.width(flight), alone=flight.alone or last)

    def width(self, flight: Flight) -> int:
        """Return how many workers of this place take part."""
        return max(min(flight.unit.width, self.size), 1) if self.wide else 1


class Loop:
    """Keeps the hands busy, collects what ends, decides what is tried again."""

    def __init__(self, places: Sequence[Place], stop: Stop) -> None:
        self._places, self._stop = places, stop
        self._flights: dict[Any, tuple[Flight, Place, int]] = {}
        self._drained = False
        self._fatal: BaseException | None = None

    def run(self, units: Iterable[Unit]) -> Generator[Outcome, None, None]:
        """Yield outcomes until nothing is left to do; closing it lets nothing run on."""
        source = iter(units)
        try:
            while self._busy(source):
                for reference in self._ready():
                    if reference not in self._flights:
                        self._built(reference)
                    elif (outcome := self._collect(reference)) is not None:
                        yield outcome
                    # who is free works on while the rest of what ended is taken
                    self._fill(source)
        finally:
            self._dismiss()
        if self._fatal is not None:
            raise self._fatal

    def _busy(self, source: Iterator[Unit]) -> bool:
        self._fill(source)
        return bool(self._flights) or self._more()

    def _dismiss(self) -> None:
        if not raylet.lost():
            for place in self._places:
                place.hands.dismiss()

    def _ready(self) -> list[Any]:
        """Return all that has ended, after POLL_S at the latest."""
        building = [one for place in self._places for one in place.hands.building()]
        raylet.check()
        waiting = [*self._flights, *building]
        ready, _ = ray.wait(waiting, timeout=POLL_S)
        if ready:  # one look at a long list for each of it would be dear
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for place in self._places:
            place.config.meanwhile()
        return ready

    def _built(self, reference: Any) -> None:
        (place,) = [one for one in self._places if reference in one.hands.building()]
        place.hands.built(reference)

    def _more(self) -> bool:
        """Return whether anything is still to be submitted."""
        if self._fatal is not None:
            return False
        begun = any(place.head() for place in self._places[1:])
        if self._stop.requested:
            return begun
        return begun or bool(self._places[0].head()) or not self._drained

    def _fill(self, source: Iterator[Unit]) -> None:
        """Submit while there is room, at the last station first."""
        for place in reversed(self._places):
            while self._fatal is None and (flight := self._next(place, source)) is not None:
                self._submit(flight, place)

    def _next(self, place: Place, source: Iterator[Unit]) -> Flight | None:
        """Return a flight that a place can take now."""
        if not self._open(place):
            return None
        if not place.head() and place is self._places[0]:
            self._draw(source)
        queue = place.head()
        if not queue or not place.free_for(queue[0], left=self._left(place, source)):
            return None
        return queue.popleft()

    def _left(self, place: Place, source: Iterator[Unit]) -> int:
        """Return how many flights are still to begin at a place; a source that cannot tell has many."""
        number = self._places.index(place)
        before = self._places[:number]
        queued = sum(len(one.again) + len(one.waiting) for one in (*before, place))
        # nothing comes to the first, and looking at all flights for each unit would be dear
        flights = self._flights.values() if before else ()
        coming = {id(flight) for flight, at, _ in flights if at in before}
        drawn = self._drained or self._stop.requested
        return queued + len(coming) + (0 if drawn else length_hint(source, MANY))

    def _open(self, place: Place) -> bool:
        """Return whether a place may begin anything: not before the next one has room, the first not after a stop."""
        number = self._places.index(place)
        if number == 0 and self._stop.requested:
            return False
        behind = self._places[number + 1] if number + 1 < len(self._places) else None
        full = behind is not None and len(behind.waiting) >= behind.size
        return not full and place.hands.free(width=1, alone=False)

    def _draw(self, source: Iterator[Unit]) -> None:
        if not self._drained and (unit := next(source, None)) is not None:
            self._places[0].waiting.append(Flight(unit, unit.payload))
        else:
            self._drained = True

    def _submit(self, flight: Flight, place: Place) -> None:
        flight.attempts += 1
        flight.most_attempts = max(flight.most_attempts, flight.attempts)
        flight.started_s = time.monotonic()
        payloads = _parts(flight.payload, place.width(flight))
        references = place.hands.submit(payloads, alone=flight.alone)
        flight.reports, flight.running = {}, len(references)
        for number, reference in enumerate(references):
            self._flights[reference] = flight, place, number

    def _collect(self, reference: Any) -> Outcome | None:
        """Take a part of an attempt that has ended; None when its unit has not."""
        flight, place, number = self._flights.pop(reference)
        flight.running -= 1
        try:
            report: Any = ray.get(reference)
        except failures.RayError as error:
            alive = isinstance(error, failures.RayTaskError)
            together = place.hands.release(reference, alive=alive)
            report = _lost(flight, error, together=together)
        else:
            place.hands.release(reference, alive=True)
        flight.reports[number] = report
        return None if flight.running else self._ended(flight, place)

    def _ended(self, flight: Flight, place: Place) -> Outcome | None:
        report = _joined(flight.reports)
        if report.fatal is not None:
            self._fatal = self._fatal or report.fatal
            return None
        lost = {one.lost for one in flight.reports.values()}
        if "node" in lost and flight.lost_nodes < MAX_LOST_NODES:
            # The loss of a machine is nobody's fault; the cap ends a unit that takes machines down.
            flight.lost_nodes += 1
            flight.attempts -= 1
            place.again.append(flight)
            return None
        if "together" in lost:
            # Who of those that shared the process did it? Each is tried again alone, at no charge.
            flight.alone = True
            flight.attempts -= 1
            place.again.append(flight)
            return None
        tries_left = flight.attempts < place.config.max_attempts
        if report.failure is not None and report.retryable and tries_left:
            place.again.append(flight)
            return None
        flight.passed.append(report)
        number = self._places.index(place) + 1
        if report.failure is None and number < len(self._places):
            flight.payload, flight.attempts, flight.alone = report.value, 0, False
            self._places[number].waiting.append(flight)
            return None
        return _outcome(flight)


def _parts(payload: Any, width: int) -> list[Any]:
    if width == 1:
        return [payload]
    meeting = secrets.token_hex(8)
    return [
        Part(payload=payload, number=number, count=width, meeting=meeting)
        for number in range(width)
    ]


def _joined(reports: Mapping[int, Report]) -> Report:
    """Return the report of an attempt from those of its parts: one that only missed the others is not the cause."""
    told = [reports[number] for number in sorted(reports)]
    failed = sorted((one for one in told if one.failure), key=lambda one: one.missed_others)
    first = failed[0] if failed else told[0]
    return replace(
        first,
        fatal=next((one.fatal for one in told if one.fatal is not None), None),
        wall_s=max(one.wall_s for one in told),
        cpu_s=sum(one.cpu_s for one in told),
        max_rss_bytes=max(one.max_rss_bytes for one in told),
    )


def _lost(flight: Flight, error: failures.RayError, *, together: bool) -> Report:
    """Return the report of an attempt whose worker sent none."""
    cause = error.cause if isinstance(error, failures.RayTaskError) else None
    if isinstance(cause, BaseException):
        # The worker lives: the unit could not be unpacked there, or its value not be packed.
        failure = describe(cause)
    else:
        words = f"its worker process died: {first_line(error)}"
        failure = Failure(stage=STAGE_WORKER, error_class=type(error).__name__, message=words)
    lost = "node" if node_lost(error) else "together" if together else ""
    return Report(failure=failure, wall_s=time.monotonic() - flight.started_s, lost=lost)


def _outcome(flight: Flight) -> Outcome:
    last = flight.passed[-1]
    return Outcome(
        key=flight.unit.key,
        value=last.value,
        failure=last.failure,
        attempts=flight.most_attempts,
        wall_s=sum(one.wall_s for one in flight.passed),
        cpu_s=sum(one.cpu_s for one in flight.passed),
        worker=last.worker,
        max_rss_bytes=max(one.max_rss_bytes for one in flight.passed),
    )
