"""One sample to make, named by what decides its pixels."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One sample to make."""

    identity: str
    prompt_id: str
    prompt: str
    index: int
    seed: int
