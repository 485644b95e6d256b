"""order_v1: the one order of training clips, the same for any number of workers.

Position p of epoch e is a keyed bijection of [0, n): an eight-round Feistel network on the next
power of four, walked until it falls inside. No state but (seed, epoch), nothing to store or ship.

A mixture of parts with integer weights w_c (divided by their gcd; M is their sum) deals positions
in blocks of M: position p lies in block b = p // M, v = permute(p % M, n=M, epoch=b) falls into the
range of one part c, and its draw of number j = b * w_c + (v - start of the range) is the clip
permute(j % n_c, n=n_c, seed=(seed + c * 0x9E3779B97F4A7C15) mod 2^64, epoch=j // n_c).
So each block of M holds each part exactly w_c times, and one part alone is the plain order.

A clip that cannot be read gives way to attempt a = 1, 2, ... of the same draw: the same expression
with the part's seed s replaced by mix((s + a * 0xD1B54A32D192ED03) mod 2^64), mix being the
finaliser of SplitMix64. Every rank finds the same one without asking another.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import gcd
from typing import Any

import numpy as np

from ingest.clip import digest_of

ORDER_VERSION = "order_v1"
ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SALT = 0xD1B54A32D192ED03
MASK_64 = (1 << 64) - 1


def _mix(x: np.ndarray) -> np.ndarray:
    """Finaliser of SplitMix64 over uint64 (arithmetic modulo 2^64)."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def _round_keys(seed: int, epochs: np.ndarray) -> np.ndarray:
    """Return the keys [round, epoch] of uint64 epochs."""
    state = _mix(np.array([seed & MASK_64], np.uint64) + _GOLDEN)
    state = _mix(state ^ epochs) + _GOLDEN
    rounds = np.arange(1, ROUNDS + 1, dtype=np.uint64) * _GOLDEN
    return _mix(state[None, :] + rounds[:, None])


def permute(positions: np.ndarray, *, n: int, seed: int, epoch: int | np.ndarray) -> np.ndarray:
    """Return the clip index (int64) at each position of an epoch; both lie in [0, n).

    `epoch` is one for all positions or an array with one for each. Raises ValueError for a
    position outside.
    """
    values = np.asarray(positions, np.int64)
    if n < 1 or (values.size and (values.min() < 0 or values.max() >= n)):
        raise ValueError(f"positions must lie in [0, {n})")
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    if isinstance(epoch, np.ndarray):
        keys = _round_keys(seed, epoch.astype(np.uint64))
    else:
        keys = _round_keys(seed, np.array([epoch & MASK_64], np.uint64))
    out = values.astype(np.uint64)
    pending = np.ones(out.shape, bool)
    while pending.any():
        left, right = out[pending] >> shift, out[pending] & mask
        for key in keys:
            own = key[pending] if len(key) > 1 else key
            left, right = right, left ^ (_mix(right + own) & mask)
        out[pending] = (left << shift) | right
        pending = out >= np.uint64(n)
    return out.astype(np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """Where positions lead: part, draw number in that part, its epoch there, clip index (int64)."""

    parts: np.ndarray
    numbers: np.ndarray
    epochs: np.ndarray
    indices: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """Parts of `sizes` clips, drawn in the exact proportion of `weights`; the law is above."""

    sizes: tuple[int, ...]
    weights: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse parts that cannot be drawn from; divide the weights by their gcd."""
        if not self.sizes or len(self.sizes) != len(self.weights):
            raise ValueError("a mixture needs at least one part and a weight for each")
        if min(self.sizes) < 1 or min(self.weights) < 1:
            raise ValueError(
                f"sizes {self.sizes}, weights {self.weights}: all must be integers of at least 1; "
                "leave a part out instead of giving it weight 0"
            )
        object.__setattr__(self, "weights", reduced(self.weights))

    def draws(self, positions: np.ndarray, *, seed: int) -> Draws:
        """Return the draws at positions of the endless order, counted from 0."""
        positions = np.asarray(positions, np.int64)
        if positions.size and positions.min() < 0:
            raise ValueError("positions count from 0")
        weights = np.array(self.weights, np.int64)
        ends, total = np.cumsum(weights), sum(self.weights)
        blocks, values = np.divmod(positions, total)
        if total > 1:
            values = permute(values, n=total, seed=seed, epoch=blocks)
        parts = np.searchsorted(ends, values, side="right")
        numbers = blocks * weights[parts] + values - (ends - weights)[parts]
        indices = np.empty_like(numbers)
        for part in np.unique(parts):
            own = parts == part
            indices[own] = self.clips(int(part), numbers[own], seed=seed)
        epochs = numbers // np.array(self.sizes, np.int64)[parts]
        return Draws(parts=parts, numbers=numbers, epochs=epochs, indices=indices)

    def clips(self, part: int, numbers: np.ndarray, *, seed: int, attempt: int = 0) -> np.ndarray:
        """Return the clip index of each draw of one part; attempts above 0 are substitutes."""
        size = self.sizes[part]
        own = (seed + part * int(_GOLDEN)) & MASK_64
        if attempt:
            salted = np.array([(own + attempt * _SALT) & MASK_64], np.uint64)
            own = int(_mix(salted)[0])
        numbers = np.asarray(numbers, np.int64)
        return permute(numbers % size, n=size, seed=own, epoch=numbers // size)


def reduced(weights: Sequence[int]) -> tuple[int, ...]:
    """Return integer weights divided by their greatest common divisor."""
    divisor = gcd(*weights)
    return tuple(weight // divisor for weight in weights)


def mixture_digest(digests: Sequence[str], weights: Sequence[int]) -> str:
    """Return what names a mixture in a cursor: for one part, the digest of its view."""
    if len(digests) == 1:
        return digests[0]
    return digest_of([list(pair) for pair in zip(digests, reduced(weights), strict=True)])


def slots(global_batch: int, world_size: int, rank: int) -> range:
    """Return the slots of a global batch that one rank reads; over all ranks they tile it."""
    if global_batch < 1 or not 0 <= rank < world_size:
        raise ValueError(f"no slots for batch {global_batch}, rank {rank} of {world_size}")
    start = global_batch * rank // world_size
    return range(start, global_batch * (rank + 1) // world_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """Where training stands, the same for all ranks: so many samples of one order were consumed.

    `view_digest` is that of the view, or of the mixture. Another global batch may continue.
    """

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
        return Mixture(sizes=(n,), weights=(1,)).draws(positions, seed=self.seed).indices
