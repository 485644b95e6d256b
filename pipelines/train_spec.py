"""What a training recipe makes: the network with what it is trained on, and the digests of what goes in.

All of it is looked at before anything starts: what does not fit is refused here, in one line that names the key, and not by
a worker minutes later.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from models import checkpoint, image_unet, stunet
from models.conditioning import TextConditioner, text_conditioner
from models.diffusion import Schedule
from pipelines import saved, weights
from pipelines.output import WrongInput
from pipelines.shelves import Shelves
from pipelines.train_config import Config

KNOWN_IN = "known_in."  # what masks add to a network
SHAPE = "give the network the shape that these weights have"
COPY = "copy the folder anew, its config.json is not that of its weights"


def base_of(config: Config) -> weights.Loaded | None:
    """Return the frozen base under a motion model; WrongInput where there is no finished one."""
    return _finished("base", config.base, "base") if config.base else None


def spec_of(config: Config, shelves: Shelves, base: weights.Loaded | None) -> weights.Spec:
    """Return the Spec; WrongInput where the recipe, its dataset and its base do not fit."""
    spec = _over(config, shelves, base) if base else _fresh(config, shelves)
    _check_text(spec)
    return spec


def inputs_of(config: Config, base: weights.Loaded | None, spec: weights.Spec) -> dict[str, str]:
    """Return the digests of the weights that go in; WrongInput where they do not fit the network."""
    found = {"base": base.digest} if base else {}
    if spec.text.settings()["kind"] != "hashed":
        found["text"] = spec.text.digest()
    if config.start:
        start = _finished("start", config.start, config.role)
        _check_parent(config, start, base)
        _check_tensors(f"start: {config.start}", start.state, spec, SHAPE)
        found["start"] = start.digest
    if config.image:
        state = image_unet.read(config.image)[1]
        _check_tensors(f"image: {config.image}", state, spec, COPY)
        found["image"] = checkpoint.state_digest(state)
    return found


def _finished(key: str, folder: Path, role: stunet.Role) -> weights.Loaded:
    """Return the finished checkpoint that a key names."""
    if not (weights.checkpoint_folder(folder) / "checkpoint.json").is_file():
        raise WrongInput(f"{key}: {_unfinished(folder, role)}")
    try:
        return weights.load(folder, role)
    except WrongInput as error:
        raise WrongInput(f"{key}: {error}; next: name a {role} training's output folder") from None
    except (ValueError, OSError) as error:
        raise WrongInput(f"{key}: {_words(error)}; next: copy it anew or train it again") from None


def _unfinished(folder: Path, role: stunet.Role) -> str:
    steps = saved.steps(folder)
    if not steps and not (folder / "recipe.json").exists():
        return f"{folder} holds no checkpoint; next: name the output folder of a finished {role} training"
    came = f"came to step {steps[-1]}" if steps else "has no checkpoint yet"
    return (
        f"{folder} holds a training that {came} and did not finish; "
        "next: the command that began it finishes it"
    )


def _check_parent(config: Config, start: weights.Loaded, base: weights.Loaded | None) -> None:
    """Refuse to go on with temporal modules over another base than theirs: they would not know its features."""
    parent = start.parents.get("base", "")
    if base is not None and parent != base.digest:
        raise WrongInput(
            f"start: {config.start} was trained over base {parent[:12]}, {config.base} is "
            f"{base.digest[:12]}; next: name its own base, or leave start out"
        )


def _check_tensors(
    named: str, state: Mapping[str, torch.Tensor], spec: weights.Spec, following: str
) -> None:
    """Refuse weights to begin with that lack a tensor or have one of another shape."""
    with torch.device("meta"):  # shapes alone
        wanted = weights.role_state(stunet.build(spec.network, seed=0), spec.role)
    names = {name for name in wanted if KNOWN_IN not in name} | state.keys()
    for name in sorted(names):
        has, takes = (_shape(table, name) for table in (state, wanted))
        if has != takes:
            raise WrongInput(
                f"{named} does not fit the network: {name} is {has} there, {takes} here; next: {following}"
            )


def _shape(state: Mapping[str, torch.Tensor], name: str) -> str:
    return "x".join(map(str, state[name].shape)) or "one number" if name in state else "absent"


def _check_text(spec: weights.Spec) -> None:
    """Refuse text weights that are not there, as well as tokens of another width."""
    try:
        spec.text.digest()
        dim = spec.text.dim
    except (ValueError, LookupError, OSError) as error:
        raise WrongInput(f"text: {_words(error)}") from None
    if dim != spec.network.text_dim:
        raise WrongInput(
            f"text: its tokens are {dim} wide, the network takes {spec.network.text_dim}; "
            "next: set the network's text_dim, or name another text model"
        )


def _text(config: Config, dim: int) -> TextConditioner:
    try:
        return text_conditioner(config.text.settings(dim))
    except ValueError as error:
        raise WrongInput(f"text: {error}") from None


def _words(error: Exception) -> str:
    """Return an error's words in one line, without Python's own for a missing file."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, LookupError):
        return f"a config lacks {error}"
    return " ".join(str(error).split())


def _over(config: Config, shelves: Shelves, base: weights.Loaded) -> weights.Spec:
    """Return a motion model's Spec: its base's, with known columns where masks are trained."""
    frames, network = shelves.frames, base.spec.network
    if frames % network.frames_multiple:
        raise WrongInput(
            f"clips of {frames} frames do not divide by the {network.frames_multiple} of the base's "
            "temporal_factor; next: another base, or a dataset of clips that divide"
        )
    if base.spec.frames != frames:
        raise WrongInput(
            f"the base was trained on clips of {base.spec.frames} frames, "
            f"{config.dataset} holds clips of {frames}; next: the dataset, or another base"
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
        raise WrongInput(
            f"frames: {config.frames} is more than the {shelves.frames} of a clip; "
            f"next: at most frames={shelves.frames}"
        )
    return weights.Spec(
        role=config.role,
        network=network,
        schedule=schedule or Schedule(),
        text=_text(config, network.text_dim),
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
    except FileNotFoundError as error:
        raise WrongInput(
            f"image: {_words(error)}; next: name a diffusers folder with unet/ and scheduler/"
        ) from None
    except ValueError as error:
        raise WrongInput(f"image: {_words(error)}") from None
    if network.in_channels != 3:
        raise WrongInput(
            f"image: {folder} works on {network.in_channels} channels, latents or a super-resolution; "
            "a base is trained on frames of 3 channels"
        )
    return network, schedule
