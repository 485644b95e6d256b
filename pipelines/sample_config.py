"""What a recipe of `sample` says: prompts, checkpoints, solvers, windows, and who carries it out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.session import Cluster
from models import samplers, windows
from models.diffusion import Schedule
from pipelines.identity import plain

PUBLIC = "diffusers:"


@dataclass(frozen=True, kw_only=True, slots=True)
class Solver:
    """How a reverse process is solved; guidance_scale 1 is off."""

    sampler: Literal["ddim", "dpm++", "ddpm"] = "ddim"
    steps: int = 10
    guidance_scale: float = 1.0
    threshold: Literal["none", "static", "dynamic"] = "static"

    def __post_init__(self) -> None:
        """Refuse what no schedule of ours can be solved with."""
        samplers.Sampling(schedule=Schedule(), **plain(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """Overlapping temporal windows of the SSR and how much each counts where they overlap.

    The `trim` frames next to a cut do not count; every overlap must then have twice as many.
    """

    window: int = 28
    overlap: int = 2
    spread: Literal["even", "clamped", "exact"] = "even"
    weights: Literal["linear", "uniform", "hann"] = "linear"
    trim: int = 0

    def plan(self, frames: int) -> windows.Plan:
        """Return the windows over `frames` frames; ValueError when they cannot cover them."""
        found = getattr(windows, self.spread)(frames, self.window, self.overlap)
        windows.check_trim(found, self.trim)
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Public:
    """How a public pipeline is run; `fps` 0 is its own, `more` are further arguments of its call (diffusers' words)."""

    frames: int = 16
    height_px: int = 256
    width_px: int = 256
    steps: int = 25
    guidance_scale: float = 7.5
    fps: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check counts; whether the pipeline can make them is looked at with its folder."""
        if min(self.frames, self.height_px, self.width_px, self.steps) < 1 or self.fps < 0:
            raise ValueError("frames, height_px, width_px, steps: at least 1; fps: at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """An evaluation set: `prompts` is a file of prompts or a dataset whose captions are these.

    `base` "diffusers:PATH" is a local folder of a public pipeline, run as `public` says. `captions` and `split` choose from
    MSR-VTT's annotations. More prompts or seeds extend a set: only what is new is made. With `ssr_actors` the base videos are
    made by `num_actors` and enlarged by others at the same time; with 0 each actor does both. `mode` "latency" spreads the
    windows of each video over all actors that enlarge; "throughput" gives each actor a video of its own, and spreads the last
    ones only. `micro_batch` windows share a pass; 0 = measured once, when the set is begun. `negative` is what guidance leads
    away from, where a prompt has none of its own; `composite` is how known pixels are put into what is made.
    """

    prompts: str
    base: str
    out: Path
    motion: Path | None = None
    ssr: Path | None = None
    public: Public = field(default_factory=Public)
    captions: Literal["first", "all"] = "first"
    split: str = ""
    max_prompts: int | None = None
    num_seeds: int = 1
    negative: str = ""
    base_solver: Solver = field(default_factory=Solver)
    ssr_solver: Solver = field(default_factory=Solver)
    windows: Windows = field(default_factory=Windows)
    augment_level: float = 0.1
    composite: Literal["none", "final", "every_step"] = "final"
    micro_batch: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    mode: Literal["throughput", "latency"] = "throughput"
    num_actors: int = 2
    ssr_actors: int = 0
    threads_per_actor: int = 1
    gpus_per_actor: float = 0.0
    max_attempts: int = 3
    seed: int = 0
    tracking_uri: str = ""
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        """Check counts and shares."""
        counts = (self.num_seeds, self.num_actors, self.threads_per_actor, self.max_attempts)
        if min(counts) < 1:
            raise ValueError("num_seeds, num_actors, threads_per_actor, max_attempts: at least 1")
        if min(self.micro_batch, self.ssr_actors, self.gpus_per_actor) < 0:
            raise ValueError("micro_batch, ssr_actors, gpus_per_actor: at least 0")
        if self.max_prompts is not None and self.max_prompts < 1:
            raise ValueError("max_prompts: at least 1")
        if not 0.0 <= self.augment_level < 1.0:
            raise ValueError("augment_level: at least 0 and below 1")
        if self.ssr_actors and self.ssr is None:
            raise ValueError("ssr_actors: there is no ssr to give them")

    @property
    def public_folder(self) -> Path | None:
        """The folder of the public pipeline, None where base and motion are ours."""
        return Path(self.base.removeprefix(PUBLIC)) if self.base.startswith(PUBLIC) else None
