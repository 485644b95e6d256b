"""What the executor is told and tells: units of work, how they run, how each ended."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from cluster import resources
from cluster.worker import Failure


class Stop(Protocol):
    """Anything with a flag that asks for an end."""

    @property
    def requested(self) -> bool:
        """Whether to start nothing more."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A piece of work; `key` names it in its outcome.

    `width` actors work on it at the same time, each called with its Part; the value is that of the first.
    """

    key: str
    payload: Any
    width: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What one of `count` actors is called with for a wide unit; `meeting` is theirs, and new at each attempt."""

    payload: Any
    number: int
    count: int
    meeting: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The one end of a unit: a value, or a failure after `attempts` attempts (the most that one station needed).

    `wall_s`, `cpu_s` (child processes included) and `max_rss_bytes` (of the worker process so far) are the last attempt's, of
    all its parts and stations together.
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
    """How units run; `window` bounds the units in flight as tasks (0 = twice what runs at once).

    An actor works on `per_actor` units at a time, in threads, and orders itself what may not run at once. `meanwhile` is
    called while units run, every POLL_S at least.
    """

    max_attempts: int = 3
    window: int = 0
    per_actor: int = 1
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
        if self.per_actor < 1:
            raise ValueError("per_actor: at least 1")

    @property
    def need(self) -> resources.Need:
        """What one unit, or one actor, occupies."""
        return resources.Need(
            num_cpus=self.num_cpus, num_gpus=self.num_gpus, memory_bytes=self.memory_bytes
        )
