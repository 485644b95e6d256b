"""What is given beside the text: a prompt's pictures, videos and masks, decoded and made what the samplers take.

Files are read by the same decoder and the same resizer as everything that a model was trained on: each frame is cropped to
its centre at the asked aspect, then shrunk by area averaging, or enlarged by bicubic interpolation. Bytes become [-1, 1]
by x / 127.5 - 1. A mask is resized as a picture first; where its grey is then 128 or more, the video is made anew. What is
transparent in a picture counts as white.
Letters: B = 1 video, C channels, T frames, H height, W width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from ingest import ffmpeg, planes
from ingest.clip import Contract, Prep
from ingest.decode import resize_crop
from ingest.pictures import demuxer_of
from ingest.reading import Reading
from ingest.sources import SourceError
from models import known
from models.known import Known
from models.sdedit import Start
from pipelines.identity import digest
from pipelines.output import WrongInput
from pipelines.prompt_files import shown
from pipelines.prompts import FILES, Prompt, file_sha256

FILTER = (
    "centre/area/cubic/128/1"  # of what is told above: raise the number when it gives other pixels
)
WHITE = 128
SAME_ASPECT = 0.01  # sizes of one picture differ by a rounded pixel
NEVER_SHRUNK_PX = 8192  # as decoded: one resizer does it all


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Given:
    """What a sampler is told: known pixels, or a video to begin from; neither for a prompt that is only a text.

    `start_video` is BCTHW, float32 in [-1, 1]; `strength` is the share of the steps that are run from it.
    """

    known: Known | None = None
    start_video: torch.Tensor | None = None
    strength: float = 0.0

    @property
    def start(self) -> Start | None:
        """The same as `start` of samplers.sample_base, None without a video."""
        if self.start_video is None:
            return None
        return Start(video_BCTHW=self.start_video, strength=self.strength)


def content(prompt: Prompt, *, fps: int = 0) -> str:
    """Return the hex sha256 of what is given beside the text, "" when that is nothing: part of a sample's identity.

    Files count by their bytes, wherever they lie. A style is not among them: it counts by the digest of its weights.
    Raises WrongInput when a file cannot be read.
    """
    if prompt.task == "text":
        return ""
    try:
        files = {c: file_sha256(path) for c in FILES if (path := getattr(prompt, c))}
    except OSError as error:
        why = f"cannot be read ({error.strerror}); next: put the file back"
        raise WrongInput(f"{shown(error.filename)}: {why}") from None
    settings = {name: getattr(prompt, name) for name in ("frames_known", "margin", "strength")}
    return digest({"filter": FILTER, "task": prompt.task, "files": files, "fps": fps, **settings})


def given(
    prompt: Prompt, *, frames: int, size_px: tuple[int, int], channels: int = 3, fps: int = 0
) -> Given:
    """Decode what a prompt gives and return it for a video of `frames` frames of size_px = (height, width).

    Tensors are float32 on the CPU, B = 1, with 3 channels (RGB) or 1 (grey). With `fps`, frames of a video are those on
    screen at that rate, which should be the model's; with 0 they are those of the file, one by one. Of a longer video
    the first are taken. For an SSR, ask again with its size.

    Raises WrongInput, one line, for a file that is no whole picture or video, for too few frames, for a mask of another
    shape or without white; ValueError for channels, frames or sizes that no model makes.
    """
    if channels not in {1, 3} or frames < 1 or min(size_px) < 1 or fps < 0:
        raise ValueError(f"{frames} frames of {size_px} px, {channels} channels at {fps} fps")
    make = _TASKS[prompt.task]
    least = {"image": 2, "cinemagraph": 2, "first_last": 3, "predict": prompt.frames_known + 1}
    if frames < least.get(prompt.task, 1):
        raise WrongInput(
            f"prompt {prompt.id}: task {prompt.task} leaves nothing to make in {frames} frames; "
            f"next: {'lower frames_known or ' if prompt.task == 'predict' else ''}make longer videos"
        )
    return make(_Files(prompt, size_px, channels, fps), frames)


class _Files:
    """The files of one prompt, each decoded when it is asked for."""

    def __init__(self, prompt: Prompt, size_px: tuple[int, int], channels: int, fps: int) -> None:
        self.prompt, self.size_px, self._channels = prompt, size_px, channels
        contract = Contract(frames=1, fps=fps or "native")  # RGB frames, as stills have them
        self._prep = Prep(contract=contract, payload_short_side_px=NEVER_SHRUNK_PX)
        self._sizes: dict[str, tuple[int, int]] = {}

    def picture(self, column: str) -> torch.Tensor:
        """Return x_BCHW of a picture."""
        return self._floats(self._decoded(column, 0, self.size_px))[:, :, 0]

    def video(self, frames: int, size_px: tuple[int, int] | None = None) -> torch.Tensor:
        """Return x_BCTHW of the first frames of the video."""
        return self._floats(self._decoded("video", frames, size_px or self.size_px))

    def region(self, frames: int, like: str) -> torch.Tensor:
        """Return region_B1THW, 1 = make anew; T is 1 for a mask that is a picture."""
        with self._told("mask"):
            still = not frames or bool(demuxer_of(self.prompt.mask))
        grey_THW = np.stack(
            [planes.luma(f) for f in self._decoded("mask", 0 if still else frames, self.size_px)]
        )
        (width, height), (w, h) = self._sizes["mask"], self._sizes[like]
        if abs(width * h - w * height) > SAME_ASPECT * w * height:
            raise self._wrong(
                "mask",
                f"is {width}x{height} px, its {like} {w}x{h}",
                f"cut it to the shape of the {like}",
            )
        region_THW = torch.from_numpy(grey_THW >= WHITE)
        if not bool(region_THW.any()):
            size = f"{self.size_px[1]}x{self.size_px[0]}"
            raise self._wrong(
                "mask", f"has no white left at {size} px", "paint white what is made anew"
            )
        return region_THW[None, None].float()

    def _floats(self, frames_THWC: np.ndarray) -> torch.Tensor:
        if self._channels == 1:
            frames_THWC = np.stack([planes.luma(frame) for frame in frames_THWC])[..., None]
        x_CTHW = torch.from_numpy(frames_THWC).permute(3, 0, 1, 2)
        return x_CTHW[None].float().div(127.5).sub(1.0).contiguous()

    def _decoded(self, column: str, frames: int, size_px: tuple[int, int]) -> np.ndarray:
        """Return uint8 THWC of a video's first frames, or of a picture (0 frames)."""
        with self._told(column):
            return self._read(column, frames, size_px)

    @contextmanager
    def _told(self, column: str) -> Iterator[None]:
        try:
            yield
        except SourceError as error:
            raise self._wrong(
                column, f"{error.error_class}: {error.message}", "name another file"
            ) from error

    def _wrong(self, column: str, why: str, then: str) -> WrongInput:
        place = shown(getattr(self.prompt, column))
        return WrongInput(
            f"{place}: {column} of prompt {self.prompt.id}: {shown(why)}; next: {then}"
        )

    def _read(self, column: str, frames: int, size_px: tuple[int, int]) -> np.ndarray:
        path, prep = getattr(self.prompt, column), self._prep
        picture = demuxer_of(path)
        if bool(picture) == bool(frames):
            is_, wanted = (
                ("a picture", "video") if picture else ("no picture that we know", "picture")
            )
            raise self._wrong(column, f"is {is_}", f"name a {wanted}")
        info = ffmpeg.probe(path, prep, picture)
        if info.hdr:
            raise self._wrong(column, "has an HDR transfer (PQ or HLG)", "make it SDR (BT.709)")
        found: list[np.ndarray] = []
        step = 1 if picture else prep.contract.step
        with Reading(path, info, prep) as reading:
            for index, frame in enumerate(reading):
                if index % step == 0:
                    found.append(resize_crop(frame[None], size_px[1], size_px[0])[0])
                if frames and len(found) == frames:
                    break
            self._sizes[column] = reading.width, reading.height
        if len(found) < max(1, frames):
            at = "" if prep.contract.native else f" at {prep.contract.fps} fps"
            why = f"has {len(found)} frames{at}, {frames} are needed"
            raise self._wrong(column, why, "name a longer video")
        return np.stack(found)


def _image(files: _Files, frames: int) -> Given:
    return Given(known=known.image_to_video(files.picture("image"), frames))


def _first_last(files: _Files, frames: int) -> Given:
    first, last = files.picture("image"), files.picture("last_image")
    return Given(known=known.first_last(first, last, frames))


def _predict(files: _Files, frames: int) -> Given:
    return Given(known=known.prediction(files.video(files.prompt.frames_known), frames))


def _inpaint(files: _Files, frames: int) -> Given:
    video = files.video(frames)
    region = files.region(frames, "video").expand(-1, -1, frames, -1, -1)
    return Given(known=known.inpainting(video, region))


def _outpaint(files: _Files, frames: int) -> Given:
    (height, width), margin = files.size_px, files.prompt.margin
    top, left = round(height * margin), round(width * margin)
    inside = height - 2 * top, width - 2 * left
    if not (top or left) or min(inside) < 1:
        raise WrongInput(
            f"prompt {files.prompt.id}: margin: {margin} of {width}x{height} px leaves "
            f"{'nothing to make' if min(inside) > 0 else 'nothing known'}; next: choose another"
        )
    video = files.video(frames, inside)
    return Given(known=known.outpainting(video, files.size_px, (top, left)))


def _cinemagraph(files: _Files, frames: int) -> Given:
    image = files.picture("image")
    region_B1HW = files.region(0, "image")[:, :, 0]
    return Given(known=known.cinemagraph(image, region_B1HW, frames))


def _video(files: _Files, frames: int) -> Given:
    return Given(start_video=files.video(frames), strength=files.prompt.strength)


def _text(_files: _Files, _frames: int) -> Given:
    return Given()


_TASKS: dict[str, Callable[[_Files, int], Given]] = {
    "text": _text,
    "image": _image,
    "first_last": _first_last,
    "predict": _predict,
    "inpaint": _inpaint,
    "outpaint": _outpaint,
    "cinemagraph": _cinemagraph,
    "video": _video,
}
