"""Short texts between the workers of a training, said and heard in its own thread: every worker must call these at once.

Tensors on each worker's own device and no pickle: torch's collectives for objects go over whatever device is current.
"""

import torch
import torch.distributed as dist

from cluster.group import Place


def by_all(text: str, place: Place) -> list[str]:
    """Return what each worker says, by rank."""
    if place.world_size == 1:
        return [text]
    own = _bytes(text, place)
    length = torch.tensor([own.numel()], device=place.device)
    lengths = [torch.zeros_like(length) for _ in range(place.world_size)]
    dist.all_gather(lengths, length)
    numbers = [int(n) for n in lengths]
    if max(numbers) == 0:
        return [""] * place.world_size
    padded = own.new_zeros(max(numbers))
    padded[: own.numel()] = own
    found = [torch.zeros_like(padded) for _ in numbers]
    dist.all_gather(found, padded)
    return [_text(data[:n]) for data, n in zip(found, numbers, strict=True)]


def by_first(text: str, place: Place) -> str:
    """Return what rank 0 says; the text of the others does not count."""
    if place.world_size == 1:
        return text
    own = _bytes(text, place)
    length = torch.tensor([own.numel()], device=place.device)
    dist.broadcast(length, src=0)
    data = own if place.rank == 0 else own.new_zeros(int(length))
    if int(length):
        dist.broadcast(data, src=0)
    return _text(data)


def _bytes(text: str, place: Place) -> torch.Tensor:
    data = bytearray(text.encode())
    found = torch.frombuffer(data, dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8)
    return found.to(place.device)


def _text(data: torch.Tensor) -> str:
    return data.cpu().numpy().tobytes().decode()
