"""The network in training on one worker: precision, accumulation, data-parallel forms, its optimizer and its average.

DDP copies the network to every worker; FSDP2 shards parameters, gradients, optimizer and average over them, block by
block as they are called. What a checkpoint holds is the same for both: tensors by their plain names, in pieces of rows, so
that a training may go on in the other form or on another number of workers.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from cluster.group import Place
from models import checkpoint, image_unet, objective, stunet
from models.ema import EMA
from pipelines import weights
from pipelines.optimizer import Optimizer
from pipelines.pieces import Groups
from pipelines.pieces_read import Kept

TEMPORAL = "motion."  # how the names of temporal modules begin


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How the network is trained, without changing what is learned but for rounding.

    `micro_batch` is the most clips a worker takes through the network at once (0 = its whole share), gradients are
    summed.
    """

    parallel: Literal["ddp", "fsdp"] = "ddp"
    micro_batch: int = 0
    checkpointing: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.micro_batch < 0:
            raise ValueError("micro_batch: at least 0")


class Trainee:
    """A role's network on this worker, from its first weights on."""

    def __init__(
        self,
        told: objective.Objective,
        spec: weights.Spec,
        *,
        form: Form,
        precision: str,
        optimizer: Optimizer,
        seed: int,
        start: Mapping[str, torch.Tensor],
        place: Place,
    ) -> None:
        """Build the network; `start` are tensors to begin from, by their names in the network.

        `precision` bf16 is autocast: weights, norms, loss and average stay fp32.
        """
        self.objective, self.spec, self.form, self.place = told, spec, form, place
        self._settings, self._bf16 = optimizer, precision == "bf16"
        shape = replace(spec.network, checkpointing=form.checkpointing)
        self.model = stunet.build(shape, seed=seed)
        self.model.load_state_dict({**self.model.state_dict(), **start}, strict=True)
        self.model.to(place.device)
        stunet.trainable(self.model, spec.role)
        self.network = self._wrapped()
        # sharding puts other parameters in the place of these: named after it
        self.parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = optimizer.build(self.parameters.values(), place.device)
        self.ema = EMA(self.parameters, decay=optimizer.ema_decay)

    def _wrapped(self) -> nn.Module:
        if self.form.compiled:
            self.model.compile(fullgraph=True)
        if self.place.world_size == 1:
            return self.model
        if self.form.parallel == "ddp":
            # Else DDP orders its buckets anew after the first step of each process, and three workers or more would
            # add in another order there than a run that was not stopped.
            return DistributedDataParallel(self.model, find_unused_parameters=True)
        mesh = init_device_mesh(self.place.device.type, (self.place.world_size,))
        for module in stunet.blocks(self.model):
            fully_shard(module, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        return self.model

    def gradients(self, clips: objective.Clips, *, step: int, global_batch: int) -> float:
        """Sum the gradients of the global batch and return its mean loss; `clips` are this worker's share.

        Every worker makes as many passes as the one with the largest share, because each pass is a collective.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.place.device)
        parts = list(self._parts(clips, global_batch))
        for number, (part, counted) in enumerate(parts):
            with self._syncing(last=number + 1 == len(parts)), self._autocast():
                loss_B = objective.losses(self.objective, self.network, part, step=step)
                # workers are averaged; dividing by the global batch keeps uneven shares exact
                share = loss_B.sum() * (counted / global_batch)
                (share * self.place.world_size).backward()
            total += share.detach()
        self._forget_idle(step)
        if self.place.world_size > 1:
            dist.all_reduce(total)
        return float(total)

    def _forget_idle(self, step: int) -> None:
        """Leave what had no part in this step as it is: a gradient of zero would still be a step of Adam's."""
        if self.spec.role == "ssr" and not self.objective.temporal(step):
            for name, parameter in self.parameters.items():
                if name.startswith(TEMPORAL):
                    parameter.grad = None

    def clipped(self) -> float:
        """Clip the gradients and return their norm before it."""
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self._settings.clip_norm)
        return float(whole(norm))

    def update(self, rate: float) -> None:
        """Take one optimizer step and let the average follow."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.ema.update(self.parameters)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[stunet.STUNet]:
        """Give the network with the averaged weights for the time of a with block."""
        with self.ema.applied(self.parameters), self._autocast():
            yield self.model

    def probe(self, clips: list[objective.Clips], *, averaged: bool) -> float:
        """Return the loss on fixed draws; under FSDP every worker must call it."""
        with self.averaged() if averaged else self._autocast():
            return objective.probe(self.objective, self.model, clips)

    def groups(self) -> tuple[Groups, list[Any]]:
        """Return what a checkpoint holds, as it lies on this worker (no copies), and the optimizer's groups."""
        tensors, settings = checkpoint.pack_optimizer(self.optimizer)
        own = {
            "params": dict(self.parameters),
            "ema": self.ema.state_dict(),
            "optimizer": tensors,
        }
        return own, settings

    def restore(self, kept: Kept, settings: list[Any]) -> None:
        """Continue from a checkpoint; each worker reads its own rows."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(kept.like("params", name, parameter))
        average = self.ema.average
        self.ema.load_state_dict(
            {name: kept.like("ema", name, average.get(name)) for name in kept.names("ema")}
        )
        parameters = list(self.parameters.values())
        tensors = {}
        for name in kept.names("optimizer"):
            number = int(name.split(".")[0])
            like = parameters[number] if kept.shape("optimizer", name) else None
            tensors[name] = kept.like("optimizer", name, like)
        checkpoint.unpack_optimizer(self.optimizer, tensors, settings)

    def published(self) -> dict[str, torch.Tensor]:
        """Return the role's averaged weights, whole; every worker must call it under FSDP."""
        with self.ema.applied(self.parameters):
            return self._gathered(weights.role_state(self.model, self.spec.role))

    def _gathered(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return whole tensors on the CPU, copied, on rank 0, which writes them; under FSDP one is gathered at a time."""
        kept = {}
        for name, tensor in state.items():
            full = whole(tensor)
            if self.place.rank == 0:
                kept[name] = full.detach().to("cpu", copy=True)
        return kept

    def _parts(
        self, clips: objective.Clips, global_batch: int
    ) -> Iterator[tuple[objective.Clips, float]]:
        most, own = -(-global_batch // self.place.world_size), len(clips.clip_ids)
        passes = -(-most // (self.form.micro_batch or most))
        for number in range(passes):
            first, last = own * number // passes, own * (number + 1) // passes
            # a worker with nothing left repeats a clip that does not count
            rows = slice(first, last) if last > first else slice(0, 1)
            yield clips.rows(rows), float(last > first)

    def _syncing(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Exchange gradients in the last pass only."""
        if isinstance(self.network, FSDPModule):
            self.network.set_requires_gradient_sync(last)
        elif isinstance(self.network, DistributedDataParallel) and not last:
            return self.network.no_sync()
        return contextlib.nullcontext()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.place.device.type, torch.bfloat16, enabled=self._bf16)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a sharded tensor gathered, any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def start_from(
    spec: weights.Spec, *, base: weights.Loaded | None, image: str, start: str
) -> dict[str, torch.Tensor]:
    """Return the tensors a training begins with.

    Those of its base, or of the image model in a diffusers folder, and of a finished checkpoint of its own role.
    """
    found = {f"unet.{name}": t for name, t in base.state.items()} if base else {}
    if image:
        read = image_unet.read(Path(image))[1]
        found = {f"unet.{name}": t.float() for name, t in read.items()}
    if start:
        prefix = {"base": "unet.", "motion": "motion.", "ssr": ""}[spec.role]
        state = weights.load(Path(start), spec.role).state
        found |= {prefix + name: t for name, t in state.items()}
    return found
