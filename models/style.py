"""Style: the image model's weights moved towards those of a fine-tuned one, motion left alone.

W(alpha) = alpha W_style + (1 - alpha) W_original over the base state (Lumiere, section 5); the
paper picks alpha in [0.5, 1] by hand for each style.
"""

import hashlib
import json
from collections.abc import Mapping

import torch


def interpolate(
    original: Mapping[str, torch.Tensor], style: Mapping[str, torch.Tensor], alpha: float
) -> dict[str, torch.Tensor]:
    """Return a new base state; alpha 0 is the original and 1 the style, both bit for bit.

    Floating tensors are blended (in fp32 where they are narrower), others are copied from the
    original. Raises ValueError naming tensors that are missing or differ in shape or type.
    """
    _check(original, style, alpha)
    if alpha in {0.0, 1.0}:
        chosen = style if alpha else original
        return {name: chosen[name].detach().clone() for name in original}
    return {name: _blend(old.detach(), style[name], alpha) for name, old in original.items()}


def digest(original: str, style: str, alpha: float) -> str:
    """Return the id of an interpolated state from the digests of its two sources."""
    whole = json.dumps(["kinoray/style/v1", original, style, abs(float(alpha))])
    return hashlib.sha256(whole.encode()).hexdigest()


def _blend(old: torch.Tensor, new: torch.Tensor, alpha: float) -> torch.Tensor:
    if not old.is_floating_point():
        return old.clone()
    new = new.detach().to(old.device)
    wide = torch.promote_types(old.dtype, torch.float32)
    mixed = torch.lerp(old.to(wide), new.to(wide), alpha).to(old.dtype)
    return torch.where(old == new, old, mixed)  # the sign of a zero too


def _check(
    original: Mapping[str, torch.Tensor], style: Mapping[str, torch.Tensor], alpha: float
) -> None:
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha {alpha} must lie in [0, 1]: 0 is the original, 1 the style")
    if set(original) != set(style):
        raise ValueError(
            f"the style lacks {sorted(set(original) - set(style))[:3]} and has besides "
            f"{sorted(set(style) - set(original))[:3]}: it must be the same image model, fine-tuned"
        )
    for name, old in original.items():
        new = style[name]
        if old.shape != new.shape or old.dtype != new.dtype:
            raise ValueError(
                f"{name} is {list(new.shape)} {new.dtype} in the style and {list(old.shape)} "
                f"{old.dtype} in the original: it must be the same image model, fine-tuned"
            )
