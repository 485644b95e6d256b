"""What a training recipe makes: the network with what it is trained on, and the digests of what goes in."""

import json
from dataclasses import replace
from pathlib import Path

from models import checkpoint, image_unet, stunet
from models.conditioning import text_conditioner
from models.diffusion import Schedule
from pipelines import weights
from pipelines.output import WrongInput
from pipelines.shelves import Shelves
from pipelines.train_config import Config


def spec_of(config: Config, shelves: Shelves, base: weights.Loaded | None) -> weights.Spec:
    """Return the Spec; WrongInput where the recipe, its dataset and its base do not fit."""
    spec = _over(config, shelves, base) if base else _fresh(config, shelves)
    if spec.text.dim != spec.network.text_dim:
        raise WrongInput(
            f"text: its tokens are {spec.text.dim} wide, the network takes {spec.network.text_dim}"
        )
    return spec


def inputs_of(config: Config, base: weights.Loaded | None) -> dict[str, str]:
    """Return the digests of the weights that go in."""
    found = {"base": base.digest} if base else {}
    if config.start:
        found["start"] = weights.load(config.start, config.role).digest
    if config.image:
        found["image"] = checkpoint.state_digest(image_unet.read(config.image)[1])
    return found


def _over(config: Config, shelves: Shelves, base: weights.Loaded) -> weights.Spec:
    """Return a motion model's Spec: its base's, with known columns where masks are trained."""
    frames, network = shelves.frames, base.spec.network
    if frames % network.frames_multiple:
        raise WrongInput(
            f"clips of {frames} frames do not divide by the base's {network.frames_multiple}"
        )
    if base.spec.frames != frames:
        raise WrongInput(
            f"the base was trained on clips of {base.spec.frames} frames, "
            f"{config.dataset} holds clips of {frames}"
        )
    network = replace(network, known=config.masks is not None)
    return replace(base.spec, role="motion", network=network)


def _fresh(config: Config, shelves: Shelves) -> weights.Spec:
    network = config.ssr.network if config.ssr else config.model
    schedule = config.schedule
    if config.image:
        network, schedule = _public(config.image, schedule)
    if network is None:
        raise WrongInput("model: Field required")
    if config.ssr and config.frames > shelves.frames:
        raise WrongInput(f"frames: {config.frames} is more than the {shelves.frames} of a clip")
    return weights.Spec(
        role=config.role,
        network=network,
        schedule=schedule or Schedule(),
        text=text_conditioner(config.text.settings(network.text_dim)),
        frames=shelves.frames,
        fps=shelves.fps,
        ssr=config.ssr,
    )


def _public(folder: Path, schedule: Schedule | None) -> tuple[stunet.Config, Schedule]:
    """Return the shape of a diffusers folder's image model and the schedule that it was trained with."""
    try:
        network = stunet.Config.of_image(json.loads(image_unet.read(folder)[0]))
        if schedule is None:
            schedule = Schedule.of_diffusers(folder)
    except (ValueError, FileNotFoundError) as error:
        raise WrongInput(f"image: {error}") from None
    if network.in_channels != 3:
        raise WrongInput(
            f"image: {folder} works on {network.in_channels} channels, latents or a super-resolution; "
            "a base is trained on frames of 3 channels"
        )
    return network, schedule
