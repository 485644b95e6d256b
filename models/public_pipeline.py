"""A public pipeline, loaded, that makes videos of (text, seed) pairs which depend on nothing else.

The pipeline runs as diffusers wrote it, but every number it draws is ours (models/public_noise.py), its
scheduler is a new one in each pass, and a pass has always the same number of samples. Letters: B samples
of a pass, T frames, H height, W width, C = 3 colours.
"""

import copy
import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from models import public_parts
from models.public import Public, check_shape
from models.public_noise import NOISE_ID, Drawn, watched

# Of these it has been read, or is tested, that a sample's text and noise stay in its own row. The others
# run one sample a pass.
BATCHED = frozenset({
    "AnimateDiffPipeline", "CogVideoXPipeline", "HunyuanVideoPipeline", "LTXPipeline",
    "LattePipeline", "MochiPipeline", "TextToVideoSDPipeline", "WanPipeline",
})  # fmt: skip

# What `make` says itself, and what would let a caller draw, look in or change the result's form.
_OURS = frozenset({
    "prompt", "negative_prompt", "height", "width", "num_inference_steps", "guidance_scale",
    "num_frames", "video_length", "frames", "generator", "latents", "output_type", "return_dict",
    "num_videos_per_prompt", "num_images_per_prompt", "image", "video", "callback",
    "callback_steps", "callback_on_step_end", "callback_on_step_end_tensor_inputs",
})  # fmt: skip
_FRAMES_AT = {"CogVideoXPipeline": 1}  # the axis of time in its latents; of the others it is 2


class Pipeline:
    """A pipeline on `device`, its networks in evaluation and in `dtype`; `noise_id` names its noise.

    Raises ValueError when the files do not fit the classes.
    """

    noise_id = NOISE_ID

    def __init__(
        self,
        public: Public,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.public, self._device = public, torch.device(device)
        parts = {part.name: public_parts.load(part, dtype) for part in public.parts}
        with public_parts.quiet():
            self._pipe = public.assembled(parts).to(self._device)
        self._pipe.set_progress_bar_config(disable=True)
        for part in self._pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()  # AnimateDiff builds its network anew, in training
        self._scheduler = self._pipe.scheduler

    def make(
        self,
        texts: Sequence[str],
        negatives: Sequence[str],
        seeds: Sequence[int],
        *,
        frames: int,
        size_px: tuple[int, int],
        steps: int,
        guidance_scale: float,
        micro_batch: int = 1,
        more: Mapping[str, Any] | None = None,
    ) -> list[np.ndarray]:
        """Return a video for each text and seed, uint8 THWC; size_px = (height, width).

        `micro_batch` samples share a pass, the last one filled up: with the same micro_batch, settings,
        device, dtype, threads and libraries a video has the same bits whatever else is asked for and in
        which order (1: always; more: where widths are multiples of a CPU's 16 lanes, as real ones are).
        guidance_scale 1 is off; some pipelines are distilled and read it as a condition. `more` are
        further arguments of the pipeline, as JSON. ValueError for what it cannot do.
        """
        if not len(texts) == len(negatives) == len(seeds):
            raise ValueError(
                f"{len(texts)} texts, {len(negatives)} negatives and {len(seeds)} seeds: one of each a video"
            )
        if micro_batch < 1 or steps < 1:
            raise ValueError(f"micro_batch {micro_batch} and steps {steps}: at least 1")
        name = self.public.pipeline
        if micro_batch > 1 and name not in BATCHED:
            raise ValueError(f"{name} makes one video a pass here: use micro_batch 1")
        check_shape(self._pipe, frames=frames, size_px=size_px)
        told = self._told(
            negatives,
            {"num_inference_steps": steps, "guidance_scale": guidance_scale},
            more=more or {},
        )
        told |= {"height": size_px[0], "width": size_px[1], self.public.frames_argument: frames}
        jobs = list(zip(texts, negatives, seeds, strict=True))
        videos: list[np.ndarray] = []
        for first in range(0, len(jobs), micro_batch):
            chosen = jobs[first : first + micro_batch]
            filled = chosen + [chosen[-1]] * (micro_batch - len(chosen))
            videos.extend(self._pass(filled, told, (frames, *size_px, 3))[: len(chosen)])
        return videos

    def _told(
        self, negatives: Sequence[str], ours: Mapping[str, Any], *, more: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return a call's arguments but for texts and shape; ValueError for what the pipeline does not take."""
        name, takes = self.public.pipeline, self.public.arguments
        if ours["guidance_scale"] != 1.0 and "guidance_scale" not in takes:
            raise ValueError(f"{name} takes no guidance_scale: use 1")
        if any(negatives) and "negative_prompt" not in takes:
            raise ValueError(f"{name} takes no negative text: use an empty one")
        for key in more:
            if key in _OURS or key not in takes or key.endswith("_embeds"):
                near = difflib.get_close_matches(key, sorted(takes.keys() - _OURS), n=1)
                hint = f": did you mean {near[0]}?" if near else f": {name} has no such setting"
                raise ValueError(f"more.{key} cannot be set{hint}")
        try:
            json.dumps(more, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"more must be plain JSON: {error}") from error
        # Cleaning differs with the packages that are installed; the text is taken as it is.
        usual = {"clean_caption": False} | dict(ours)
        return {k: v for k, v in usual.items() if k in takes} | dict(more)

    def _pass(
        self, jobs: Sequence[tuple[str, str, int]], told: Mapping[str, Any], shape: tuple[int, ...]
    ) -> list[np.ndarray]:
        """Return the videos of one pass, each of `shape` THWC."""
        texts, negatives, seeds = (list(column) for column in zip(*jobs, strict=True))
        words: dict[str, Any] = {"prompt": texts}
        if "negative_prompt" in self.public.arguments:
            words["negative_prompt"] = negatives
        # A scheduler remembers its last run, and pipelines write into it.
        self._pipe.scheduler = copy.deepcopy(self._scheduler)
        drawn = Drawn(seeds, frames_at=_FRAMES_AT.get(self.public.pipeline, 2))
        try:
            with public_parts.quiet(), torch.no_grad(), watched(self._device), drawn:
                made = self._pipe(**told, **words, output_type="np").frames
        except ValueError as error:
            raise ValueError(f"{self.public.pipeline}: {error}") from error
        videos = [np.asarray(video) for video in made]
        if len(videos) != len(jobs) or any(video.shape != shape for video in videos):
            raise ValueError(
                f"{self.public.pipeline} made videos of shape {videos[0].shape} where {shape} was asked for: "
                "take frames and a size that it makes"
            )
        return [_pixels(video) for video in videos]


def _pixels(video_THWC: np.ndarray) -> np.ndarray:
    """Return uint8 of a video in [0, 1]; ValueError where it is no number."""
    if not np.isfinite(video_THWC).all():
        raise ValueError("the video has values that are no numbers: use fp32 or bf16")
    return np.rint(video_THWC.astype(np.float32) * 255.0).clip(0, 255).astype(np.uint8)
