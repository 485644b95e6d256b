"""Who makes one video together (models/shared.py), and how they meet: by letters through a small Ray actor.

Parts that make one video form a gang; an actor sits in one gang after the other, with other partners. The letterbox sees
addresses and references, and no pixels. Every wait ends: a part that has lost another raises PartnerLost. An attempt
number is part of every name, so that nobody meets what an earlier attempt has left.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch.distributed
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from cluster.hands import first_line
from models.halo import HaloPlan

# More than a partner may be behind: it may have been scheduled later, or compile its first step.
TIMEOUT_S = 120.0
# The letterbox's own clock ends a wait first, because it can say what was waited for.
GRACE_S = 5.0
LOOPBACK = "127.0.0.1"
# torch's stores are public, but it does not say so to type checkers
_c10d: Any = torch.distributed


class PartnerLost(ConnectionError):
    """Another part of the same video is gone, late or speaks of another video; a new attempt may succeed."""

    missed_others = True  # so that the executor blames the other


@dataclass(frozen=True, kw_only=True, slots=True)
class Seat:
    """Who a part is: one of those that make the video `gang` by this plan, at this attempt."""

    gang: str
    attempt: int
    part: int
    halo: HaloPlan

    def __post_init__(self) -> None:
        """Refuse a seat that the plan does not have."""
        if not 0 <= self.part < self.parts:
            raise ValueError(f"part {self.part} must lie in 0..{self.parts - 1}")

    @property
    def parts(self) -> int:
        """How many sit together."""
        return self.halo.num_parts

    @property
    def key(self) -> str:
        """The name that this attempt goes by."""
        return f"{self.gang}/{self.attempt}"


class Letterbox:
    """The letters of all gangs, in an actor of its own: what one part leaves by name, another fetches once."""

    def __init__(self) -> None:
        self._left: dict[tuple[str, str], Any] = {}
        self._over: set[str] = set()
        self._news = asyncio.Condition()

    async def leave(self, key: str, name: str, value: Any) -> None:
        """Put a value down, unless the attempt `key` is over."""
        async with self._news:
            if key not in self._over:
                self._left[key, name] = value
                self._news.notify_all()

    async def fetch(self, key: str, name: str, timeout_s: float) -> Any:
        """Wait for a value and take it; raises PartnerLost."""
        try:
            async with self._news, asyncio.timeout(timeout_s):
                await self._news.wait_for(lambda: key in self._over or (key, name) in self._left)
        except TimeoutError:
            raise PartnerLost(f"{name} did not come for {timeout_s:g} s") from None
        if key in self._over:
            raise PartnerLost("the attempt was given up")
        return self._left.pop((key, name))

    async def give_up(self, key: str) -> None:
        """End an attempt, whatever became of it: every wait of it ends, and what was left is let go."""
        async with self._news:
            self._over.add(key)
            self._left = {at: value for at, value in self._left.items() if at[0] != key}
            self._news.notify_all()


def open_letterbox() -> Any:
    """Return the handle of a new letterbox, for the driver to hand to its actors; it lives as long as a handle does."""
    remote: Any = ray.remote
    return remote(num_cpus=0, max_restarts=0)(Letterbox).remote()


@dataclass(frozen=True, kw_only=True, slots=True)
class Meeting:
    """Where a process group is formed: a store that all parts reach, and the address where this part listens."""

    store: Any
    host: str


def meet(box: Any, seat: Seat, *, timeout_s: float = TIMEOUT_S) -> Meeting:
    """Wait for all parts and return the store that part 0 keeps; loopback when all are on one machine.

    Raises PartnerLost.
    """
    others = [p for p in range(seat.parts) if p != seat.part]
    mine = ray.util.get_node_ip_address()
    told = dict.fromkeys(others, mine)
    hosts = swapped(box, seat, "host", told, senders=others, timeout_s=timeout_s)
    host = LOOPBACK if set(hosts.values()) <= {mine} else mine
    if seat.part == 0:
        store = keep_store(host, timeout_s=timeout_s)
        told = dict.fromkeys(others, (host, store.port))
        swapped(box, seat, "store", told, senders=(), timeout_s=timeout_s)
        return Meeting(store=store, host=host)
    where = swapped(box, seat, "store", {}, senders=(0,), timeout_s=timeout_s)[0]
    with lost(seat):
        return Meeting(store=reach_store(*where, timeout_s=timeout_s), host=host)


def keep_store(host: str, *, timeout_s: float = TIMEOUT_S) -> Any:
    """Return a store that others reach at (host, store.port); it listens at that address alone."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, 0), family=family)
    port = listening.getsockname()[1]
    return _c10d.TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
        master_listen_fd=listening.detach(),
    )


def reach_store(host: str, port: int, *, timeout_s: float = TIMEOUT_S) -> Any:
    """Return a store that another process keeps."""
    return _c10d.TCPStore(
        host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
    )


def swapped(
    box: Any,
    seat: Seat,
    what: str,
    letters: Mapping[int, Any],
    *,
    senders: Sequence[int],
    timeout_s: float,
) -> dict[int, Any]:
    """Leave a letter for each receiver and return the letter of each sender; raises PartnerLost."""

    def name(sender: int, receiver: int) -> str:
        return f"{what} of part {sender} for part {receiver}"

    sent = [box.leave.remote(seat.key, name(seat.part, p), told) for p, told in letters.items()]
    due = [box.fetch.remote(seat.key, name(p, seat.part), timeout_s) for p in senders]
    with lost(seat):
        found = ray.get([*sent, *due], timeout=timeout_s + GRACE_S)[len(sent) :]
    return dict(zip(senders, found, strict=True))


@contextlib.contextmanager
def lost(seat: Seat) -> Iterator[None]:
    """Turn what torch and Ray raise when another process is gone, one of many errors, into PartnerLost."""
    try:
        yield
    except (RuntimeError, RayError) as error:
        # what an actor raised comes wrapped, with a traceback for a message
        cause = error.cause if isinstance(error, RayTaskError) else error
        said = first_line(cause)
        if isinstance(error, GetTimeoutError):
            said = "neither the letterbox nor the object store has answered in time"
        raise PartnerLost(f"part {seat.part} of {seat.key}: {said}") from error
