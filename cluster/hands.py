"""Who does a pool's work: plain Ray tasks, or actors that are reused; both keep Ray's own retries off, as it tells of none."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import ray
from ray import exceptions as failures

from cluster.resources import Need
from cluster.worker import Host, call

MAX_LOST_BUILDS = 3
# What Ray says of a worker that went down with its machine.
NODE_SIGNS = ("node has died", "node died", "node failure", "node is dead", "node was terminated")


class PoolError(RuntimeError):
    """The pool itself cannot work, for example because an actor cannot be built."""


class Hands(Protocol):
    """Who does the work: tasks or actors."""

    def free(self, *, width: int, alone: bool) -> bool:
        """Return whether a unit can be submitted now: one of `width` parts, or one that shares its worker with none."""
        ...

    def building(self) -> list[Any]:
        """Return Ray's references to what is on its way to be free."""
        ...

    def built(self, reference: Any) -> None:
        """Take note that one of `building` has ended; raises PoolError when it has failed for good."""
        ...

    def submit(self, payloads: Sequence[Any], *, alone: bool) -> list[Any]:
        """Start one attempt, each payload on a worker of its own, and return Ray's references to the reports."""
        ...

    def release(self, reference: Any, *, alive: bool) -> bool:
        """Take note that an attempt has ended, and whether its worker survived it; return whether others died with it."""
        ...

    def dismiss(self) -> None:
        """Let nothing go on running."""
        ...


class Tasks:
    """Plain Ray tasks, at most `window` at a time."""

    def __init__(self, function: Callable[[Any], Any], need: Need, *, window: int) -> None:
        self._function = ray.put(function)
        # Loosely typed: Ray's overloads do not know options given as a mapping.
        remote: Any = ray.remote
        self._remote: Any = remote(max_retries=0, **need.options)(call)
        self._window = window
        self._running: set[Any] = set()

    def free(self, *, width: int, alone: bool) -> bool:  # noqa: ARG002  each has its own worker
        """Return whether the window has room."""
        return len(self._running) + width <= self._window

    def building(self) -> list[Any]:
        """Return nothing: Ray starts workers by itself."""
        return []

    def built(self, reference: Any) -> None:
        """Never called, as nothing is built."""

    def submit(self, payloads: Sequence[Any], *, alone: bool) -> list[Any]:  # noqa: ARG002
        """Start the tasks."""
        references = [self._remote.remote(self._function, payload) for payload in payloads]
        self._running.update(references)
        return references

    def release(self, reference: Any, *, alive: bool) -> bool:  # noqa: ARG002
        """Forget the task; Ray replaces a dead worker by itself."""
        self._running.discard(reference)
        return False

    def dismiss(self) -> None:
        """Kill the workers of what is still running."""
        for reference in self._running:
            with contextlib.suppress(failures.RayError):
                ray.cancel(reference, force=True)


class Crew:
    """Actors that are reused, each for at most `per_actor` units at a time, and only when it is known to be built."""

    def __init__(
        self,
        actor: Callable[..., Any],
        arguments: tuple[Any, ...],
        need: Need,
        *,
        size: int,
        per_actor: int = 1,
    ) -> None:
        self._plan = ray.put(actor), ray.put(arguments)
        remote: Any = ray.remote
        told = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": per_actor}
        self._remote: Any = remote(**told, **need.options)(Host)
        self._per_actor = per_actor
        self._building: dict[Any, Any] = {}
        self._running: dict[Any, dict[Any, bool]] = {}  # host -> its references, and whether alone
        self._holder: dict[Any, Any] = {}
        self._died_together: set[Any] = set()
        self._lost_builds = 0
        for _ in range(size):
            self._hire()

    def _hire(self) -> None:
        host = self._remote.remote()
        self._building[host.make.remote(*self._plan)] = host

    def free(self, *, width: int, alone: bool) -> bool:
        """Return whether actors are built that have room; parts and what is alone need idle ones.

        Nobody is given a second unit while another is being built, which will be idle.
        """
        if width == 1 and not alone and not self._building:
            return any(self._room(running) for running in self._running.values())
        return sum(not running for running in self._running.values()) >= width

    def _room(self, running: dict[Any, bool]) -> bool:
        return len(running) < self._per_actor and not any(running.values())

    def building(self) -> list[Any]:
        """Return the references to the actors that are being built."""
        return list(self._building)

    def built(self, reference: Any) -> None:
        """Put a new actor among the free ones; one whose process was lost on the way is built again, a few times."""
        host = self._building.pop(reference)
        try:
            failure: Any = ray.get(reference)
        except failures.RayError as error:
            self._lost_builds += 1
            if self._lost_builds >= MAX_LOST_BUILDS:
                raise PoolError(f"an actor died while it was built: {first_line(error)}") from error
            self._hire()
            return
        if failure is not None:
            raise PoolError(f"an actor cannot be built: {failure.error_class}: {failure.message}")
        self._lost_builds = 0
        self._running[host] = {}

    def submit(self, payloads: Sequence[Any], *, alone: bool) -> list[Any]:
        """Give the payloads to the actors that have least to do."""
        hosts = sorted(self._running, key=lambda host: len(self._running[host]))
        hosts = [host for host in hosts if self._room(self._running[host])]
        references = []
        for host, payload in zip(hosts, payloads, strict=False):
            reference = host.call.remote(payload)
            self._running[host][reference] = alone or len(payloads) > 1
            self._holder[reference] = host
            references.append(reference)
        return references

    def release(self, reference: Any, *, alive: bool) -> bool:
        """Free the actor, or begin to build one in its place."""
        host = self._holder.pop(reference)
        together = reference in self._died_together
        self._died_together.discard(reference)
        running = self._running.get(host)
        if running is None:
            return together
        del running[reference]
        if alive:
            return False
        del self._running[host]
        self._died_together.update(running)
        with contextlib.suppress(failures.RayError):
            ray.kill(host)
        self._hire()
        return bool(running)

    def dismiss(self) -> None:
        """End all actors."""
        for host in (*self._running, *self._building.values()):
            with contextlib.suppress(failures.RayError):
                ray.kill(host)
        self._running.clear()
        self._holder.clear()
        self._building.clear()


def node_lost(error: BaseException) -> bool:
    """Return whether a worker was lost together with its machine."""
    if isinstance(error, failures.NodeDiedError):
        return True
    words = str(error).lower()
    return isinstance(error, failures.RayActorError) and any(sign in words for sign in NODE_SIGNS)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message: Ray's go on for a screen."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
