"""Generated videos as pixels and as files of a set: the one border from [-1, 1] to uint8 and back, names, hashes.

Letters: B = 1 video, C channels, T frames, H height, W width.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch

from ingest.decode import payload_frames
from ingest.encode import encode_video
from ingest.files import atomic_write


def pixels(x_BCTHW: torch.Tensor) -> np.ndarray:
    """Return the first video as uint8 THWC, rounded; the one border from [-1, 1] back to pixels."""
    scaled = x_BCTHW[0].permute(1, 2, 3, 0).add(1.0).mul(127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).contiguous().cpu().numpy()


def to_model(frames_THWC: np.ndarray) -> torch.Tensor:
    """Return x_CTHW in [-1, 1]."""
    return torch.from_numpy(frames_THWC).permute(3, 0, 1, 2).float().div(127.5).sub(1.0)


def frames_sha256(frames_THWC: np.ndarray) -> str:
    """Return the hash of decoded frames and their shape: containers differ between builds, pixels may not."""
    whole = hashlib.sha256(f"{frames_THWC.shape}".encode())
    whole.update(np.ascontiguousarray(frames_THWC).data)
    return whole.hexdigest()


def stem(prompt_id: str, index: int, identity: str) -> str:
    """Return how the files of a sample begin, below the set's folder; nothing that was typed is in it."""
    return f"videos/{prompt_id}/{index:04d}-{identity[:12]}"


def write_base(out: Path, name: str, low_THWC: np.ndarray, fps: int) -> dict[str, str]:
    """Write a base video, lossless, and return its columns of the manifest."""
    path = f"{name}.base.mp4"
    atomic_write(out / path, encode_video(low_THWC, fps, lossless=True))
    return {"base_path": path, "base_sha256": frames_sha256(low_THWC)}


def write_final(
    out: Path, name: str, low: dict[str, str], final_THWC: np.ndarray, fps: int, *, enlarged: bool
) -> dict[str, str]:
    """Write the finished video, lossless where it is not the base's, and one to watch; return the columns."""
    lossless = f"{name}.lossless.mp4" if enlarged else low["base_path"]
    if enlarged:
        atomic_write(out / lossless, encode_video(final_THWC, fps, lossless=True))
    view = f"{name}.mp4"
    atomic_write(out / view, encode_video(final_THWC, fps, lossless=False))
    return {
        **low,
        "lossless_path": lossless,
        "view_path": view,
        "frames_sha256": frames_sha256(final_THWC) if enlarged else low["base_sha256"],
    }


def num_frames(path: Path) -> int:
    """Return how many frames a file to watch has; it is decoded."""
    return len(payload_frames(path.read_bytes()))


def read_frames(path: Path, sha256: str) -> np.ndarray:
    """Return a lossless video's frames, uint8 THWC; ValueError when they are not those of the manifest."""
    frames = payload_frames(path.read_bytes())
    if frames_sha256(frames) != sha256:
        raise ValueError(f"{path}: its frames are not those of the manifest; next: sample it again")
    return frames
