"""The one executor: units of work over Ray tasks or actors, with attempts counted and every unit accounted for.

Ray schedules, places and transports. What is ours is the bookkeeping that it does not do: a bounded window of units in flight,
attempts that blame only the unit that was running, quarantine with a reason, and a stop that keeps what is finished.
"""

import os
import resource
import socket
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray import exceptions as failures

STAGE_WORKER = "worker"
MAX_LOST_NODES = 10
MESSAGE_CHARS = 2000


class Stop(Protocol):
    """Anything with a flag that asks for an end."""

    @property
    def requested(self) -> bool:
        """Whether to start nothing more."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A piece of work; `key` names it in every outcome."""

    key: str
    payload: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a unit was given up."""

    stage: str
    error_class: str
    message: str
    traceback: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The one end of a unit: a value, or a failure after `attempts` attempts; CPU seconds include child processes."""

    key: str
    value: Any
    failure: Failure | None
    attempts: int
    wall_s: float
    cpu_s: float
    worker: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """How units run; `window` bounds the units in flight (0 = twice the CPUs of the cluster)."""

    max_attempts: int = 3
    window: int = 0
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory_bytes: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """Ray's names for the resources of one unit."""
        options: dict[str, Any] = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        if self.memory_bytes:
            options["memory"] = self.memory_bytes
        return options


class PoolError(RuntimeError):
    """The pool itself cannot work, for example because an actor's constructor fails."""


@dataclass(slots=True)
class _Flight:
    """A unit on its way, and what it has been through."""

    unit: Unit
    attempts: int = 0
    lost_nodes: int = 0
    started_s: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class _Report:
    """What a worker sends back."""

    value: Any
    error: Failure | None
    retryable: bool
    fatal: BaseException | None
    wall_s: float
    cpu_s: float
    worker: str


def run_tasks(
    function: Callable[[Any], Any], units: Iterable[Unit], *, config: Pool, stop: Stop
) -> Iterator[Outcome]:
    """Yield the outcome of `function(payload)` for each unit as they end; one Ray task an attempt.

    An exception with `retryable = False` is not tried again; one with `fatal = True` ends the run: what is in flight is
    yielded first, then it is raised here.
    """
    remote = ray.remote(max_retries=0, max_calls=0, **config.options)(_call)
    told = ray.put(function)
    window = config.window or max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
    yield from _Loop(config, stop, window).run(
        units, lambda unit: remote.remote(told, unit.payload)
    )


def run_actors(
    actor: Callable[..., Any],
    arguments: tuple[Any, ...],
    units: Iterable[Unit],
    *,
    num_actors: int,
    config: Pool,
    stop: Stop,
) -> Iterator[Outcome]:
    """Yield the outcome of `actor(*arguments)(payload)` for each unit; one unit at a time on each of the actors.

    A dead actor is replaced and only its running unit is charged an attempt. Raises PoolError when an actor cannot be built.
    """
    crew = _Crew(actor, arguments, num_actors, config)
    try:
        yield from _Loop(config, stop, num_actors).run(units, crew.submit, crew.release)
    finally:
        crew.dismiss()


class _Crew:
    """The actors, and which of them are free."""

    def __init__(
        self, actor: Callable[..., Any], arguments: tuple[Any, ...], size: int, config: Pool
    ) -> None:
        self._actor, self._arguments, self._config = actor, arguments, config
        self._busy: dict[Any, Any] = {}
        self._all = [self._hire() for _ in range(size)]
        self._free = list(self._all)

    def _hire(self) -> Any:
        remote = ray.remote(max_restarts=0, max_task_retries=0, **self._config.options)(_Host)
        return remote.remote(self._actor, self._arguments)

    def submit(self, unit: Unit) -> Any:
        host = self._free.pop()
        reference = host.call.remote(unit.payload)
        self._busy[reference] = host
        return reference

    def release(self, reference: Any, *, alive: bool) -> None:
        host = self._busy.pop(reference)
        if not alive:
            self._all.remove(host)
            host = self._hire()
            self._all.append(host)
        self._free.append(host)

    def dismiss(self) -> None:
        for host in self._all:
            ray.kill(host)


class _Host:
    """The Ray actor around a plain object; building is deferred so that its failure reaches the driver as a message."""

    def __init__(self, actor: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._make: Callable[[], Any] = lambda: actor(*arguments)
        self._made: Any = None

    def call(self, payload: Any) -> _Report:
        if self._made is None:
            try:
                self._made = self._make()
            except Exception as error:  # noqa: BLE001  told to the driver, which raises
                cause = PoolError(f"an actor could not start: {type(error).__name__}: {error}")
                return _Report(None, None, False, cause, 0.0, 0.0, _worker())  # noqa: FBT003
        return _call(self._made, payload)


def _call(function: Callable[[Any], Any], payload: Any) -> _Report:
    started_s, spent_s = time.monotonic(), _cpu_s()
    value, error, fatal, retryable = None, None, None, True
    try:
        value = function(payload)
    except Exception as raised:  # noqa: BLE001  a unit's failure is data, the loop decides
        text = "".join(traceback.format_exception(raised))[-4 * MESSAGE_CHARS :]
        message = str(raised)[:MESSAGE_CHARS]
        stage = str(getattr(raised, "stage", STAGE_WORKER))
        error = Failure(
            stage=stage, error_class=type(raised).__name__, message=message, traceback=text
        )
        retryable = bool(getattr(raised, "retryable", True))
        fatal = raised if getattr(raised, "fatal", False) else None
    wall_s, cpu_s = time.monotonic() - started_s, _cpu_s() - spent_s
    return _Report(value, error, retryable, fatal, wall_s, cpu_s, _worker())


def _worker() -> str:
    return f"{socket.gethostname()}/{os.getpid()}"


def _cpu_s() -> float:
    mine = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + children.ru_utime + children.ru_stime


Submit = Callable[[Unit], Any]


class _Loop:
    """Keeps the window full, collects what ends, decides what is tried again."""

    def __init__(self, config: Pool, stop: Stop, window: int) -> None:
        self._config, self._stop, self._window = config, stop, window
        self._flights: dict[Any, _Flight] = {}
        self._again: list[_Flight] = []
        self._fatal: BaseException | None = None

    def run(
        self,
        units: Iterable[Unit],
        submit: Submit,
        release: Callable[..., None] = lambda *_args, **_keys: None,
    ) -> Iterator[Outcome]:
        source = iter(units)
        try:
            while True:
                self._fill(source, submit)
                if not self._flights:
                    break
                # A short wait keeps the stop flag and Ctrl-C responsive.
                ready, _ = ray.wait(list(self._flights), num_returns=1, timeout=0.5)
                for reference in ready:
                    outcome = self._collect(reference, release)
                    if outcome is not None:
                        yield outcome
        finally:
            for reference in self._flights:
                ray.cancel(reference, force=False)
        if self._fatal is not None:
            raise self._fatal

    def _fill(self, source: Iterator[Unit], submit: Submit) -> None:
        while len(self._flights) < self._window and self._fatal is None:
            if self._stop.requested:
                return
            flight = self._again.pop() if self._again else _next(source)
            if flight is None:
                return
            flight.attempts += 1
            flight.started_s = time.monotonic()
            self._flights[submit(flight.unit)] = flight

    def _collect(self, reference: Any, release: Callable[..., None]) -> Outcome | None:
        flight = self._flights.pop(reference)
        try:
            report: _Report = ray.get(reference)
        except failures.RayError as error:
            release(reference, alive=False)
            return self._lost(flight, error)
        release(reference, alive=True)
        if report.fatal is not None:
            self._fatal = self._fatal or report.fatal
            return None
        if report.error is None:
            return _outcome(flight, report, None)
        if report.retryable and flight.attempts < self._config.max_attempts:
            self._again.append(flight)
            return None
        return _outcome(flight, report, report.error)

    def _lost(self, flight: _Flight, error: failures.RayError) -> Outcome | None:
        """Decide about a unit whose worker died under it; the loss of a whole node is not its fault."""
        if _node_lost(error) and flight.lost_nodes < MAX_LOST_NODES:
            flight.lost_nodes += 1
            flight.attempts -= 1
            self._again.append(flight)
            return None
        if flight.attempts < self._config.max_attempts:
            self._again.append(flight)
            return None
        message = str(error).strip().splitlines()
        failure = Failure(
            stage=STAGE_WORKER,
            error_class=type(error).__name__,
            message=f"its worker process died each time ({message[0] if message else 'no reason'})",
        )
        wall_s = time.monotonic() - flight.started_s
        return _outcome(flight, _Report(None, failure, False, None, wall_s, 0.0, ""), failure)  # noqa: FBT003


def _node_lost(error: failures.RayError) -> bool:
    if isinstance(error, failures.NodeDiedError):
        return True
    return (
        "node" in str(error).lower()
        and "died" in str(error).lower()
        and "worker" not in str(error).lower()
    )


def _next(source: Iterator[Unit]) -> _Flight | None:
    unit = next(source, None)
    return _Flight(unit) if unit is not None else None


def _outcome(flight: _Flight, report: _Report, failure: Failure | None) -> Outcome:
    return Outcome(
        key=flight.unit.key,
        value=report.value,
        failure=failure,
        attempts=flight.attempts,
        wall_s=report.wall_s,
        cpu_s=report.cpu_s,
        worker=report.worker,
    )
