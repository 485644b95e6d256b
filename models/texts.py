"""What all text conditioners do alike: take texts, run them through a model a few at a time.

Letters: B batch, N tokens, D width of tokens.
"""

from collections.abc import Callable, Sequence

import torch

# On a GPU; on a CPU each text goes alone, so that its bits do not depend on its neighbours.
_GPU_BATCH = 64


def checked(texts: Sequence[str]) -> list[str]:
    """Return the texts as a list; TypeError for a lone string or for anything that is none."""
    if isinstance(texts, str):
        raise TypeError(f"texts must be a list of strings: write [{texts!r}]")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {place} is {type(text).__name__}, not a string; no text is ''")
    return list(texts)


@torch.no_grad()  # not inference mode: a network that is trained may keep the tokens
def encoded(
    texts: Sequence[str],
    encode: Callable[[list[str]], torch.Tensor],
    *,
    device: str,
    shape: tuple[int, int],
) -> torch.Tensor:
    """Return tokens_BND in fp32 on the CPU; `shape` is (N, D) of what `encode` returns for a text.

    Raises ArithmeticError when a token is not finite.
    """
    whole = checked(texts)
    tokens_BND = torch.empty(len(whole), *shape)
    size = 1 if torch.device(device).type == "cpu" else _GPU_BATCH
    for first in range(0, len(whole), size):
        tokens_BND[first : first + size] = encode(whole[first : first + size]).float().cpu()
    if not tokens_BND.isfinite().all():
        raise ArithmeticError("a text token is not finite: damaged weights, or load with fp32")
    return tokens_BND
