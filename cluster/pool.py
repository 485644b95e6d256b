"""The one executor: units of work over Ray tasks or actors, with attempts counted and every unit accounted for.

Ray schedules, places and transports. What is ours is the bookkeeping that it does not do: a bounded window of units in flight,
attempts that blame only the unit that was running, quarantine with a reason, and a stop that keeps what is finished.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cluster import resources
from cluster.hands import Crew, Tasks
from cluster.loop import Loop, Place
from cluster.units import Outcome as Outcome  # noqa: PLC0414  what the executor is told and tells
from cluster.units import Part as Part  # noqa: PLC0414
from cluster.units import Pool as Pool  # noqa: PLC0414
from cluster.units import Stop as Stop  # noqa: PLC0414
from cluster.units import Unit as Unit  # noqa: PLC0414


def run_tasks(
    function: Callable[[Any], Any], units: Iterable[Unit], *, config: Pool, stop: Stop
) -> Generator[Outcome, None, None]:
    """Yield the outcome of `function(payload)` for each unit as they end; one Ray task an attempt.

    `units` may be lazy and endless. An exception with `retryable = False` is not tried again; one with `fatal = True` ends the
    run: what is in flight is yielded first, then it is raised here. Raises NotEnough when no unit could ever run.
    """
    resources.fit(config.need, num_workers=1)
    window = config.window or min(2 * resources.most_workers(config.need), 1024)
    tasks = Tasks(function, config.need, window=window)
    yield from Loop([Place(tasks, config, window)], stop).run(units)


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
    station = Station(actor=actor, arguments=arguments, num_actors=num_actors, config=config)
    yield from run_line([station], units, stop=stop)


@dataclass(frozen=True, kw_only=True, slots=True)
class Station:
    """Actors of one kind; `need`s of all stations of a line are met at once. Where `wide` is false, so is no unit."""

    actor: Callable[..., Any]
    arguments: tuple[Any, ...]
    num_actors: int
    config: Pool
    wide: bool = True


def run_line(
    stations: Sequence[Station], units: Iterable[Unit], *, stop: Stop
) -> Generator[Outcome, None, None]:
    """Yield the outcomes of units that pass all stations; what one makes of a unit is what the next is called with.

    A station goes on while the next has no more waiting than it has actors. Wide units are so at each station that has the
    actors. After a stop what has begun still passes the stations behind. Raises as run_actors.
    """
    resources.fit_all([(one.config.need, one.num_actors) for one in stations])
    places = [
        Place(
            Crew(
                one.actor,
                one.arguments,
                one.config.need,
                size=one.num_actors,
                per_actor=one.config.per_actor,
            ),
            one.config,
            one.num_actors,
            one.wide,
        )
        for one in stations
    ]
    yield from Loop(places, stop).run(units)
