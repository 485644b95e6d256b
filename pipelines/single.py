"""One video for a person: what a set would hold for this prompt, made in this process and written as an mp4."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ingest.encode import encode_video
from ingest.files import atomic_write
from pipelines import generator, sampling
from pipelines.makes import makes
from pipelines.order import orders_of, settings_of
from pipelines.output import WrongInput
from pipelines.prompts import Prompt
from pipelines.sample_config import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class Video:
    """The file, and the name that the sample has in any set."""

    verb: str
    status: str
    video: str
    prompt: str
    identity: str
    seed: str
    frames: int
    fps: int
    width: int
    height: int


def run(config: Config, prompt: str, out: Path, *, say: Callable[[str], Any]) -> Video:
    """Make the first sample of a prompt; its name, and its frames, are those of a set with the same keys.

    `micro_batch` 0 is 1 here. Raises as a set does, WrongInput for an empty prompt.
    """
    try:
        asked = Prompt(text=prompt)
    except ValueError as error:
        raise WrongInput(str(error)) from None
    found = makes(config)
    settings = settings_of(config, micro_batch=config.micro_batch or 1)
    (order,) = orders_of(replace(config, num_seeds=1), [asked], found, settings)
    say("loading the networks")
    maker = generator.maker(sampling.roles_of(config, settings))
    say(f"making {found.frames} frames")
    frames = maker.low(order)
    if maker.plan is not None:
        say(f"enlarging them in {len(maker.plan.starts)} windows")
        frames = maker.high(order, frames)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, encode_video(frames, found.fps, lossless=False))
    return Video(
        verb="sample",
        status="done",
        video=str(out),
        prompt=order.prompt.text,
        identity=order.identity,
        seed=f"{order.seed:016x}",
        frames=frames.shape[0],
        fps=found.fps,
        width=frames.shape[2],
        height=frames.shape[1],
    )
