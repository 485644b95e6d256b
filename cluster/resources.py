"""What the cluster has, and whether a piece of work fits: work that never fits must fail with a sentence, not wait forever."""

from collections.abc import Sequence
from dataclasses import dataclass

import ray


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What one worker asks for."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        """Refuse negative amounts."""
        if min(self.num_cpus, self.num_gpus, self.memory_bytes) < 0:
            raise ValueError("num_cpus, num_gpus and memory_bytes: at least 0")

    @property
    def named(self) -> dict[str, float]:
        """Ray's names of the amounts asked for."""
        amounts = {
            "CPU": self.num_cpus,
            "GPU": self.num_gpus,
            "memory": float(self.memory_bytes),
        }
        return {name: amount for name, amount in amounts.items() if amount}

    @property
    def options(self) -> dict[str, float]:
        """The same as options of a Ray task or actor."""
        words = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
        return {"num_cpus": 0.0} | {words[name]: amount for name, amount in self.named.items()}


class NotEnough(RuntimeError):
    """The cluster can never run this; the message says what is needed and what is there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One living machine of the cluster: its totals, not what is free now."""

    num_cpus: float
    num_gpus: float
    memory_bytes: float


def nodes() -> tuple[Node, ...]:
    """Return the living machines of the open session."""
    totals = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return tuple(
        Node(
            num_cpus=total.get("CPU", 0.0),
            num_gpus=total.get("GPU", 0.0),
            memory_bytes=total.get("memory", 0.0),
        )
        for total in totals
    )


def most_workers(need: Need) -> int:
    """Return how many workers of this size run at once on an otherwise idle cluster; a worker does not span machines."""
    return sum(_on(node, need) for node in nodes())


def fit(need: Need, *, num_workers: int) -> None:
    """Raise NotEnough unless that many workers of this size can run at once."""
    most = most_workers(need)
    if most >= num_workers:
        return
    has = nodes()
    there = ", ".join(
        f"{node.num_cpus:g} CPUs, {node.num_gpus:g} GPUs, {node.memory_bytes / 2**30:.1f} GiB"
        for node in has
    )
    asked = ", ".join(f"{amount:g} {name}" for name, amount in need.named.items())
    raise NotEnough(
        f"{num_workers} workers of {asked} each do not fit: the cluster's {len(has)} machines have "
        f"{there or 'nothing'}, which is enough for {most}; next: ask for fewer or smaller ones, "
        "or name a larger cluster with --address"
    )


def fit_all(asked: Sequence[tuple[Need, int]]) -> None:
    """Raise NotEnough unless all these workers, each kind in its number, can run at once."""
    for need, number in asked:
        fit(need, num_workers=number)
    if len(asked) < 2:
        return
    has = list(nodes())
    for need, number in sorted(asked, key=lambda one: tuple(-x for x in one[0].named.values())):
        for _ in range(number):
            room = next((n for n, node in enumerate(has) if _on(node, need)), None)
            if room is None:
                words = " and ".join(
                    f"{count} of {', '.join(f'{x:g} {name}' for name, x in one.named.items())}"
                    for one, count in asked
                )
                raise NotEnough(
                    f"{words} do not fit at once on {len(has)} machines; next: ask for fewer or smaller ones, "
                    "or name a larger cluster with --address"
                )
            has[room] = _less(has[room], need)


def _less(node: Node, need: Need) -> Node:
    return Node(
        num_cpus=node.num_cpus - need.num_cpus,
        num_gpus=node.num_gpus - need.num_gpus,
        memory_bytes=node.memory_bytes - need.memory_bytes,
    )


def _on(node: Node, need: Need) -> int:
    pairs = (
        (node.num_cpus, need.num_cpus),
        (node.num_gpus, need.num_gpus),
        (node.memory_bytes, float(need.memory_bytes)),
    )
    counts = [int(has / asked + 1e-9) for has, asked in pairs if asked]
    return min(counts) if counts else 1_000_000
