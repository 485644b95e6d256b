"""order_v1: the one order of training clips, the same for any number of workers.

Position p of epoch e is a keyed bijection of [0, n): an eight-round Feistel network on the next
power of four, walked until it falls inside. No state but (seed, epoch), nothing to store or ship.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

ORDER_VERSION = "order_v1"
ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
MASK_64 = (1 << 64) - 1


def _mix(x: np.ndarray) -> np.ndarray:
    """Finaliser of SplitMix64 over uint64 (arithmetic modulo 2^64)."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def _round_keys(seed: int, epoch: int) -> np.ndarray:
    state = _mix(np.array([seed & MASK_64], np.uint64) + _GOLDEN)
    state = _mix(state ^ np.array([epoch & MASK_64], np.uint64)) + _GOLDEN
    return _mix(state + np.arange(1, ROUNDS + 1, dtype=np.uint64) * _GOLDEN)


def permute(positions: np.ndarray, *, n: int, seed: int, epoch: int) -> np.ndarray:
    """Return the clip index (int64) at each position of one epoch; both lie in [0, n).

    Raises ValueError for a position outside.
    """
    values = np.asarray(positions, np.int64)
    if n < 1 or (values.size and (values.min() < 0 or values.max() >= n)):
        raise ValueError(f"positions must lie in [0, {n})")
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    keys = _round_keys(seed, epoch)
    out = values.astype(np.uint64)
    pending = np.ones(out.shape, bool)
    while pending.any():
        left, right = out[pending] >> shift, out[pending] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        out[pending] = (left << shift) | right
        pending = out >= np.uint64(n)
    return out.astype(np.int64)


def slots(global_batch: int, world_size: int, rank: int) -> range:
    """Return the slots of a global batch that one rank reads; over all ranks they tile it."""
    if global_batch < 1 or not 0 <= rank < world_size:
        raise ValueError(f"no slots for batch {global_batch}, rank {rank} of {world_size}")
    start = global_batch * rank // world_size
    return range(start, global_batch * (rank + 1) // world_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """Where training stands, the same for all ranks: so many samples of one order were consumed."""

    view_digest: str
    seed: int
    global_batch: int
    samples_consumed: int = 0
    order_version: str = ORDER_VERSION

    def __post_init__(self) -> None:
        """Refuse a place in an order that does not exist."""
        if self.order_version != ORDER_VERSION:
            raise ValueError(f"order {self.order_version!r} is unknown; this is {ORDER_VERSION}")
        if self.global_batch < 1 or self.samples_consumed < 0:
            raise ValueError("global_batch must be at least 1 and samples_consumed at least 0")

    def state_dict(self) -> dict[str, Any]:
        """Return the cursor as plain values."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Cursor":
        """Return the cursor that `state_dict` wrote."""
        return cls(**state)

    def indices(self, positions: np.ndarray, n: int) -> np.ndarray:
        """Return the clip index at each position of the endless order over n clips."""
        positions = np.asarray(positions, np.int64)
        out = np.empty_like(positions)
        for epoch in np.unique(positions // n):
            inside = positions // n == epoch
            place = positions[inside] - epoch * n
            out[inside] = permute(place, n=n, seed=self.seed, epoch=int(epoch))
        return out
