"""How the pieces of one video's parts (models/shared.py) travel: threads, a process group, or Ray's object store.

Each way sends a neighbour the overlap and nothing more, counts its bytes, and leaves the same bits. A part that has lost
another raises PartnerLost: at once where the other's sockets close, else after `timeout_s`.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed
from ray.exceptions import RayError

from models.halo import HaloPlan, Piece
from pipelines.gang import TIMEOUT_S, Meeting, PartnerLost, Seat, lost, swapped

CPU = torch.device("cpu")
# torch's process groups are public, but it does not say so to type checkers
_c10d: Any = torch.distributed

Wire = Callable[[int, Mapping[int, torch.Tensor], Mapping[int, int]], Mapping[int, torch.Tensor]]


class Carrier:
    """A models.shared.Carry for one part and one video; `bytes_sent` counts payload, without headers.

    A neighbour gets one message a turn, all pieces in the plan's order. Pieces of any device and type come back as this
    part's own are. Raises PartnerLost, and ValueError when turns do not follow each other.
    """

    def __init__(self, halo: HaloPlan, part: int, wire: Wire) -> None:
        others = [p for p in range(halo.num_parts) if p != part]
        self._due = {p: due for p in others if (due := halo.between(p, part))}
        self._silent = not halo.exchanges
        self._wire, self._turn = wire, 0
        self.bytes_sent = 0

    def __call__(self, turn: int, outgoing: list[Piece], /) -> list[Piece]:
        """Send this turn's pieces and return those of the others."""
        if turn != self._turn:
            raise ValueError(f"turn {turn} where {self._turn} is due: a carrier serves one video")
        self._turn += 1
        if self._silent:
            return []
        # overlaps are mutual: a part that is told something tells something, and so knows its form
        like = outgoing[0][1] if outgoing else torch.empty(0)
        frame = like[:, :, :1].numel() if outgoing else 0
        frames = {p: [e.stop - e.start for e in due] for p, due in self._due.items()}
        sizes = {p: sum(n) * frame * like.element_size() for p, n in frames.items()}
        packed = _packed(outgoing)
        arrived = self._wire(turn, packed, sizes)
        self.bytes_sent += sum(message.numel() for message in packed.values())
        found: list[Piece] = []
        for sender, due in self._due.items():
            message = arrived[sender]
            if message.numel() != sizes[sender]:
                raise PartnerLost(
                    f"part {sender} sent {message.numel()} bytes where {sizes[sender]} were due: "
                    "it has another plan, size or type"
                )
            values = (
                message.to(like.device).view(like.dtype).split([n * frame for n in frames[sender]])
            )
            b, c, _, h, w = like.shape
            found += [(e, v.view(b, c, -1, h, w)) for e, v in zip(due, values, strict=True)]
        return found


def _packed(outgoing: list[Piece]) -> dict[int, torch.Tensor]:
    """Return the bytes for each receiver, flat; bytes, because not every transport knows every type."""
    told: dict[int, list[Piece]] = {}
    for piece in outgoing:
        told.setdefault(piece[0].receiver, []).append(piece)
    return {
        receiver: torch.cat(
            [v.contiguous().flatten() for _, v in sorted(pieces, key=lambda p: p[0].window)]
        ).view(torch.uint8)
        for receiver, pieces in told.items()
    }


def in_process(halo: HaloPlan, *, timeout_s: float = TIMEOUT_S) -> list[Carrier]:
    """Return the carrier of each part when all run in this process, a thread each."""
    left: dict[tuple[int, int, int], torch.Tensor] = {}
    news = threading.Condition()

    def wire(part: int) -> Wire:
        def swap(
            turn: int, packed: Mapping[int, torch.Tensor], sizes: Mapping[int, int]
        ) -> dict[int, torch.Tensor]:
            with news:
                left.update({(turn, part, receiver): m for receiver, m in packed.items()})
                news.notify_all()
                wanted = [(turn, sender, part) for sender in sizes]
                if not news.wait_for(lambda: all(key in left for key in wanted), timeout_s):
                    raise PartnerLost(f"part {part}: nothing came for {timeout_s:g} s")
                return {key[1]: left.pop(key) for key in wanted}

        return swap

    return [Carrier(halo, part, wire(part)) for part in range(halo.num_parts)]


@contextlib.contextmanager
def joined(
    seat: Seat, meeting: Meeting, *, device: torch.device = CPU, timeout_s: float = TIMEOUT_S
) -> Iterator[Carrier]:
    """Be in a process group with the other parts for the time of a with block: gloo, or NCCL for a CUDA device.

    `device` is where messages travel; on the CPU, pieces of another device are staged there. No part leaves the block before
    all have come to its end. The group is not the default one: torch.distributed may be in use beside it. Raises PartnerLost.
    """
    group = _Group(seat, meeting, device, timeout_s)
    try:
        yield Carrier(seat.halo, seat.part, group.swap)
        group.wait_for_all()
    finally:
        group.close()


class _Group:
    """A process group of this gang alone; only when nothing refers to it do its sockets close."""

    def __init__(
        self, seat: Seat, meeting: Meeting, device: torch.device, timeout_s: float
    ) -> None:
        self._seat, self._device, self._wait = seat, device, timedelta(seconds=timeout_s)
        store = _c10d.PrefixStore(seat.key, meeting.store)
        with lost(seat):
            self._group: Any = self._made(store, meeting.host)

    def _made(self, store: Any, host: str) -> Any:
        # torch's only way to say at which address gloo listens; a variable of the environment would hold for all groups
        kind: Any = _c10d.ProcessGroupGloo if self._device.type == "cpu" else _c10d.ProcessGroupNCCL
        if self._device.type == "cpu":
            options = kind._Options()  # noqa: SLF001
            options._devices = [kind.create_device(hostname=host)]  # noqa: SLF001
        else:
            options = kind.Options()
        options._timeout = self._wait  # noqa: SLF001
        return kind(store, self._seat.part, self._seat.parts, options)

    def swap(
        self, turn: int, packed: Mapping[int, torch.Tensor], sizes: Mapping[int, int]
    ) -> dict[int, torch.Tensor]:
        """Exchange all messages of a turn in one collective: its order cannot be wrong, so it cannot lock up."""
        del turn  # a group's collectives keep their order
        sent = [packed[p].numel() if p in packed else 0 for p in range(self._seat.parts)]
        due = [sizes.get(p, 0) for p in range(self._seat.parts)]
        nothing = torch.empty(0, dtype=torch.uint8, device=self._device)
        ours = torch.cat([nothing, *(packed[p].to(self._device) for p in sorted(packed))])
        theirs = torch.empty(sum(due), dtype=torch.uint8, device=self._device)
        with lost(self._seat):
            self._group.alltoall_base(theirs, ours, due, sent).wait(self._wait)
        return dict(enumerate(theirs.split(due)))

    def wait_for_all(self) -> None:
        """Return when every part is here: nobody closes a socket that another still reads."""
        with lost(self._seat):
            self._group.allreduce([torch.zeros(1, device=self._device)]).wait(self._wait)

    def close(self) -> None:
        """Close the sockets: parts that still wait for this one are told at once."""
        with contextlib.suppress(RuntimeError):
            self._group.abort()
        self._group = None


@contextlib.contextmanager
def stored(seat: Seat, box: Any, *, timeout_s: float = TIMEOUT_S) -> Iterator[Carrier]:
    """Carry pieces through Ray's object store for the time of a with block: from node to node, by reference.

    A part that fails gives the attempt up for all. One that is killed cannot: whoever sees it should ask the letterbox to
    `give_up(seat.key)`, else the others wait `timeout_s`. No part leaves the block before all have come to its end, because
    what it has put is lost with it. Raises PartnerLost.
    """

    def swap(
        turn: int, packed: Mapping[int, torch.Tensor], sizes: Mapping[int, int]
    ) -> dict[int, torch.Tensor]:
        # in a list, a reference travels as such; by itself, Ray would fetch what it stands for into the letterbox
        letters = {p: [ray.put(m.cpu().numpy())] for p, m in packed.items()}
        name, senders = f"turn {turn}", tuple(sizes)
        told = swapped(box, seat, name, letters, senders=senders, timeout_s=timeout_s)
        with lost(seat):
            arrays = ray.get([told[p][0] for p in senders], timeout=timeout_s)
        # a copy, because what the store holds is read-only
        return {p: torch.from_numpy(a.copy()) for p, a in zip(senders, arrays, strict=True)}

    others = [p for p in range(seat.parts) if p != seat.part]
    try:
        yield Carrier(seat.halo, seat.part, swap)
        done = dict.fromkeys(others, True)
        swapped(box, seat, "end", done, senders=others, timeout_s=timeout_s)
    except BaseException:
        with contextlib.suppress(RayError):
            box.give_up.remote(seat.key)
        raise
