"""Weight-free measurements of one sample: seam, motion, agreement of SSR and base, distance to the reference's clips.

All from lossless files, never from the lossy ones for viewing. Letters: C channels, T frames, H height, W width, B clips.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ingest.loader import read_clip
from ingest.store import Dataset
from models import ssr, windows
from models.metrics import motion, psnr, seam
from pipelines.videos import read_frames, to_model


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """One sample to measure: its manifest row, its set's folder and the reference dataset ("" for none)."""

    row: dict[str, Any]
    folder: str
    reference: str
    prompts: tuple[str, ...]


def measure(sheet: Sheet) -> dict[str, Any]:
    """Return the numbers of one sample; ValueError when its frames are not the ones of the manifest."""
    row = sheet.row
    low = _video(sheet, "base_path", "base_sha256")
    final = _video(sheet, "lossless_path", "frames_sha256")
    numbers: dict[str, Any] = {
        "identity": row["identity"],
        "prompt": row["prompt"],
        "index": row["index"],
        "motion_magnitude": motion.motion_magnitude(final),
        "static_share": motion.static_share(final),
        "differences": [round(float(d), 6) for d in motion.differences(final)],
    }
    if row["windows"] > 1:
        plan = windows.Plan(
            frames=row["frames"], window=row["window_frames"], starts=tuple(row["window_starts"])
        )
        edges = windows.boundaries(plan)
        # With boundaries nearly everywhere there is no step to compare them with.
        if 2 * len(edges) < row["frames"] - 1:
            numbers |= {
                "seam_ratio": seam.seam_ratio(final, edges),
                "seam_excess": seam.seam_excess(final, edges),
            }
    if final.shape != low.shape:
        scale = final.shape[-1] // low.shape[-1]
        numbers["ssr_base_psnr"] = psnr.psnr(ssr.shrink(final[None], scale)[0], low)
    if sheet.reference:
        numbers |= _against_reference(sheet, low)
    return numbers


def _against_reference(sheet: Sheet, low: torch.Tensor) -> dict[str, Any]:
    """Compare with the reference's clips of the set's prompts at base resolution; whose clip is nearest?"""
    height, width = low.shape[-2:]
    captions, clips = reference_clips(sheet.reference, sheet.prompts, width, height)
    own = [i for i, caption in enumerate(captions) if caption == sheet.row["prompt"]]
    if not own:
        return {}
    nearest = captions[psnr.nearest(low, clips)]
    return {
        "nearest_prompt": nearest,
        "nearest_is_own": nearest == sheet.row["prompt"],
        "reference_psnr": max(psnr.psnr(low, clips[i]) for i in own),
    }


@lru_cache(maxsize=4)
def reference_clips(
    root: str, prompts: tuple[str, ...], width: int, height: int
) -> tuple[list[str], torch.Tensor]:
    """Return the clips whose caption is one of `prompts`: captions and x_BCTHW in [-1, 1]."""
    rows = Dataset.open(root).kept_clips().to_pylist()
    found = [row for row in rows if row["caption"] in prompts]
    clips = [to_model(read_clip(root, row, width, height)) for row in found]
    return [row["caption"] for row in found], torch.stack(clips) if clips else torch.empty(0)


def _video(sheet: Sheet, path_key: str, hash_key: str) -> torch.Tensor:
    return to_model(read_frames(Path(sheet.folder) / sheet.row[path_key], sheet.row[hash_key]))
