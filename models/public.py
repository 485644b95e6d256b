"""Public text-to-video pipelines: a local folder of diffusers, checked before anything heavy is read.

The folder is what save_pretrained writes: model_index.json names a pipeline class of diffusers and its
parts, each a folder of that name (models/public_parts.py). Nothing is unpickled, fetched or run from the
folder. What samples with it is models/public_pipeline.py.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm
from pathlib import Path
from typing import Any

import diffusers
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from models import clip_weights, public_parts
from models.public_parts import AGAIN, Part, as_json

_VERSION = "public/v1"  # raise it when the same files would give other pixels
INDEX = "model_index.json"

# Those of diffusers 0.42 that make a video of a text alone, with the frames a second they were made for;
# some say it in their arguments, which counts before this.
FPS: dict[str, float] = {
    "AllegroPipeline": 15.0, "AnimateDiffPAGPipeline": 8.0, "AnimateDiffPipeline": 8.0,
    "AnimateDiffSDXLPipeline": 8.0, "AnyFlowPipeline": 16.0, "CogVideoXPipeline": 8.0,
    "EasyAnimatePipeline": 8.0, "HunyuanVideo15Pipeline": 24.0, "HunyuanVideoPipeline": 24.0,
    "Kandinsky5T2VPipeline": 24.0, "LTX2Pipeline": 24.0, "LTXPipeline": 25.0, "LattePipeline": 8.0,
    "MochiPipeline": 30.0, "MotifVideoPipeline": 24.0, "SanaVideoPipeline": 16.0,
    "SkyReelsV2DiffusionForcingPipeline": 24.0, "SkyReelsV2Pipeline": 24.0,
    "TextToVideoSDPipeline": 8.0, "WanPipeline": 16.0,
}  # fmt: skip
_FRAMES, _RATES = ("num_frames", "video_length", "frames"), ("frame_rate", "fps")
_TEMPORAL = (
    "vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor",
)  # fmt: skip
_SPATIAL = (
    "vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_spatial_scale_factor",
    "vae_scale_factor",
)  # fmt: skip
# Its decoder takes latents in pairs, after the first.
_PAIRS = frozenset({"CogVideoXPipeline"})
# Their decoders make whole groups of frames; those of the others make a first one by itself.
_WHOLE_GROUPS = frozenset({"AllegroPipeline"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Public:
    """A checked folder: the pipeline's class, its parts, its other settings, the files that decide pixels."""

    folder: Path
    made: Any
    parts: tuple[Part, ...]
    settings: Mapping[str, Any]
    files: tuple[Path, ...]

    @property
    def pipeline(self) -> str:
        """The name of the pipeline's class."""
        return self.made.__name__

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of a call of the pipeline, with their defaults."""
        return _arguments(self.made.__call__)

    @property
    def frames_argument(self) -> str:
        """Its own word for the number of frames."""
        return next(name for name in _FRAMES if name in self.arguments)

    def digest(self) -> str:
        """Return the id of all files that decide pixels, wherever the folder lies; each is read once a process."""
        told = {path.relative_to(self.folder).as_posix(): _sha256(path) for path in self.files}
        whole = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        return f"{_VERSION}/{whole}"

    def fps(self, more: Mapping[str, Any] | None = None) -> float:
        """Return frames a second: what `more` tells the pipeline, else what it was made for."""
        for name in _RATES:
            if name in self.arguments:
                return float((more or {}).get(name, self.arguments[name]))
        return FPS[self.pipeline]

    def defaults(self) -> dict[str, Any]:
        """Return the class's frames, size_px (height, width), steps, guidance_scale; None where it has none."""
        told = self.arguments
        size = told["height"], told["width"]
        return {
            "frames": told[self.frames_argument],
            "size_px": None if None in size else size,
            "steps": told.get("num_inference_steps"),
            "guidance_scale": told.get("guidance_scale"),
        }

    def check(self, *, frames: int, size_px: tuple[int, int]) -> None:
        """Raise ValueError for frames or a size (height, width) that it cannot make; no weights are read."""
        with public_parts.quiet():
            networks = {p.name: public_parts.blank(p) for p in self.parts if p.kind == "network"}
            pipe = self.assembled(networks)
        check_shape(pipe, frames=frames, size_px=size_px)

    def assembled(self, parts: Mapping[str, Any]) -> Any:
        """Return the pipeline of these parts; a part that is not given is None."""
        free = dict.fromkeys(_needed(self.made))
        try:
            return self.made(**free | dict(self.settings) | dict(parts))
        except (ImportError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.folder / INDEX}: {self.pipeline}: {reason}") from error


def read(folder: Path) -> Public:
    """Return a pipeline's folder as it describes itself; nothing heavy is read.

    ValueError in one line, with the next step, when it is not there, makes no videos of texts alone, lacks
    a part, has its weights as pickles or damaged, or wants to run code of its own.
    """
    path = folder / INDEX
    if not path.is_file():
        raise ValueError(
            f"no {path}: name the folder that a pipeline's save_pretrained wrote, or download all of it"
        )
    index = as_json(path)
    made = _pipeline(path, index)
    told = {name: value for name, value in index.items() if not name.startswith("_")}
    named = {n: v for n, v in told.items() if isinstance(v, list) and v != [None, None]}
    if strange := sorted(told.keys() - _arguments(made.__init__).keys()):
        raise ValueError(
            f"{path} has {', '.join(strange)}, which {made.__name__} of diffusers {diffusers.__version__} "
            "does not take: use the version that saved it"
        )
    if lacking := sorted(_needed(made) - named.keys() - {*made._optional_components}):  # noqa: SLF001
        raise ValueError(f"{path} lacks {', '.join(lacking)}: {AGAIN}")
    parts = tuple(public_parts.read(path, name, value) for name, value in named.items())
    return Public(
        folder=folder,
        made=made,
        parts=parts,
        settings={n: v for n, v in told.items() if not isinstance(v, list)},
        files=(path, *(file for part in parts for file in public_parts.files(part))),
    )


def _pipeline(path: Path, index: Mapping[str, Any]) -> Any:
    """Return the class of the pipeline, of the installed diffusers."""
    name = index.get("_class_name")
    if not isinstance(name, str) or any("custom_pipeline" in key for key in index):
        raise ValueError(
            f"{path} wants code of its own, which is not run: use a class of diffusers"
        )
    made = getattr(diffusers, name, None) if name.isidentifier() else None
    pipeline = isinstance(made, type) and issubclass(made, DiffusionPipeline)
    if not pipeline:
        raise ValueError(
            f"{path}: {name} is no pipeline of diffusers {diffusers.__version__}, and code of others is "
            "not run: use a class of diffusers"
        )
    if name not in FPS:
        raise ValueError(
            f"{path}: {name} does not make videos of a text alone: use one of {', '.join(sorted(FPS))}"
        )
    return made


def _arguments(function: Any) -> dict[str, Any]:
    found = inspect.signature(function).parameters
    return {name: p.default for name, p in found.items() if name != "self"}


def _needed(made: Any) -> set[str]:
    return {n for n, v in _arguments(made.__init__).items() if v is inspect.Parameter.empty}


def check_shape(pipe: Any, *, frames: int, size_px: tuple[int, int]) -> None:
    """Raise ValueError for frames or a size (height, width) that the pipeline `pipe` cannot make."""
    name = type(pipe).__name__
    # Wan 2.2 may have its second transformer only.
    networks = (getattr(pipe, n, None) for n in ("transformer", "unet", "transformer_2"))
    network = next(found for found in networks if found is not None).config
    group = _first(pipe, _TEMPORAL) * (2 if name in _PAIRS else 1)
    extra = 0 if group == 1 or name in _WHOLE_GROUPS else 1
    if frames < 1 or (frames - extra) % group:
        low = (frames - extra) // group * group + extra
        near = " or ".join(str(n) for n in (low, low + group) if n > 0)
        rule = f"a multiple of {group}{' and 1 more' if extra else ''}"
        raise ValueError(f"{name} makes {rule} frames, not {frames}: take {near}")
    exact, most = network.get("video_length"), network.get("motion_max_seq_length")
    if exact and frames not in {1, exact}:
        raise ValueError(f"{name}: this model makes {exact} frames, not {frames}: take {exact}")
    if most and frames > most:
        raise ValueError(f"{name}: this model makes at most {most} frames, not {frames}")
    patch = network.get("patch_size") or 1
    # All of them want 8 at least, whatever their decoder's factor.
    multiple = lcm(8, _first(pipe, _SPATIAL) * (patch if isinstance(patch, int) else patch[-1]))
    if min(size_px) < 1 or any(px % multiple for px in size_px):
        raise ValueError(
            f"{name}: height and width must be multiples of {multiple} px, not {size_px[0]} and {size_px[1]}"
        )


def _first(pipe: Any, names: tuple[str, ...]) -> int:
    return next((found for name in names if (found := getattr(pipe, name, None))), 1)


def _sha256(path: Path) -> str:
    if path.suffix == ".safetensors":
        return clip_weights.verified(path, "")
    return hashlib.sha256(path.read_bytes()).hexdigest()
