"""One video's SSR windows on several sampling actors at once, and how many actors a video is worth.

For a single video it is the time that counts; of many, each actor makes its own, and only the last ones are shared.
Letters: T frames, H height, W width, C channels.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import ray

from cluster.pool import Part
from models import halo
from pipelines import exchange, gang
from pipelines.gang import Seat
from pipelines.maker import Maker
from pipelines.order import Order

# What sharing a video costs beside (meeting, gathering, its files), as a part of a video's time.
ROUND = 0.02


def enlarged(maker: Maker, order: Order, low_THWC: np.ndarray, part: Part, box: Any) -> np.ndarray:
    """Return the video enlarged by all parts, uint8 THWC, on the first; others return their own frames.

    Raises PartnerLost where another part is gone, after some time at the latest.
    """
    if maker.plan is None:
        raise ValueError("there are no windows to share")
    split = halo.plan(maker.plan, part.count, trim=maker.trim)
    if part.number >= split.num_parts:
        return low_THWC[:0]
    seat = Seat(gang=part.meeting, attempt=0, part=part.number, halo=split)
    if split.num_parts == 1:
        return maker.high(order, low_THWC)
    with exchange.joined(seat, gang.meet(box, seat)) as carry:
        own = maker.share(order, low_THWC, seat, carry)
    if part.number:
        # in a list, a reference travels as such
        gang.swapped(box, seat, "frames", {0: [ray.put(own)]}, senders=(), timeout_s=gang.TIMEOUT_S)
        return own
    others = range(1, split.num_parts)
    told = gang.swapped(box, seat, "frames", {}, senders=others, timeout_s=gang.TIMEOUT_S)
    with gang.lost(seat):
        rest = ray.get([told[p][0] for p in others], timeout=gang.TIMEOUT_S)
    return np.concatenate([own, *rest])


def widths(
    count: int,
    *,
    actors: int,
    windows: int,
    latency: bool,
    alone: Callable[[], float | None] = lambda: None,
) -> Iterator[int]:
    """Yield how many actors each of `count` videos is made by.

    All at once, as far as there are windows, where `latency` counts; else one each, and the last ones, fewer than there are
    actors, so that they all end soonest (`tail`); `alone` is asked then.
    """
    if latency:
        yield from (min(actors, windows) for _ in range(count))
        return
    last = count % actors
    yield from (1 for _ in range(count - last))
    yield from tail(last, actors=actors, windows=windows, alone=alone() if last else None)


def tail(count: int, *, actors: int, windows: int, alone: float | None) -> list[int]:
    """Return how many actors each of the last `count` videos is made by, in rounds of equal ones, the widest last.

    `alone` is the share of a video's time that is no window's, and that each of its actors spends. While it is not known, all
    run at the same time, which takes no longer than one actor each.
    """
    if not count:
        return []
    if alone is None:
        return [min(actors // count, windows)] * count
    lasts = {
        width: alone + (1.0 - alone) * -(-windows // width) / windows + ROUND
        for width in range(1, min(actors, windows) + 1)
    }
    # the time that a number of videos takes, and how wide those of its first round are
    best: list[tuple[float, int]] = [(0.0, 0)]
    for left in range(1, count + 1):
        best.append(
            min((s + best[max(left - actors // width, 0)][0], width) for width, s in lasts.items())
        )
    found: list[int] = []
    while len(found) < count:
        width = best[count - len(found)][1]
        found += [width] * min(actors // width, count - len(found))
    return sorted(found)
