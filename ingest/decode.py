"""The only place that uses decord, and only on files that we wrote ourselves.

Such a file has closed GOPs, no edit list, a constant rate and starts at 0; on others decord can be
silently wrong or hang. Resizing is area averaging by OpenCV, the one resizer of everything stored.
"""

import io

import cv2
import decord
import numpy as np

from ingest.clip import Contract

MAX_MEAN_ERROR = (
    24.0  # grey levels; noise at the default crf stays below 10, another frame is above
)
TIME_TOLERANCE_S = 1e-3


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
    width: int | None = None,
    height: int | None = None,
    indices: list[int] | None = None,
) -> np.ndarray:
    """Decode a file of ours to uint8 THWC; with width and height, cropped and resized to them.

    Raises ValueError when it cannot be decoded.
    """
    reader = _open(payload)
    frames_THWC = _frames(reader, list(range(len(reader))) if indices is None else indices)
    if width is None or height is None:
        return frames_THWC
    return resize_crop(frames_THWC, width, height)


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
    payload: bytes | memoryview, contract: Contract, *, reference_THWC: np.ndarray | None = None
) -> None:
    """Decode every frame and compare count, times and, if given, pixels with the contract.

    Raises ValueError that says what is wrong.
    """
    reader = _open(payload)
    if len(reader) != contract.frames:
        raise ValueError(f"payload has {len(reader)} frames, the contract says {contract.frames}")
    indices = list(range(contract.frames))
    frames_THWC = _frames(reader, indices)
    starts_s = reader.get_frame_timestamp(indices)[:, 0]
    wanted_s = np.arange(contract.frames) / contract.fps
    if np.abs(starts_s - wanted_s).max() > TIME_TOLERANCE_S:
        raise ValueError(f"payload is not at a constant {contract.fps} fps from 0")
    if reference_THWC is None:
        return
    if frames_THWC.shape != reference_THWC.shape:
        raise ValueError(f"payload decodes to {frames_THWC.shape}, not {reference_THWC.shape}")
    step = 4  # every fourth pixel tells as much at a sixteenth of the cost
    difference = np.abs(
        frames_THWC[:, ::step, ::step].astype(np.int16) - reference_THWC[:, ::step, ::step]
    )
    errors_T = difference.mean(axis=(1, 2, 3))
    if errors_T.max() > MAX_MEAN_ERROR:
        worst = int(errors_T.argmax())
        raise ValueError(
            f"payload frame {worst} differs by {errors_T[worst]:.0f} levels on average"
        )
