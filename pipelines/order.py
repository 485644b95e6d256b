"""Samples to make, each named by what decides its pixels.

The name is a sha256 over prompt, condition, index, seed, weights, solvers, window plan, shape, noise and arithmetic, and over
nothing else: the same name is the same video on any number of actors, in any set, after any kill.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models import noise
from pipelines import conditions
from pipelines.identity import digest, plain
from pipelines.makes import Makes
from pipelines.prompts import Prompt
from pipelines.sample_config import Config

SCHEMA = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One sample to make; `condition` is the digest of the files that it is to follow, "" for text alone."""

    identity: str
    prompt: Prompt
    negative: str
    index: int
    seed: int
    condition: str = ""

    def columns(self) -> dict[str, Any]:
        """Return what the manifest says of it."""
        return {
            "identity": self.identity,
            "prompt_id": self.prompt.id,
            "prompt": self.prompt.text,
            "negative": self.negative,
            "task": self.prompt.task,
            "condition": self.condition,
            "style": self.prompt.style,
            "style_alpha": self.prompt.alpha,
            "prompt_name": self.prompt.name,
            "more": self.prompt.more,
            "index": self.index,
            "seed": f"{self.seed:016x}",
        }


def settings_of(config: Config, *, micro_batch: int) -> dict[str, Any]:
    """Return what an actor needs to know beside the weights, as plain values; all of it decides pixels."""
    told: dict[str, Any] = {
        "precision": config.precision,
        # kernels differ by batch and by threads
        "threads": config.threads_per_actor,
        "accelerator": config.gpus_per_actor > 0,
    }
    if config.public_folder:
        return told | {"public": plain(config.public)}
    told |= {"base_solver": plain(config.base_solver), "composite": config.composite}
    if config.ssr is not None:
        told |= {
            "ssr_solver": plain(config.ssr_solver),
            "windows": plain(config.windows),
            "augment_level": config.augment_level,
            "micro_batch": micro_batch,
        }
    return told


def orders_of(
    config: Config, prompts: Sequence[Prompt], made: Makes, settings: Mapping[str, Any]
) -> list[Order]:
    """Return the samples of a set, prompt by prompt.

    WrongInput where a prompt's files cannot be read, or asks for what these networks have not learned.
    """
    shared = _shared(config, made, settings)
    return [
        order
        for prompt in prompts
        for order in _of_prompt(config, prompt, {**shared, "weights": made.weights_for(prompt)})
    ]


def _shared(config: Config, made: Makes, settings: Mapping[str, Any]) -> dict[str, Any]:
    told = {key: value for key, value in settings.items() if key != "windows"}
    if config.ssr is not None:
        plan = config.windows.plan(made.frames)
        told |= {
            "starts": list(plan.starts),
            "window": plan.window,
            "window_weights": config.windows.weights,
            "trim": config.windows.trim,
        }
    return {
        "schema": SCHEMA,
        "frames": made.frames,
        "fps": made.fps,
        "noise": made.noise_id,
        **told,
    }


def _of_prompt(config: Config, prompt: Prompt, shared: Mapping[str, Any]) -> Iterator[Order]:
    negative = prompt.negative or config.negative
    condition = conditions.content(prompt, fps=shared["fps"])
    for index in range(prompt.num_seeds or config.num_seeds):
        seed = noise.seed_for("sample", config.seed, prompt.id, index)
        named = {
            **shared,
            "prompt": prompt.text,
            "negative": negative,
            "condition": condition,
            "index": index,
            "seed": f"{seed:016x}",
        }
        yield Order(
            identity=digest(named),
            prompt=prompt,
            negative=negative,
            index=index,
            seed=seed,
            condition=condition,
        )
