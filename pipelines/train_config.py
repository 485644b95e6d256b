"""The keys of a training recipe."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from cluster.session import Cluster
from ingest.select import Selection
from models import known, stunet
from models.diffusion import Schedule
from models.ssr import Config as SsrConfig
from pipelines.guard import Guard
from pipelines.keeper import Retention
from pipelines.optimizer import Optimizer
from pipelines.shelves import Mixed
from pipelines.showing import Show
from pipelines.trainee import Form


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """The text conditioner: "hashed" (length), "open_clip" (model, path or tag, sha256, pad, skip) or "t5" (folder, length)."""

    kind: Literal["hashed", "open_clip", "t5"] = "hashed"
    length: int = 0
    model: str = ""
    path: str = ""
    tag: str = ""
    sha256: str = ""
    pad: str = ""
    skip: int = 0
    folder: str = ""

    def settings(self, dim: int) -> dict[str, Any]:
        """Return what models.conditioning makes it of; tokens of hashed text are `dim` wide."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name)}
        return {"dim": dim, "length": 16, **given} if self.kind == "hashed" else given


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What to train.

    A base has the shape `model`, or is the image model of a diffusers folder (`image`); a motion model takes its base's
    shape; `ssr` shapes an SSR. `start` is a finished checkpoint of the same role to go on from: a style, a task, more of
    the same. `frames` is images a clip for a base and the window length for an SSR; a motion model sees whole clips.
    `masks` teaches motion and SSR to take known pixels; `image_share` of an SSR's steps see single frames. `select`
    chooses clips of `dataset` (at a tag or version `at`); clips of `mix` are drawn as well, each dataset in proportion
    to its integer `weight`. With `min_workers` a training goes on with fewer workers where machines are lost, at the
    same global batch.
    """

    family: Literal["lumiere"] = "lumiere"
    role: Literal["base", "motion", "ssr"]
    dataset: str
    at: str = ""
    select: Selection = field(default_factory=Selection)
    weight: int = 1
    mix: tuple[Mixed, ...] = ()
    out: Path
    steps: int
    global_batch: int
    base: Path | None = None
    model: stunet.Config | None = None
    image: Path | None = None
    ssr: SsrConfig | None = None
    start: Path | None = None
    frames: int = 8
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule | None = None
    text: Text = field(default_factory=Text)
    caption_dropout: float = 0.1
    masks: known.Mixture | None = None
    image_share: float = 0.0
    min_snr_gamma: float = 0.0  # 0 = off
    guard: Guard = field(default_factory=Guard)
    precision: Literal["fp32", "bf16"] = "fp32"
    form: Form = field(default_factory=Form)
    num_workers: int = 2
    min_workers: int = 0
    gpus_per_worker: float = 0.0
    threads_per_worker: int = 1
    decode_workers: int = 0
    max_bad_clips: int = 8
    checkpoint_every: int = 50
    retention: Retention = field(default_factory=Retention)
    probe_every: int = 0
    show: Show = field(default_factory=Show)
    max_failures: int = 2
    seed: int = 0
    tracking_uri: str = ""
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        """Check that the keys fit the role and each other."""
        needed = {"base": ("model", "image"), "motion": ("base",), "ssr": ("ssr",)}[self.role]
        given = [k for k in ("base", "model", "image", "ssr") if getattr(self, k) is not None]
        own = [key for key in given if key in needed]
        if len(own) != 1:
            which = "it" if len(needed) == 1 else "one of them"
            raise ValueError(f"{' or '.join(needed)}: a {self.role} training needs {which}")
        if given != own:
            strange = next(key for key in given if key not in needed)
            raise ValueError(f"{strange}: a {self.role} training does not take it, remove the key")
        self._check_numbers()
        self._check_workers()
        if self.masks is not None and self.role == "base":
            raise ValueError("masks: a base learns single frames; they are for motion and SSR")
        if not 0.0 <= self.image_share < 1.0 or (self.image_share and self.role != "ssr"):
            raise ValueError(
                "image_share: from 0 to below 1, for an SSR; a base learns images only, a motion model only what moves"
            )
        if self.ssr is not None and self.ssr.known != (self.masks is not None):
            raise ValueError("masks: an SSR has them exactly when ssr.known is true")

    def _check_numbers(self) -> None:
        if min([self.weight, *(part.weight for part in self.mix)]) < 1:
            raise ValueError("weight: an integer of at least 1; leave a dataset out instead")
        if self.decode_workers < 0 or self.max_bad_clips < 0 or self.probe_every < 0:
            raise ValueError("decode_workers, max_bad_clips and probe_every: at least 0")
        if self.frames < 1 or self.threads_per_worker < 1:
            raise ValueError("frames and threads_per_worker: at least 1")
        if not 0.0 <= self.caption_dropout <= 1.0 or self.min_snr_gamma < 0.0:
            raise ValueError("caption_dropout: between 0 and 1; min_snr_gamma: at least 0")
        network = self.ssr.network if self.ssr else self.model
        if network is not None and network.sample_px % network.px_multiple:
            raise ValueError(
                f"sample_px: {network.sample_px} must divide by {network.px_multiple}, "
                f"for {len(network.widths)} levels"
            )

    def _check_workers(self) -> None:
        least = 0 if self.image else 1
        if self.steps < least or self.num_workers < 1 or self.checkpoint_every < 1:
            raise ValueError("steps, num_workers and checkpoint_every: at least 1")
        if self.global_batch < self.num_workers:
            raise ValueError(f"global_batch: at least num_workers ({self.num_workers})")
        if not 0 <= self.min_workers <= self.num_workers:
            raise ValueError("min_workers: from 0 (all of them) to num_workers")
        if self.gpus_per_worker < 0:
            raise ValueError("gpus_per_worker: at least 0")

    @property
    def workers(self) -> int | tuple[int, int]:
        """How many workers: a number, or the least and the most."""
        if self.min_workers in {0, self.num_workers}:
            return self.num_workers
        return self.min_workers, self.num_workers
