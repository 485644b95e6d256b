"""What the networks that a recipe names can make, looked at before any of them is built.

Our own are checkpoints by role; those of others are a folder of diffusers, named "diffusers:PATH".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models import noise
from pipelines import weights
from pipelines.output import WrongInput
from pipelines.prompts import Prompt
from pipelines.sample_config import PUBLIC, Config

# Tasks that tell the network of known pixels.
KNOWING = frozenset({"image", "first_last", "predict", "inpaint", "outpaint", "cinemagraph"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Makes:
    """Videos of `frames` frames at `fps`, by weights of these digests and this noise; `known` pixels are understood."""

    digests: Mapping[str, str]
    frames: int
    fps: int
    noise_id: str
    known: bool
    base: weights.Loaded | None = None

    def weights_for(self, prompt: Prompt) -> dict[str, str]:
        """Return the digests of what makes a prompt's video; WrongInput where its task or style is not known here."""
        if prompt.task != "text" and self.base is None:
            raise WrongInput(
                f"prompt {prompt.id}: its task is {prompt.task}, and public pipelines are sampled from texts alone; "
                "next: leave such prompts out"
            )
        if prompt.task in KNOWING and not self.known:
            raise WrongInput(
                f"prompt {prompt.id}: its task is {prompt.task}, and the motion model was trained without masks; "
                "next: train one with [masks], or leave such prompts out"
            )
        if not prompt.style:
            return dict(self.digests)
        if self.base is None:
            raise WrongInput(
                f"prompt {prompt.id}: a public pipeline has no style; next: leave it out"
            )
        over = weights.style_of(prompt.style, prompt.alpha)
        return {**self.digests, "base": over.digest(self.base)}


def makes(config: Config) -> Makes:
    """Look at the weights of a recipe; WrongInput, ValueError or FileNotFoundError when they are not there or do not fit."""
    if folder := config.public_folder:
        return _public(config, folder)
    if config.motion is None:
        raise WrongInput("motion: Field required")
    loaded = {
        "base": weights.load(Path(config.base), "base"),
        "motion": weights.load(config.motion, "motion"),
    }
    if config.ssr is not None:
        loaded["ssr"] = weights.load(config.ssr, "ssr")
    weights.check_together(loaded)
    spec = loaded["motion"].spec
    return Makes(
        digests={role: one.digest for role, one in loaded.items()},
        frames=spec.frames,
        fps=spec.fps,
        noise_id=noise.NOISE_ID,
        known=spec.network.known,
        base=loaded["base"],
    )


def _public(config: Config, folder: Path) -> Makes:
    from models import public, public_noise  # noqa: PLC0415  they load all of diffusers

    for key in ("motion", "ssr"):
        if getattr(config, key) is not None:
            raise WrongInput(
                f"{key}: a public pipeline ({PUBLIC}...) makes the whole video; next: leave it out"
            )
    found = public.read(folder)
    told = config.public
    found.check(frames=told.frames, size_px=(told.height_px, told.width_px))
    return Makes(
        digests={"base": found.digest()},
        frames=told.frames,
        fps=told.fps or round(found.fps(told.more)),
        noise_id=public_noise.NOISE_ID,
        known=False,
    )
