"""A dataset of real small payloads beside sources that are names only, quick to make."""

import hashlib
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ingest.clip import Prep
from ingest.encode import encode_video
from ingest.ledger import to_table
from ingest.schema import captions_schema
from ingest.shards import ShardWriter
from ingest.store import Dataset
from tests.around import Heard, surroundings
from tests.conftest import moving_square
from tests.ingest.made import CLOCK, SHAPE, digest

__all__ = ["Heard", "made_clips", "surroundings"]
PREP = Prep(payload_short_side_px=64)


def payload(number: int, *, px: int = 64, frames: int = 80) -> bytes:
    square = moving_square(number % 3, seconds=frames / 16, px=px)
    square[:, : 8 + number] = 20 * (number % 12)  # no two are alike
    return encode_video(square, 16, lossless=False)


def made_clips(
    root: Path,
    videos: Path,
    *,
    sources: int = 3,
    clips: int = 2,
    frames: int = 80,
    picture: Callable[[int], np.ndarray] | None = None,
) -> Dataset:
    """Clips of sources `<videos>/red car 0.mp4` ..., whose files exist and are empty."""
    videos.mkdir(parents=True, exist_ok=True)
    dataset = Dataset.create(root, PREP.contract, PREP)
    rows = []
    with ShardWriter(dataset.root) as writer:
        for number in range(sources):
            video = videos / f"red car {number}.mp4"
            video.touch()
            source = digest(f"source {number}")
            base = {
                "unit_id": digest(f"unit {number}"),
                "source_uri": str(video),
                "source_sha256": source,
                "source_bytes": 0,
                "prep_digest": PREP.digest(),
                "keep_digest": digest("keep"),
                "attempts": 1,
                "fate": "kept",
            }
            rows.append(
                base | {"kind": "source", "id": source, "num_candidates": clips, "num_kept": clips}
            )
            for index in range(clips):
                if picture:
                    data = encode_video(picture(number * clips + index), 16, lossless=False)
                else:
                    data = payload(number * clips + index, frames=frames)
                row = base | CLOCK | SHAPE | {
                    "kind": "clip", "id": digest(f"{number} {index}"), "height": 64, "frame_count": frames,
                    "start_pts": 80 * index, "end_pts": 80 * index + 80, "shot_index": index,
                    "start_s": 5.0 * index, "end_s": 5.0 * index + 5, "motion": 0.1,
                    "payload_sha256": hashlib.sha256(data).hexdigest(), "payload_kind": "h264_mp4",
                }  # fmt: skip
                ids = {
                    "clip_id": bytes.fromhex(row["id"]),
                    "payload_sha256": hashlib.sha256(data).digest(),
                }
                writer.append(ids | {"payload_crc32": zlib.crc32(data), "payload": data})
                rows.append(row)
        kept = [row for row in rows if row["kind"] == "clip"]
        for row, place in zip(kept, writer.close(), strict=True):
            row |= {name: getattr(place, name) for name in place.__slots__}
    none = captions_schema().empty_table()
    dataset.commit(to_table(rows), none, app_id="made", batch=dataset.next_batch("made"))
    return dataset
