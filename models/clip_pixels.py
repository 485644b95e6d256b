"""From frames to what an image tower takes, as tensors: resize, crop, mean and deviation.

The same laws as open_clip's transform for evaluation, on the device of the model and without PIL.
Letters: T frames, C channels, H height, W width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional


@dataclass(frozen=True, kw_only=True, slots=True)
class Pixels:
    """How a model wants its images; `mean` and `deviation` are of values in 0..1, per channel.

    `resize` "shortest" crops what is over, "longest" fills with `fill` (0..255), "squash" distorts.
    """

    height_px: int
    width_px: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize: Literal["shortest", "longest", "squash"] = "shortest"
    fill: int = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Pixels":
        """Return the pixels of open_clip's preprocess_cfg."""
        size = config["size"]
        height_px, width_px = (size, size) if isinstance(size, int) else size[-2:]
        return cls(
            height_px=height_px,
            width_px=width_px,
            mean=tuple(config["mean"]),
            deviation=tuple(config["std"]),
            interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
            resize=config["resize_mode"],
            fill=int(config.get("fill_color") or 0),
        )

    def __call__(self, frames_TCHW: torch.Tensor) -> torch.Tensor:
        """Return fp32 images_TCHW at the model's size from uint8 RGB."""
        x_TCHW = self._fitted(self._resized(frames_TCHW.float()))
        mean_C11 = x_TCHW.new_tensor(self.mean)[:, None, None]
        deviation_C11 = x_TCHW.new_tensor(self.deviation)[:, None, None]
        return (x_TCHW / 255 - mean_C11) / deviation_C11

    def _resized(self, x_TCHW: torch.Tensor) -> torch.Tensor:
        size = self._size(*x_TCHW.shape[-2:])
        if size == tuple(x_TCHW.shape[-2:]):
            return x_TCHW
        x_TCHW = functional.interpolate(
            x_TCHW, size, mode=self.interpolation, align_corners=False, antialias=True
        )
        # whole grey levels, as the models saw them in training
        return x_TCHW.round().clamp(0, 255)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        wanted = (self.height_px, self.width_px)
        if self.resize == "squash":
            return wanted
        ratios = (height / self.height_px, width / self.width_px)
        if self.resize == "longest":
            ratio = max(ratios)
            return max(1, round(height / ratio)), max(1, round(width / ratio))
        if self.height_px == self.width_px:
            # the long side is cut off, not rounded: torchvision's law for one number
            side, short = self.height_px, min(height, width)
            return side * height // short, side * width // short
        ratio = min(ratios)
        return round(height / ratio), round(width / ratio)

    def _fitted(self, x_TCHW: torch.Tensor) -> torch.Tensor:
        height, width = x_TCHW.shape[-2:]
        above, left = max(0, self.height_px - height), max(0, self.width_px - width)
        if above or left:
            sides = (left // 2, left - left // 2, above // 2, above - above // 2)
            x_TCHW = functional.pad(x_TCHW, sides, value=float(self.fill))
            height, width = x_TCHW.shape[-2:]
        # round(), half to even, is torchvision's choice where a row is left over
        top = round((height - self.height_px) / 2)
        left = round((width - self.width_px) / 2)
        return x_TCHW[..., top : top + self.height_px, left : left + self.width_px]


def picked(frames_THWC: np.ndarray, num_frames: int) -> np.ndarray:
    """Return uint8 frames, the middles of `num_frames` equal parts; all where there are fewer.

    Raises ValueError for anything but uint8 THWC in RGB with at least one frame.
    """
    shape = frames_THWC.shape
    if frames_THWC.dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise ValueError(f"frames must be uint8 THWC in RGB, not {frames_THWC.dtype} of {shape}")
    if num_frames < 1:
        raise ValueError(f"num_frames must be 1 or more, not {num_frames}")
    count = min(num_frames, len(frames_THWC))
    return frames_THWC[[(2 * k + 1) * len(frames_THWC) // (2 * count) for k in range(count)]]
