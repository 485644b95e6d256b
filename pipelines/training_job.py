"""What a training worker is told."""

import math
from dataclasses import dataclass, field
from typing import Literal

from models import known
from pipelines import weights
from pipelines.guard import Guard
from pipelines.keeper import Retention
from pipelines.optimizer import Optimizer
from pipelines.shelves import Shelf
from pipelines.showing import Show
from pipelines.trainee import Form


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Everything a worker is told: plain values only, so that it travels."""

    spec: weights.Spec
    optimizer: Optimizer
    shelves: tuple[Shelf, ...]
    view_digest: str
    folder: str
    base: str
    identity: str
    seed: int
    steps: int
    global_batch: int
    frames: int
    caption_dropout: float
    checkpoint_every: int
    threads: int
    px: int
    decode_workers: int
    max_bad_clips: int
    image: str = ""
    start: str = ""
    precision: Literal["fp32", "bf16"] = "fp32"
    form: Form = field(default_factory=Form)
    guard: Guard = field(default_factory=Guard)
    retention: Retention = field(default_factory=Retention)
    masks: known.Mixture | None = None
    image_share: float = 0.0
    min_snr_gamma: float = math.inf
    probe_every: int = 0
    show: Show = field(default_factory=Show)
