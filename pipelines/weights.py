"""Networks and their checkpoints: what a checkpoint must say so that a network can be built from it alone.

Roles (models.md 10): base = the image model, motion = the temporal modules trained over one named base, ssr = all of an SSR.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from models import checkpoint, stunet, style
from models.conditioning import TextConditioner, text_conditioner
from models.diffusion import Schedule
from models.ssr import Config as SsrConfig
from pipelines.identity import plain
from pipelines.output import WrongInput


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """How a role's network is built and what it was trained on; stored in every checkpoint as JSON."""

    role: stunet.Role
    network: stunet.Config
    schedule: Schedule
    text: TextConditioner
    frames: int
    fps: int
    ssr: SsrConfig | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` undoes it."""
        told = {"text": self.text.settings(), "text_digest": self.text.digest()}
        return {**plain(replace(self, text=None)), **told}  # type: ignore[arg-type]  told apart

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> "Spec":
        """Return the Spec; ValueError when the text conditioner of this version is not the recorded one."""
        text = text_conditioner(table["text"])
        if text.digest() != table["text_digest"]:
            raise ValueError(
                f"the checkpoint was trained with text conditioner {table['text_digest']}, "
                f"this version has {text.digest()}"
            )
        return cls(
            role=table["role"],
            network=stunet.Config(**_tuples(table["network"])),
            schedule=Schedule(**table["schedule"]),
            text=text,
            frames=table["frames"],
            fps=table["fps"],
            ssr=SsrConfig(**_tuples(table["ssr"])) if table["ssr"] else None,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A verified checkpoint: its spec, its weights (the averaged ones), its digest and its parents'."""

    spec: Spec
    state: dict[str, torch.Tensor]
    digest: str
    parents: dict[str, str]


def load(folder: Path, role: stunet.Role) -> Loaded:
    """Read the finished checkpoint under a training's output folder.

    WrongInput when it has another role, ValueError when it is damaged or another version's.
    """
    found = checkpoint.load(checkpoint_folder(folder))
    if found.role != role:
        raise WrongInput(f"{folder} holds a {found.role} checkpoint where a {role} one is needed")
    spec, state = Spec.from_json(found.spec), found.tensors["params"]
    _check_tensors(folder, spec, state)
    return Loaded(
        spec=spec,
        state=state,
        digest=found.digest,
        parents=found.parents,
    )


def _check_tensors(folder: Path, spec: Spec, state: Mapping[str, torch.Tensor]) -> None:
    with torch.device("meta"):
        model = stunet.build(spec.network, seed=0)
    wanted = {name: tensor.shape for name, tensor in role_state(model, spec.role).items()}
    found = {name: tensor.shape for name, tensor in state.items()}
    if wanted != found:
        name = next(n for n in sorted({*wanted, *found}) if wanted.get(n) != found.get(n))
        raise ValueError(
            f"{folder}: another version trained it: its {name} is {_shape(found, name)} and this version's network "
            f"{_shape(wanted, name)}"
        )


def _shape(shapes: Mapping[str, torch.Size], name: str) -> str:
    return f"of shape {tuple(shapes[name])}" if name in shapes else "not there"


def checkpoint_folder(folder: Path) -> Path:
    """Return where a training leaves its result; a checkpoint folder itself is taken as it is."""
    return folder if (folder / "checkpoint.json").exists() else folder / "checkpoint"


def network(spec: Spec, *, seed: int, base: Loaded | None = None) -> stunet.STUNet:
    """Return the network a role trains, its weights drawn from `seed`; motion starts on its base."""
    model = stunet.build(spec.network, seed=seed)
    if base is not None:
        stunet.load_base(model, base.state)
    return model


def role_state(model: stunet.STUNet, role: stunet.Role) -> dict[str, torch.Tensor]:
    """Return the role's own tensors."""
    if role == "base":
        return stunet.base_state(model)
    if role == "motion":
        return stunet.motion_state(model)
    return {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """Another base under the same motion, on purpose: `alpha` 0 is the motion's own base, 1 this one."""

    base: Loaded
    alpha: float

    def digest(self, original: Loaded) -> str:
        """Return the id of the base that comes of it."""
        return style.digest(original.digest, self.base.digest, self.alpha)


@lru_cache(maxsize=2)
def style_of(folder: str, alpha: float) -> Style:
    """Return the style that a fine-tuned base in `folder` makes; WrongInput when it is none."""
    return Style(base=load(Path(folder), "base"), alpha=alpha)


def video_model(base: Loaded, motion: Loaded, *, over: Style | None = None) -> stunet.STUNet:
    """Return base and motion as one network; the motion must have been trained over this base.

    Another base is named in `over`, never given in its place. Raises WrongInput for a base that the
    motion does not know, ValueError for a style that is no fine-tuned copy of it.
    """
    check_together({"base": base, "motion": motion})
    model = stunet.build(motion.spec.network, seed=0)
    state = base.state if over is None else _styled(base, over)
    stunet.load_base(model, state)
    stunet.load_motion(model, motion.state)
    return model.eval()


def _styled(base: Loaded, over: Style) -> dict[str, torch.Tensor]:
    if over.base.spec.network.image_config != base.spec.network.image_config:
        raise WrongInput("style: its image model has another shape than the base")
    return style.interpolate(base.state, over.base.state, over.alpha)


def check_together(loaded: Mapping[str, Loaded]) -> None:
    """Raise WrongInput unless the motion was trained over this base and the SSR takes its size."""
    base, motion = loaded["base"], loaded["motion"]
    if motion.parents.get("base") != base.digest:
        raise WrongInput(
            f"motion: was trained over base {motion.parents.get('base', '?')[:12]}, "
            f"not over {base.digest[:12]}; next: name its own base"
        )
    if "ssr" in loaded and (made := loaded["ssr"].spec.ssr) is not None:
        low, high = motion.spec.network.sample_px, made.sample_px
        if low * made.scale != high:
            raise WrongInput(
                f"ssr: makes {high} px from {high // made.scale} px, the base makes {low} px"
            )


def ssr_model(loaded: Loaded) -> stunet.STUNet:
    """Return the SSR network."""
    model = stunet.build(loaded.spec.network, seed=0)
    model.load_state_dict(loaded.state, strict=True)
    return model.eval()


def _tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in table.items()}
