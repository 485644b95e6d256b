"""The board where Ray Train workers post what happened to the driver.

Workers never open the log or the tracker: they post, the driver drains and is the one writer.
"""

import contextlib
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.eventlog import Event, Take

Posted = tuple[str, int, dict[str, Any]]
DRAIN_EVERY_S, DRAIN_AT_LEAST_EVERY_S = 0.2, 1.0
ANSWER_TIMEOUT_S = 10.0
JOIN_TIMEOUT_S = 60.0
MAX_UNTAKEN = 10_000
LAST_TRIES = 3


class _Notices:
    """The Ray actor between workers and driver: events one way, the wish to stop and what was taken the other.

    It gives what it has until the driver says what it has dealt with, so that no answer that is lost loses an event.
    """

    def __init__(self) -> None:
        self._life = secrets.token_hex(8)
        self._events: list[Posted] = []
        self._received: dict[str, int] = {}
        self._taken: dict[str, int] = {}
        self._stop = False

    def post(
        self, poster: str, life: str, events: list[tuple[int, dict[str, Any]]]
    ) -> tuple[str, bool, int, int]:
        # a board that was killed and started again needs to hear all that is not taken, in order
        for number, event in events if life == self._life else ():
            if number > self._received.get(poster, 0):
                self._events.append((poster, number, event))
                self._received[poster] = number
        received, taken = self._received.get(poster, 0), self._taken.get(poster, 0)
        return self._life, self._stop, received, taken

    def drain(self, *, stop: bool, taken: dict[str, int]) -> list[Posted]:
        self._stop = self._stop or stop
        self._taken.update(taken)
        self._events = [e for e in self._events if e[1] > self._taken.get(e[0], 0)]
        return self._events


class Poster:
    """A worker's end of a board: called with an event, it returns whether a stop was asked for.

    A board that is gone or slow costs the worker some seconds, never its work: the answer is then False, and the event goes
    with the next one. What may not be on record yet, because a driver that is killed takes it along, is `untaken`.
    """

    def __init__(self, handle: Any) -> None:
        self._handle, self._name, self._count = handle, secrets.token_hex(8), 0
        self._life, self._received = "", 0
        self._waiting: deque[tuple[int, dict[str, Any]]] = deque(maxlen=MAX_UNTAKEN)

    def __call__(self, event: Event) -> bool:
        """Post one event."""
        self._count += 1
        self._waiting.append((self._count, dict(event)))
        try:
            stop, taken = self._post()
        except RayError:
            return False
        while self._waiting and self._waiting[0][0] <= taken:
            self._waiting.popleft()
        return bool(stop)

    def _post(self) -> tuple[bool, int]:
        while True:
            events = [one for one in self._waiting if one[0] > self._received]
            told = self._handle.post.remote(self._name, self._life, events)
            life, stop, received, taken = ray.get(told, timeout=ANSWER_TIMEOUT_S)
            same, self._life = life == self._life, life
            self._received = received
            if same:
                return stop, taken

    def untaken(self) -> list[dict[str, Any]]:
        """Return the events that the driver has not said to be done with, in order."""
        return [event for _, event in self._waiting]


class Board:
    """The driver's end of a board: `handle` goes to the workers; needs an open session."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        # beside the driver: a machine that is lost must not take along what others have posted
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here}
        self.handle: Any = ray.remote(**options)(_Notices).remote()
        self._stop = stop
        self._taken: dict[str, int] = {}
        self._failed: BaseException | None = None

    def drain(self) -> list[Posted]:
        """Return what was posted and is not taken yet, in each worker's order: (who, which one, event)."""
        wish = self._stop() or self._failed is not None
        told = self.handle.drain.remote(stop=wish, taken=dict(self._taken))
        return [
            e for e in ray.get(told, timeout=ANSWER_TIMEOUT_S) if e[1] > self._taken.get(e[0], 0)
        ]

    def taken(self, posted: Posted) -> None:
        """Say that an event is dealt with."""
        self._taken[posted[0]] = posted[1]

    @contextlib.contextmanager
    def draining(self, take: Take) -> Iterator[None]:
        """Hand events to `take` in a thread of its own; all that were posted are handed over before the block ends.

        When `take` raises, the workers are asked to stop and the error is raised at the end of the block.
        """
        done = threading.Event()
        thread = threading.Thread(target=self._loop, args=(take, done), name="board", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(JOIN_TIMEOUT_S)
            with contextlib.suppress(Exception):
                ray.kill(self.handle)
        if self._failed is not None:
            raise self._failed

    def _loop(self, take: Take, done: threading.Event) -> None:
        last, tries, wait_s = False, LAST_TRIES, DRAIN_EVERY_S
        while not last or tries > 0:
            last = last or done.wait(wait_s)
            tries -= last
            try:
                events = self.drain()
            except (RayError, ConnectionError):
                continue
            # workers that take long over a step need the cores more than the asking does
            wait_s = DRAIN_EVERY_S if events else min(2 * wait_s, DRAIN_AT_LEAST_EVERY_S)
            try:
                # after an error nothing is taken: it stays with the workers, for their checkpoints
                for posted in events if self._failed is None else ():
                    take(posted[2])
                    self.taken(posted)
            except BaseException as error:  # noqa: BLE001  raised again by `draining`
                self._failed = error
            if last:
                return
