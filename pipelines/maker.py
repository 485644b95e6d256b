"""The networks of a sampling actor and what they make: a base video, then the same enlarged in overlapping windows.

An SSR is given the pixels of the base video as its file holds them, so that it is the same whoever made that file.
Letters: B = 1 video, C channels, T frames, H height, W width.
"""

import contextlib
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import noise, samplers, shared, stunet, windows
from models.conditioning import TextConditioner
from models.shared import Carry
from pipelines import conditions, weights
from pipelines.gang import Seat
from pipelines.order import Order
from pipelines.output import WrongInput
from pipelines.prompts import Prompt
from pipelines.videos import pixels, to_model

NUM_TEXTS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Roles:
    """Where the checkpoints are ("" for none), how to solve, and on what device."""

    base: str
    motion: str
    ssr: str
    settings: dict[str, Any]
    device: str


class Maker:
    """Base and motion as one network and the SSR, each loaded when `base` and `ssr` are to be made here."""

    def __init__(self, told: Roles, *, base: bool = True, ssr: bool = True) -> None:
        self._told, self._settings = told, told.settings
        self.device = torch.device(told.device)
        self._base = weights.load(Path(told.base), "base")
        self._motion = weights.load(Path(told.motion), "motion")
        self.spec = self._motion.spec
        self.fps, self.noise_id = self.spec.fps, noise.NOISE_ID
        self.digests = {"base": self._base.digest, "motion": self._motion.digest}
        self._video: tuple[tuple[str, float], stunet.STUNet] | None = None
        self._ssr: tuple[weights.Spec, stunet.STUNet] | None = None
        if base:
            self._network("", 0.0)
        if told.ssr:
            loaded = weights.load(Path(told.ssr), "ssr")
            self.digests["ssr"] = loaded.digest
            if ssr:
                self._ssr = loaded.spec, weights.ssr_model(loaded).to(self.device)
        self._texts: OrderedDict[tuple[str, str], torch.Tensor] = OrderedDict()

    @property
    def plan(self) -> windows.Plan | None:
        """The windows of the SSR, None without one."""
        if not self._told.ssr:
            return None
        keys = self._settings["windows"]
        return getattr(windows, keys["spread"])(self.spec.frames, keys["window"], keys["overlap"])

    @property
    def trim(self) -> int:
        """How many frames next to a cut do not count."""
        return self._settings["windows"]["trim"]

    def low(self, order: Order) -> np.ndarray:
        """Return the base video, uint8 THWC; the same order gives the same frames on any actor."""
        px = self.spec.network.sample_px
        prompt = order.prompt
        if conditions.content(prompt, fps=self.spec.fps) != order.condition:
            raise WrongInput("a file of its prompt was changed meanwhile; next: the same command")
        given = self._given(order, self.spec)
        with self._arithmetic():
            video = samplers.sample_base(
                self._network(prompt.style, prompt.alpha),
                self._text("motion", self.spec.text, prompt.text),
                self._text("motion", self.spec.text, order.negative),
                seeds=[order.seed],
                frames=self.spec.frames,
                size_px=(px, px),
                settings=self._sampling("base_solver", self.spec),
                known=given.known,
                composite=self._composite(given),
                start=given.start,
            )
        return pixels(video.clamp(-1.0, 1.0))

    def high(self, order: Order, low_THWC: np.ndarray) -> np.ndarray:
        """Return the base video enlarged, uint8 THWC."""
        if self._ssr is None or self.plan is None:
            raise RuntimeError("this actor makes base videos only")
        with self._arithmetic():
            video = samplers.sample_ssr(
                self._ssr[1],
                to_model(low_THWC)[None],
                plan=self.plan,
                **self._enlarging(order, self._ssr[0]),
            )
        return pixels(video)

    def share(self, order: Order, low_THWC: np.ndarray, seat: Seat, carry: Carry) -> np.ndarray:
        """Return this part's own frames of `high`, made together with the other parts, to the bit."""
        if self._ssr is None:
            raise RuntimeError("this actor makes base videos only")
        told = self._enlarging(order, self._ssr[0])
        del told["trim"]  # it is the plan's
        with self._arithmetic():
            video = shared.sample_ssr_part(
                self._ssr[1],
                to_model(low_THWC)[None],
                part=seat.part,
                halo=seat.halo,
                exchange=carry,
                **told,
            )
        return pixels(video)

    def _enlarging(self, order: Order, spec: weights.Spec) -> dict[str, Any]:
        keys = self._settings["windows"]
        given = self._given(order, spec) if spec.network.known else conditions.Given()
        return {
            "known": given.known,
            "composite": self._composite(given),
            "text_BND": self._text("ssr", spec.text, order.prompt.text),
            "null_BND": self._text("ssr", spec.text, order.negative),
            "seeds": [order.seed],
            "scale": spec.ssr.scale if spec.ssr else 1,
            "precondition": spec.ssr.precondition if spec.ssr else True,
            "settings": self._sampling("ssr_solver", spec),
            "weights": keys["weights"],
            "trim": keys["trim"],
            "augment_level": self._settings["augment_level"],
            "micro_batch": self._settings["micro_batch"],
        }

    def pass_s(self, count: int, *, times: int) -> float:
        """Return the seconds of one step of the SSR on `count` windows in one pass, the best of some."""
        if self._ssr is None or self.plan is None:
            raise RuntimeError("there is no SSR here to measure")
        spec, model = self._ssr
        low_px = spec.network.sample_px // (spec.ssr.scale if spec.ssr else 1)
        prompt = Prompt(text="a video")
        told = self._enlarging(
            Order(identity="", prompt=prompt, negative="", index=0, seed=0), spec
        )
        frames = self.plan.window
        told |= {
            "settings": replace(told["settings"], steps=1),
            "seeds": list(range(count)),
            "micro_batch": count,
            "trim": 0,
        }
        low = torch.zeros(count, 3, frames, low_px, low_px)
        alone = windows.even(frames, frames, 0)
        took_s = []
        for _ in range(times + 1):  # the first one warms up
            begun_s = time.perf_counter()
            with self._arithmetic():
                samplers.sample_ssr(model, low, plan=alone, **told).cpu()
            took_s.append(time.perf_counter() - begun_s)
        return min(took_s[1:])

    def _given(self, order: Order, spec: weights.Spec) -> conditions.Given:
        px = spec.network.sample_px
        return conditions.given(
            order.prompt, frames=self.spec.frames, size_px=(px, px), fps=self.spec.fps
        )

    def _composite(self, given: conditions.Given) -> samplers.Composite:
        return "none" if given.known is None else self._settings["composite"]

    def _network(self, style: str, alpha: float) -> stunet.STUNet:
        """Return base and motion as one; the last style is kept, for the orders of a prompt come together."""
        if self._video is None or self._video[0] != (style, alpha):
            over = weights.style_of(style, alpha) if style else None
            self._video = None  # two at once may not fit
            model = weights.video_model(self._base, self._motion, over=over).to(self.device)
            self._video = (style, alpha), model
        return self._video[1]

    def _text(self, role: str, conditioner: TextConditioner, text: str) -> torch.Tensor:
        """Return a text's tokens, computed once for all seeds of its prompt."""
        key = role, text
        if key not in self._texts:
            self._texts[key] = conditioner([text])
            if len(self._texts) > NUM_TEXTS:
                self._texts.popitem(last=False)
        self._texts.move_to_end(key)
        return self._texts[key]

    def _sampling(self, solver: str, spec: weights.Spec) -> samplers.Sampling:
        return samplers.Sampling(schedule=spec.schedule, **self._settings[solver])

    def _arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        bf16 = self._settings["precision"] == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)
