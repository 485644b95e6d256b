"""Payloads to frames; the only place that uses decord, and only on files that we wrote ourselves.

Such a file has closed GOPs, no edit list, a constant rate and starts at 0; on others decord can be
silently wrong or hang. Resizing is area averaging by OpenCV, the one resizer of everything stored.
"""

import io
from collections.abc import Sequence
from fractions import Fraction

import cv2
import decord
import numpy as np

from ingest import planes
from ingest.clip import Contract
from ingest.pictures import PNG_END

MAX_MEAN_ERROR = (
    24.0  # grey levels; noise at the default crf stays below 10, another frame is above
)
TIME_TOLERANCE_S = 1e-3
CHECKED_FRAMES = 16  # of a payload at once: all of a large one would need much memory


def _open(payload: bytes | memoryview) -> decord.VideoReader:
    decord.logging.set_level(decord.logging.FATAL)
    try:
        return decord.VideoReader(io.BytesIO(payload), ctx=decord.cpu(0), num_threads=1)
    except (decord.DECORDError, RuntimeError) as error:
        raise ValueError(f"payload cannot be opened: {str(error).splitlines()[0][:200]}") from error


def _frames(reader: decord.VideoReader, indices: list[int]) -> np.ndarray:
    try:
        try:
            return reader.get_batch(indices).asnumpy()
        except decord.DECORDError as error:
            if "from_size == to_size" not in str(error):
                raise
            return np.stack([_unpadded(reader[index].asnumpy()) for index in indices])
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise ValueError(
            f"payload cannot be decoded: {str(error).splitlines()[0][:200]}"
        ) from error


def _unpadded(frame_HWX: np.ndarray) -> np.ndarray:
    """Return the RGB frame inside decord's padded rows.

    At 8, 12, 16, 24 and 48 px its row length divides by the width, and decord 0.6 takes the quotient
    for the number of channels; the pixels are the first three bytes times width of each row.
    """
    height, width, _ = frame_HWX.shape
    rows = frame_HWX.reshape(height, -1)[:, : 3 * width]
    return rows.reshape(height, width, 3)


def payload_frames(
    payload: bytes | memoryview,
    *,
    kind: str = "h264_mp4",
    width: int | None = None,
    height: int | None = None,
    indices: list[int] | None = None,
    shape: Sequence[int] | None = None,
) -> np.ndarray:
    """Return the frames of a payload as uint8 THWC; with width and height, cropped and resized.

    `kind` is the row's payload_kind: h264_mp4, png (one frame), or raw_u8_thwc, which needs `shape`
    (T, H, W) and gives a read-only view of the payload where nothing is picked or resized.
    Raises ValueError when it cannot be decoded.
    """
    if kind not in _DECODERS:
        raise ValueError(
            f"payload kind {kind!r} holds no frames; kinds that do: {', '.join(_DECODERS)}"
        )
    frames_THWC = _DECODERS[kind](payload, indices, shape)
    if width is None or height is None:
        return frames_THWC
    return resize_crop(frames_THWC, width, height)


def _video(
    payload: bytes | memoryview, indices: list[int] | None, _shape: Sequence[int] | None
) -> np.ndarray:
    reader = _open(payload)
    return _frames(reader, list(range(len(reader))) if indices is None else indices)


def _picture(
    payload: bytes | memoryview, indices: list[int] | None, _shape: Sequence[int] | None
) -> np.ndarray:
    data = np.frombuffer(payload, np.uint8)
    try:
        frame_HWC = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if len(data) else None
    except cv2.error as error:
        raise ValueError(f"payload cannot be decoded: {str(error).strip()[:200]}") from error
    if frame_HWC is None or not bytes(payload[-8:]) == PNG_END:
        raise ValueError("payload cannot be decoded: not a whole PNG")
    return _picked(frame_HWC[None], indices)


def _raw(
    payload: bytes | memoryview, indices: list[int] | None, shape: Sequence[int] | None
) -> np.ndarray:
    if shape is None or len(shape) != 3:
        raise ValueError(f"shape={shape}: raw frames need (frames, height, width) from their row")
    frames = np.frombuffer(payload, np.uint8)
    if frames.size != 3 * int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"payload has {frames.size} bytes, frames of {tuple(shape)} have others")
    return _picked(frames.reshape(*shape, 3), indices)


def _picked(frames_THWC: np.ndarray, indices: list[int] | None) -> np.ndarray:
    try:
        return frames_THWC if indices is None else frames_THWC[indices]
    except IndexError as error:
        raise ValueError(f"payload cannot be decoded: {error}") from error


_DECODERS = {"h264_mp4": _video, "png": _picture, "raw_u8_thwc": _raw}


def resize_crop(frames_THWC: np.ndarray, width: int, height: int) -> np.ndarray:
    """Crop the centre of uint8 THWC frames to the target aspect, then resize by area averaging."""
    source_height, source_width = frames_THWC.shape[1:3]
    scale = min(source_width / width, source_height / height)
    crop_width = max(1, min(source_width, round(width * scale)))
    crop_height = max(1, min(source_height, round(height * scale)))
    left, top = (source_width - crop_width) // 2, (source_height - crop_height) // 2
    cut_THWC = frames_THWC[:, top : top + crop_height, left : left + crop_width]
    if (crop_width, crop_height) == (width, height):
        return np.ascontiguousarray(cut_THWC)
    out_THWC = np.empty((len(cut_THWC), height, width, 3), np.uint8)
    # Area averaging only shrinks; to enlarge, OpenCV would fall back to nearest blocks.
    how = cv2.INTER_AREA if scale >= 1 else cv2.INTER_CUBIC
    for index, frame_HWC in enumerate(cut_THWC):
        cv2.resize(frame_HWC, (width, height), dst=out_THWC[index], interpolation=how)
    return out_THWC


def check_payload(
    payload: bytes | memoryview,
    contract: Contract,
    *,
    fps: Fraction | float | None = None,
    reference: np.ndarray | None = None,
    ends_only: bool = False,
) -> None:
    """Decode every frame and compare count, times and, if given, pixels with the contract.

    `fps` is the row's rate, which a contract of native frames does not know. `reference` holds the
    frames that were encoded, RGB or planar; a still must equal it. With `ends_only`, pixels are those
    of the first frame and of the last of each closed group of pictures, into which goes all that
    was decoded before: enough for what we encoded ourselves, at two thirds of the cost. Raises
    ValueError that says what is wrong.
    """
    if contract.is_still:
        _check_still(payload, reference)
        return
    reader = _timed(payload, contract, contract.fps if fps is None else fps)
    if reference is not None and len(reference) != contract.frames:
        raise ValueError(f"the reference has {len(reference)} frames, not {contract.frames}")
    indices = _ends(reader) if ends_only else list(range(contract.frames))
    for first in range(0, len(indices), CHECKED_FRAMES):
        part = indices[first : first + CHECKED_FRAMES]
        frames_THWC = _frames(reader, part)
        if reference is not None:
            _compare(frames_THWC, [reference[index] for index in part], part)


def _ends(reader: decord.VideoReader) -> list[int]:
    starts = [*reader.get_key_indices(), len(reader)]
    return sorted({0, *(start - 1 for start in starts if start)})


def _check_still(payload: bytes | memoryview, reference: np.ndarray | None) -> None:
    frames_THWC = payload_frames(payload, kind="png")
    if reference is None:
        return
    _same_shape(frames_THWC, reference)
    if not np.array_equal(frames_THWC, reference):
        raise ValueError("payload differs from its picture, though it is lossless")


def _same_shape(frames_THWC: np.ndarray, reference: Sequence[np.ndarray] | np.ndarray) -> None:
    shape = (len(reference), *planes.size(reference[0])[::-1], 3)
    if frames_THWC.shape != shape:
        raise ValueError(f"payload decodes to {frames_THWC.shape}, not {shape}")


def _timed(
    payload: bytes | memoryview, contract: Contract, fps: Fraction | float | str
) -> decord.VideoReader:
    if isinstance(fps, str):
        raise ValueError(f"fps={fps}: give the rate of the clip's row to check its payload")  # noqa: TRY004 - no bug of types
    reader = _open(payload)
    if len(reader) != contract.frames:
        raise ValueError(f"payload has {len(reader)} frames, the contract says {contract.frames}")
    starts_s = reader.get_frame_timestamp(list(range(contract.frames)))[:, 0]
    wanted_s = np.arange(contract.frames) / float(fps)
    if np.abs(starts_s - wanted_s).max() > TIME_TOLERANCE_S:
        raise ValueError(f"payload is not at a constant {fps} fps from 0")
    return reader


def _compare(
    frames_THWC: np.ndarray, reference: Sequence[np.ndarray], indices: Sequence[int]
) -> None:
    _same_shape(frames_THWC, reference)
    step = 4  # every fourth pixel tells as much at a sixteenth of the cost
    for index, *pair in zip(indices, frames_THWC, reference, strict=True):
        error = planes.apart(*(planes.luma(frame, every=step) for frame in pair))
        if error > MAX_MEAN_ERROR:
            raise ValueError(f"payload frame {index} differs by {error:.0f} levels on average")
