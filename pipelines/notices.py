"""What all workers of a training must know alike after each step: whether to stop, and whether a machine will be taken away."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from cluster.group import Place

# Ray's own watch looks every 5 s, and asking it is a barrier over an actor: too dear for every step of a large group.
LOOK_EVERY_S = 2.0


class Notices:
    """Asks in one small exchange a step; every worker must ask. `leaving` is a barrier of its own, asked now and then."""

    def __init__(self, place: Place, leaving: Callable[[], bool]) -> None:
        self._place, self._leaving = place, leaving
        self._looked_s = -LOOK_EVERY_S
        self.leaves = False

    def after(self, *, asked: bool, idle: bool) -> tuple[bool, bool]:
        """Return rank 0's (asked, idle), and set `leaves`, which stays."""
        due = time.monotonic() - self._looked_s >= LOOK_EVERY_S
        stop, calm, look = self._told(asked, idle, due)
        if look and not self.leaves:
            self._looked_s = time.monotonic()
            self.leaves = self._leaving()
        return stop, calm

    def _told(self, *flags: bool) -> tuple[bool, ...]:
        if self._place.world_size == 1:
            return flags
        told = torch.tensor(flags, dtype=torch.uint8, device=self._place.device)
        dist.broadcast(told, src=0)
        return tuple(bool(flag) for flag in told.tolist())
