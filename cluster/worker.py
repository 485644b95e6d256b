"""A unit's side of the pool, in the worker process: call, measure, and turn what goes wrong into data."""

import os
import pickle
import resource
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

STAGE_WORKER = "worker"
MESSAGE_CHARS = 2000
TRACEBACK_CHARS = 8000


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a unit was given up."""

    stage: str
    error_class: str
    message: str
    traceback: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a worker sends back for one attempt; `lost` says how its process was lost where it sent nothing.

    `missed_others` is of a part that failed because others did.
    """

    value: Any = None
    failure: Failure | None = None
    retryable: bool = True
    fatal: BaseException | None = None
    wall_s: float = 0.0
    cpu_s: float = 0.0
    worker: str = ""
    max_rss_bytes: int = 0
    lost: Literal["", "node", "together"] = ""
    missed_others: bool = False


class Host:
    """The Ray actor around a plain object that is called with payloads."""

    def __init__(self) -> None:
        self._made: Any = None

    def make(self, actor: Callable[..., Any], arguments: tuple[Any, ...]) -> Failure | None:
        """Build the object; the failure of its constructor is returned, because Ray's own words for it hide the cause."""
        try:
            self._made = actor(*arguments)
        except Exception as error:  # noqa: BLE001  told to the driver, which raises
            return describe(error)
        return None

    def call(self, payload: Any) -> Report:
        """Call the object with one payload."""
        return call(self._made, payload)


def call(function: Callable[[Any], Any], payload: Any) -> Report:
    """Make one attempt at a unit and report it, whatever it raises."""
    started_s, spent_s = time.monotonic(), _cpu_s()
    value, failure, fatal, retryable, missed = None, None, None, True, False
    try:
        value = function(payload)
    except Exception as error:  # noqa: BLE001  a unit's failure is data, the driver decides
        failure = describe(error)
        retryable = bool(getattr(error, "retryable", True))
        fatal = _portable(error) if getattr(error, "fatal", False) else None
        missed = bool(getattr(error, "missed_others", False))
    return Report(
        value=value,
        failure=failure,
        retryable=retryable,
        fatal=fatal,
        missed_others=missed,
        wall_s=time.monotonic() - started_s,
        cpu_s=_cpu_s() - spent_s,
        worker=f"{socket.gethostname()}/{os.getpid()}",
        max_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def describe(error: BaseException) -> Failure:
    """Return an exception as plain text that travels; its `stage` attribute says where, when it has one."""
    return Failure(
        stage=str(getattr(error, "stage", STAGE_WORKER)),
        error_class=type(error).__name__,
        message=str(error)[:MESSAGE_CHARS],
        traceback="".join(traceback.format_exception(error))[-TRACEBACK_CHARS:],
    )


def _portable(error: Exception) -> Exception:
    """Return the exception itself when it survives the way to the driver, else its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  an exception's own __reduce__ may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _cpu_s() -> float:
    """Return the CPU seconds of this process and of the children that it has waited for."""
    mine = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + children.ru_utime + children.ru_stime
