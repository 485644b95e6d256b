"""The public pipeline of a sampling actor, behind what a Maker offers: whole videos, without an SSR."""

from pathlib import Path

import numpy as np
import torch

from models import public, public_pipeline
from pipelines.maker import Roles
from pipelines.order import Order
from pipelines.sample_config import PUBLIC


class PublicMaker:
    """A pipeline of diffusers on this actor's device."""

    plan = None  # nothing is enlarged

    def __init__(self, told: Roles) -> None:
        found = public.read(Path(told.base.removeprefix(PUBLIC)))
        self.device = torch.device(told.device)
        bf16 = told.settings["precision"] == "bf16"
        self._pipeline = public_pipeline.Pipeline(
            found, self.device, torch.bfloat16 if bf16 else torch.float32
        )
        self._told = told.settings["public"]
        self.fps = self._told["fps"] or round(found.fps(self._told["more"]))
        self.noise_id = self._pipeline.noise_id
        self.digests = {"base": found.digest()}

    def low(self, order: Order) -> np.ndarray:
        """Return the video, uint8 THWC; the same order gives the same frames on any actor."""
        (made,) = self._pipeline.make(
            [order.prompt.text],
            [order.negative],
            [order.seed],
            frames=self._told["frames"],
            size_px=(self._told["height_px"], self._told["width_px"]),
            steps=self._told["steps"],
            guidance_scale=self._told["guidance_scale"],
            more=self._told["more"],
        )
        return made
