"""Checkpoints of the three roles with random weights: enough for a set whose pixels nobody looks at."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from models import checkpoint, ssr, stunet
from models.conditioning import HashedText
from models.diffusion import Schedule
from pipelines import weights

NETWORK = stunet.Config(sample_px=16, widths=(8, 16), temporal_factor=(2,), text_dim=16, head_dim=8)
SSR = ssr.Config(sample_px=32, widths=(8, 16), text_dim=16, head_dim=8)


def made_roles(
    folder: Path, *, frames: int = 12, known: bool = False, seed: int = 0, px: int = 16
) -> dict[str, Any]:
    """Save base, motion and SSR; return the keys of a sample recipe that name them; base videos are `px` large."""
    network, enlarging = replace(NETWORK, sample_px=px), replace(SSR, sample_px=2 * px)
    told = {
        "base": _spec("base", network, frames),
        "motion": _spec("motion", replace(network, known=known), frames),
        "ssr": replace(_spec("ssr", enlarging.network, frames), ssr=enlarging),
    }
    digests: dict[str, str] = {}
    for number, (role, spec) in enumerate(told.items()):
        model = stunet.build(spec.network, seed=seed + number)
        _liven(model, seed=seed + number)
        parents = {"base": digests["base"]} if role == "motion" else {}
        checkpoint.save(
            folder / role / "checkpoint",
            role=role,
            spec=spec.to_json(),
            tensors={"params": weights.role_state(model, spec.role)},
            parents=parents,
            meta={},
        )
        digests[role] = checkpoint.load(folder / role / "checkpoint").digest
    return {"base": str(folder / "base"), "motion": folder / "motion", "ssr": folder / "ssr"}


def _spec(role: Any, network: stunet.Config, frames: int) -> weights.Spec:
    return weights.Spec(
        role=role,
        network=network,
        schedule=Schedule(),
        text=HashedText(dim=16),
        frames=frames,
        fps=16,
    )


def _liven(model: torch.nn.Module, *, seed: int) -> None:
    """Give what begins at zero some weight: else text, time and known pixels would change nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not bool(parameter.any()):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
