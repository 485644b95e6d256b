"""Conditioned generation: which pixels of a video are known, and to what they are known.

One mask says it for every task: 1 = known, 0 = to be made (Lumiere, section 5). What the network
sees is always M * V beside M, in training and in sampling, blank = 0 in [-1, 1]. Training masks are
addressed by (seed, step) alone: rank and batch do not matter.
Letters: B batch, C channels, T frames, H height, W width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from models import noise

# Sides of what moves or is made anew, and of what outpainting keeps, as shares of the picture.
_REGION, _KEPT = (0.25, 0.75), (0.4, 0.9)
_DRAWS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """video_BCTHW where mask_B1THW is 1; the rest is blanked here, whatever it was given as.

    Raises ValueError unless the mask is 0 or 1 everywhere and fits the video.
    """

    video_BCTHW: torch.Tensor
    mask_B1THW: torch.Tensor

    def __post_init__(self) -> None:
        video, mask = self.video_BCTHW, self.mask_B1THW
        check_floating("known video", video, "BCTHW")
        b, _, *rest = video.shape
        if list(mask.shape) != [b, 1, *rest]:
            raise ValueError(
                f"a known mask of {list(mask.shape)} does not fit a video of {list(video.shape)}: "
                "it must be (B, 1, T, H, W) beside (B, C, T, H, W)"
            )
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("a known mask holds 1 (known) and 0 (to be made) only: threshold it")
        mask = mask.to(video, copy=True)  # the caller's own may change
        # not a product: what is unknown may be anything, NaN too, and must not be seen
        blanked = torch.where(mask == 1, video, torch.zeros((), dtype=video.dtype).to(video))
        object.__setattr__(self, "video_BCTHW", blanked)
        object.__setattr__(self, "mask_B1THW", mask)

    @property
    def channels(self) -> torch.Tensor:
        """What the network takes: M * V, then M, (B, C + 1, T, H, W)."""
        return torch.cat((self.video_BCTHW, self.mask_B1THW), dim=1)

    def to(self, like_BCTHW: torch.Tensor) -> "Known":
        """Return the same on the device and in the type of `like`."""
        return Known(self.video_BCTHW.to(like_BCTHW), self.mask_B1THW)

    def composite(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return M * V + (1 - M) * x, both sides bit for bit."""
        return torch.where(self.mask_B1THW == 1, self.video_BCTHW, x_BCTHW)


def check_floating(name: str, video: torch.Tensor, letters: str) -> None:
    """Raise ValueError for bytes, as of a picture of 0 to 255, and for another number of dimensions."""
    if video.ndim != len(letters) or not video.is_floating_point():
        raise ValueError(
            f"{name} must be {letters} and floating, pixels in [-1, 1] (x / 127.5 - 1), "
            f"not {list(video.shape)} of {video.dtype}"
        )


def nothing(like_BCTHW: torch.Tensor) -> Known:
    """Return text-to-video: of a video of this shape nothing is known."""
    return Known(torch.zeros_like(like_BCTHW), torch.zeros_like(like_BCTHW[:, :1]))


def image_to_video(image_BCHW: torch.Tensor, frames: int) -> Known:
    """Return the image as frame 0 of `frames`."""
    check_floating("image", image_BCHW, "BCHW")
    return prediction(image_BCHW.unsqueeze(2), frames)


def prediction(first_BCTHW: torch.Tensor, frames: int) -> Known:
    """Return the first frames of `frames`; ValueError when none are left to make."""
    check_floating("first frames", first_BCTHW, "BCTHW")
    video, mask = _blank(first_BCTHW[:, :, 0], frames)
    given = first_BCTHW.shape[2]
    if given >= frames:
        raise ValueError(f"{given} known frames leave nothing to make in {frames}: ask for more")
    video[:, :, :given], mask[:, :, :given] = first_BCTHW, 1.0
    return Known(video, mask)


def first_last(first_BCHW: torch.Tensor, last_BCHW: torch.Tensor, frames: int) -> Known:
    """Return two images as the first and the last frame of `frames`."""
    if frames < 3 or first_BCHW.shape != last_BCHW.shape:
        raise ValueError("first and last frame need one shape and 3 frames or more")
    video, mask = _blank(first_BCHW, frames)
    video[:, :, 0], video[:, :, -1] = first_BCHW, last_BCHW
    mask[:, :, [0, -1]] = 1.0
    return Known(video, mask)


def inpainting(video_BCTHW: torch.Tensor, region_B1THW: torch.Tensor) -> Known:
    """Return the video outside a region; region 1 = make anew, for each frame."""
    return Known(video_BCTHW, 1.0 - region_B1THW.to(video_BCTHW))


def outpainting(
    video_BCTHW: torch.Tensor, size_px: tuple[int, int], offset_px: tuple[int, int]
) -> Known:
    """Return the video placed in a canvas of (height, width) at (top, left), the border to be made."""
    (height, width), (top, left) = size_px, offset_px
    b, c, t, h, w = video_BCTHW.shape
    if not (0 <= top <= height - h and 0 <= left <= width - w):
        raise ValueError(f"{h}x{w} pixels at {offset_px} do not fit into {height}x{width}")
    video = video_BCTHW.new_zeros(b, c, t, height, width)
    mask = torch.zeros_like(video[:, :1])
    inside = (..., slice(top, top + h), slice(left, left + w))
    video[inside], mask[inside] = video_BCTHW, 1.0
    return Known(video, mask)


def cinemagraph(image_BCHW: torch.Tensor, region_B1HW: torch.Tensor, frames: int) -> Known:
    """Return a still that moves inside the region (1) only; frame 0 is the image everywhere."""
    check_floating("image", image_BCHW, "BCHW")
    wanted = [len(image_BCHW), 1, *image_BCHW.shape[2:]]
    if list(region_B1HW.shape) != wanted:
        raise ValueError(f"region must be {wanted} (B, 1, H, W), not {list(region_B1HW.shape)}")
    video = image_BCHW.unsqueeze(2).expand(-1, -1, frames, -1, -1)
    outside = 1.0 - region_B1HW.to(image_BCHW).unsqueeze(2)
    mask = outside.expand(-1, -1, frames, -1, -1).clone()
    mask[:, :, 0] = 1.0
    return Known(video, mask)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """The share of items that practises each task; the shares must sum to 1.

    The papers are silent on it; our own choice, with two tasks that are off unless asked for.
    """

    first_frame: float = 0.30
    tube: float = 0.25
    border: float = 0.15
    cinemagraph: float = 0.20
    nothing: float = 0.10
    first_last: float = 0.0
    prediction: float = 0.0

    def __post_init__(self) -> None:
        shares = [getattr(self, name) for name in KINDS]
        if min(shares) < 0.0 or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
            raise ValueError(f"mask shares {shares} must be 0 or more and sum to 1")

    def kind(self, u: float) -> str:
        """Return the task that u in [0, 1) falls to."""
        chosen = [name for name in KINDS if getattr(self, name) > 0.0]
        for name in chosen:
            u -= getattr(self, name)
            if u < 0.0:
                return name
        return chosen[-1]


KINDS = tuple(field.name for field in fields(Mixture))


def training(
    video_BCTHW: torch.Tensor,
    *,
    seeds: Sequence[int],
    step: int,
    mixture: Mixture,
    frames_BT: torch.Tensor,
    total: int,
) -> Known:
    """Return what is known of each item: M * x0 with M of its own address (seed, step).

    frames_BT are an item's frame numbers in its clip of `total` frames: the mask is drawn for the clip
    and cut, so that a window of an SSR sees of it what it sees when sampling.
    """
    size_px = (video_BCTHW.shape[3], video_BCTHW.shape[4])
    masks = [
        drawn_mask(seed, step=step, frames=total, size_px=size_px, mixture=mixture)[1][chosen]
        for seed, chosen in zip(seeds, frames_BT.cpu(), strict=True)
    ]
    return Known(video_BCTHW, torch.stack(masks).unsqueeze(1).to(video_BCTHW))


def drawn_mask(
    seed: int, *, step: int, frames: int, size_px: tuple[int, int], mixture: Mixture
) -> tuple[str, torch.Tensor]:
    """Return the task and its known mask_THW, fp32; 2 frames (3 with first_last) of 2x2 pixels are the least."""
    if frames < (3 if mixture.first_last else 2) or min(size_px) < 2:
        raise ValueError(f"{frames} frames of {size_px} pixels are too few to leave some unknown")
    u = noise.uniform(seed, stream="mask", step=step, count=_DRAWS).tolist()
    kind = mixture.kind(u[0])
    mask = torch.zeros(frames, *size_px)
    if kind == "border":
        _keep_inside(mask, u)
    elif kind in {"tube", "cinemagraph"}:
        mask.fill_(1.0)
        _open_region(mask, u, moving=kind == "tube")
    if kind in {"first_frame", "first_last", "cinemagraph"}:
        mask[0] = 1.0
    if kind == "first_last":
        mask[-1] = 1.0
    if kind == "prediction":
        mask[: 1 + _floor(u[1], frames - 1)] = 1.0
    return kind, mask


def _open_region(mask_THW: torch.Tensor, u: Sequence[float], *, moving: bool) -> None:
    """Cut a rectangle out of every frame; a moving one goes straight from one place to another."""
    frames, height, width = mask_THW.shape
    h, w = _side(u[1], height, _REGION), _side(u[2], width, _REGION)
    rooms = (height - h + 1, width - w + 1)
    start = [_floor(u[3 + axis], room) for axis, room in enumerate(rooms)]
    end = [_floor(u[5 + axis], room) for axis, room in enumerate(rooms)] if moving else start
    for t in range(frames):
        share = t / (frames - 1)
        top, left = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
        mask_THW[t, top : top + h, left : left + w] = 0.0


def _keep_inside(mask_THW: torch.Tensor, u: Sequence[float]) -> None:
    """Keep a rectangle, the same in all frames: bands above and below, at the sides, or all round."""
    _, height, width = mask_THW.shape
    bands = _floor(u[1], 3)
    h = height if bands == 0 else _side(u[2], height, _KEPT)
    w = width if bands == 1 else _side(u[3], width, _KEPT)
    top, left = _floor(u[4], height - h + 1), _floor(u[5], width - w + 1)
    mask_THW[:, top : top + h, left : left + w] = 1.0


def _side(u: float, limit: int, shares: tuple[float, float]) -> int:
    low, high = shares
    return min(limit - 1, max(1, round(limit * (low + (high - low) * u))))


def _floor(u: float, limit: int) -> int:
    return min(limit - 1, int(u * limit))


def _blank(image_BCHW: torch.Tensor, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    b, c, h, w = image_BCHW.shape
    video = image_BCHW.new_zeros(b, c, frames, h, w)
    return video, torch.zeros_like(video[:, :1])
