"""Who does a pool's work: plain Ray tasks, or actors that are reused; both keep Ray's own retries off, as it tells of none."""

import contextlib
from collections.abc import Callable
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

    def free(self) -> bool:
        """Return whether a unit can be submitted now."""
        ...

    def building(self) -> list[Any]:
        """Return Ray's references to what is on its way to be free."""
        ...

    def built(self, reference: Any) -> None:
        """Take note that one of `building` has ended; raises PoolError when it has failed for good."""
        ...

    def submit(self, payload: Any) -> Any:
        """Start one attempt and return Ray's reference to its report."""
        ...

    def release(self, reference: Any, *, alive: bool) -> None:
        """Take note that an attempt has ended, and whether its worker survived it."""
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

    def free(self) -> bool:
        """Return whether the window has room."""
        return len(self._running) < self._window

    def building(self) -> list[Any]:
        """Return nothing: Ray starts workers by itself."""
        return []

    def built(self, reference: Any) -> None:
        """Never called, as nothing is built."""

    def submit(self, payload: Any) -> Any:
        """Start a task."""
        reference = self._remote.remote(self._function, payload)
        self._running.add(reference)
        return reference

    def release(self, reference: Any, *, alive: bool) -> None:  # noqa: ARG002
        """Forget the task; Ray replaces a dead worker by itself."""
        self._running.discard(reference)

    def dismiss(self) -> None:
        """Kill the workers of what is still running."""
        for reference in self._running:
            with contextlib.suppress(failures.RayError):
                ray.cancel(reference, force=True)


class Crew:
    """Actors that are reused, each for one unit at a time; a unit is given only to one that is known to be built."""

    def __init__(
        self, actor: Callable[..., Any], arguments: tuple[Any, ...], need: Need, *, size: int
    ) -> None:
        self._plan = ray.put(actor), ray.put(arguments)
        remote: Any = ray.remote
        self._remote: Any = remote(max_restarts=0, max_task_retries=0, **need.options)(Host)
        self._building: dict[Any, Any] = {}
        self._busy: dict[Any, Any] = {}
        self._free: list[Any] = []
        self._lost_builds = 0
        for _ in range(size):
            self._hire()

    def _hire(self) -> None:
        host = self._remote.remote()
        self._building[host.make.remote(*self._plan)] = host

    def free(self) -> bool:
        """Return whether an actor is built and idle."""
        return bool(self._free)

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
        self._free.append(host)

    def submit(self, payload: Any) -> Any:
        """Give a unit to a free actor."""
        host = self._free.pop()
        reference = host.call.remote(payload)
        self._busy[reference] = host
        return reference

    def release(self, reference: Any, *, alive: bool) -> None:
        """Free the actor, or begin to build one in its place."""
        host = self._busy.pop(reference)
        if alive:
            self._free.append(host)
            return
        with contextlib.suppress(failures.RayError):
            ray.kill(host)
        self._hire()

    def dismiss(self) -> None:
        """End all actors."""
        for host in (*self._free, *self._busy.values(), *self._building.values()):
            with contextlib.suppress(failures.RayError):
                ray.kill(host)
        self._free.clear()
        self._busy.clear()
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
