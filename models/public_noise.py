"""Noise of ours for code that is not: what draws normals inside gets addressed ones, any other draw is refused.

A public pipeline draws its first latents, its scheduler's noise and its decoder's with torch.randn, for
the whole batch at once. Here each sample of the batch gets its own by (seed, stream, step, frame) of
models/noise.py: the first draw of a pass is stream "initial", draw n after it "step" n. Batch, order and
torch's own generators cannot show. Letters: B samples of a pass, T frames.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from models import noise

# The draws are addressed in a way of this module's, which decides pixels as the numbers do.
NOISE_ID = f"{noise.NOISE_ID}/drawn/v1"

_REFUSED = {
    *(torch.rand, torch.rand_like, torch.randint, torch.randint_like, torch.randperm),
    *(torch.normal, torch.bernoulli, torch.multinomial, torch.poisson),
    *(torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.random_),
    *(torch.Tensor.bernoulli, torch.Tensor.bernoulli_, torch.Tensor.exponential_),
    *(torch.Tensor.multinomial, torch.Tensor.geometric_, torch.Tensor.log_normal_),
    torch.Tensor.cauchy_,
}


class Drawn(TorchFunctionMode):
    """While it is entered, torch.randn and randn_like give the noise of `seeds`, one seed a sample.

    `frames_at` is the axis of time in five-dimensional latents; of other shapes a row of the first axis
    counts as a frame. Enter a new one for each pass: it counts the draws. ValueError for a draw that
    cannot be told apart by sample or is of another kind.
    """

    def __init__(self, seeds: Sequence[int], *, frames_at: int = 2) -> None:
        super().__init__()
        self._seeds, self._frames_at = tuple(seeds), frames_at
        self._count = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer a draw, refuse one of another kind, let everything else pass."""
        told = dict(kwargs or {})
        if func is torch.randn:
            shape = told.pop("size", args)
            if len(shape) == 1 and not isinstance(shape[0], int):
                shape = shape[0]
            return self._normals(tuple(shape), **_form(told))
        if func is torch.randn_like:
            like = args[0] if args else told.pop("input")
            own = {"dtype": like.dtype, "device": like.device}
            return self._normals(tuple(like.shape), **own | _form(told))
        if func in _REFUSED:
            raise ValueError(
                f"draws with {func.__name__}, which no sample's seed can address: use another scheduler "
                "or pipeline"
            )
        return func(*args, **told)

    def _normals(
        self,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> torch.Tensor:
        rows = len(self._seeds)
        if not shape or shape[0] % rows:
            raise ValueError(
                f"draws noise of shape {shape} for {rows} samples at once, which is not told apart by "
                "sample: use micro_batch 1"
            )
        stream = "initial" if self._count == 0 else "step"
        step, self._count = self._count, self._count + 1
        # Rows of one sample lie together, as (B*T, C, H, W) does; then they are its frames.
        axis = self._frames_at if len(shape) == 5 and shape[0] == rows else 0
        own = (shape[0] // rows, *shape[1:])
        count = own[axis]
        drawn = noise.normals(
            self._seeds,
            stream=stream,
            step=step,
            frames_BT=torch.arange(count).expand(rows, -1),
            shape=own[:axis] + own[axis + 1 :],
            device=torch.device("cpu") if device is None else device,
        )
        placed = drawn.movedim(1, 1 + axis).reshape(shape)
        return placed.to(dtype or torch.get_default_dtype())


def _form(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of torch.randn's arguments shapes the answer; the generator is ours."""
    return {name: told[name] for name in ("dtype", "device") if told.get(name) is not None}


@contextmanager
def watched(device: torch.device) -> Iterator[None]:
    """Raise ValueError if what runs inside drew from torch's or numpy's global generators."""
    before = _states(device)
    yield
    if _states(device) != before:
        raise ValueError("draws numbers that no sample's seed can address: use another pipeline")


def _states(device: torch.device) -> list[bytes]:
    states = [torch.get_rng_state().numpy().tobytes()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device).numpy().tobytes())
    kind, words, *rest = np.random.get_state(legacy=True)
    return [*states, np.asarray(words).tobytes(), repr((kind, rest)).encode()]
