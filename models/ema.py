"""Exponential moving average of weights, with warm-up: short runs do not average their start."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class EMA:
    """Average of named parameters; after n updates the decay is min(decay, (1 + n) / (10 + n))."""

    def __init__(self, parameters: Mapping[str, torch.Tensor], *, decay: float = 0.999) -> None:
        self.decay = decay
        self.num_updates = 0
        self.average = {name: p.detach().clone().float() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Take the parameters of one more training step into the average."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, average in self.average.items():
            average.lerp_(parameters[name].detach().float(), 1.0 - decay)

    @contextmanager
    def applied(self, parameters: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Put the average into the parameters for the time of a with block."""
        kept = {name: parameters[name].detach().clone() for name in self.average}
        self.copy_to(parameters)
        try:
            yield
        finally:
            _assign(parameters, kept)

    def copy_to(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Overwrite the parameters by the average."""
        _assign(parameters, self.average)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return tensors only, for safetensors."""
        return {"num_updates": torch.tensor(self.num_updates), **self.average}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from `state_dict`; ValueError when the names differ."""
        names = set(state) - {"num_updates"}
        if names != set(self.average):
            raise ValueError(f"EMA names differ: {sorted(names ^ set(self.average))[:3]}")
        self.num_updates = int(state["num_updates"])
        for name, average in self.average.items():
            if state[name].shape != average.shape:
                raise ValueError(
                    f"EMA of {name} is {(*state[name].shape,)}, not {(*average.shape,)}"
                )
            average.copy_(state[name])


@torch.no_grad()
def _assign(parameters: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)
