"""A dataset of real small payloads beside sources that are names only, quick to make."""

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cluster.interrupt import Interrupt
from cluster.session import Cluster
from ingest.clip import Prep
from ingest.encode import encode_video
from ingest.ledger import to_table
from ingest.schema import captions_schema
from ingest.shards import ShardWriter
from ingest.store import Dataset
from pipelines.context import Context, silent
from tests.conftest import moving_square
from tests.ingest.made import CLOCK, SHAPE, digest

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


@dataclass
class Heard:
    """What a run says, kept."""

    stages: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def progress(self, done: int, total: int, *, stage: str = "", text: str = "") -> None:
        pass


def surroundings(*, ray_is_open: bool = True, cluster: Cluster | None = None) -> Context:
    """A context without a tracker; `ray_is_open` when a session is open already."""
    return Context(
        cluster=cluster or Cluster(),
        tracker=None,
        stop=Interrupt(),
        show=silent,
        resume=True,
        _started=[True] if ray_is_open else [],
    )
