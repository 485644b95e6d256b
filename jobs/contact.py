"""Clips to look at: those just inside and just outside each bound, and near duplicates side by side."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ingest.columns import among
from ingest.decide import NEAR
from ingest.decode import payload_frames
from ingest.encode import thumbnail
from ingest.keep import Rule
from ingest.shards import read_payload
from ingest.store import Dataset
from jobs.candidates import Candidates
from jobs.page import strip, text
from jobs.rule_words import words

A_SIDE = 6  # two rows of a page
THUMB_PX = 160
GROUPS = 8
A_GROUP = 5
Row = Mapping[str, Any]


def around(dataset: Dataset, found: Candidates, bounds: Sequence[Rule]) -> Iterator[str]:
    """Yield for each bound the kept clips nearest to it, and the nearest that it rejected."""
    for bound in bounds:
        values = found.scores.get(bound.score)
        if values is None or not np.isfinite(values).any():
            continue
        away = np.abs(values - bound.threshold)
        rejected = among(found.clips.column("rule"), [bound.name])
        yield f"<h3>{text(words(bound.name))}: {text(bound.name)} {bound.threshold:g}</h3>"
        if not rejected.any():
            near = _nearest(away, found.kept & np.isfinite(values))[:1]
            told = f"; the nearest kept one has {values[near[0]]:.4g}" if len(near) else ""
            yield f'<p class="small">it rejected no clip{told}</p>'
            continue
        for name, side in (("just inside", found.kept), ("just outside", rejected)):
            at = _nearest(away, side & np.isfinite(values))
            yield f'<p class="small">{name}{"" if len(at) else ": no clip"}</p><div class="grid">'
            for row in found.rows(at):
                note = f"{bound.score} {row[bound.score]:.4g}"
                yield strip(_frames(dataset, row), _title(row), _noted(row, note))
            yield "</div>"


def twins(dataset: Dataset, found: Candidates) -> Iterator[str]:
    """Yield the largest groups of near duplicates: the clip that stays, then those that it stands for."""
    near = np.flatnonzero(among(found.clips.column("rule"), [NEAR]))
    better = found.clips.column("duplicate_of").take(near).to_pylist()
    where = (
        {clip: i for i, clip in enumerate(found.clips.column("id").to_pylist())} if better else {}
    )
    largest = Counter(better).most_common(GROUPS)
    for clip, number in largest:
        copies = "1 copy" if number == 1 else f"{number} copies"
        yield f'<p class="small">{copies} of {text(str(clip)[:12])}</p><div class="grid">'
        members = [int(at) for at, of in zip(near, better, strict=True) if of == clip][:A_GROUP]
        at = ([where[clip]] if clip in where else []) + members
        for row in found.rows(at):
            told = "stays" if row["id"] == clip else f"{row['score'] or 0:g} of 192 bits differ"
            size = f"{row['width']} x {row['height']} px"
            yield strip(_frames(dataset, row), _title(row), _noted(row, f"{told}, {size}"))
        yield "</div>"
    left = len(set(better)) - len(largest)
    if left > 0:
        yield f'<p class="small">and {left} more groups</p>'


def _nearest(away: np.ndarray, which: np.ndarray) -> np.ndarray:
    at = np.flatnonzero(which)
    return at[np.argsort(away[at], kind="stable")[:A_SIDE]]


def _title(row: Row) -> str:
    name = Path(row["source_uri"] or "(taken down)").name
    return f"{name} {row['start_s'] or 0:.1f}-{row['end_s'] or 0:.1f} s"


def _noted(row: Row, note: str) -> str:
    return note if row["shard"] else f"{note}; never stored, so no picture"


def _frames(dataset: Dataset, row: Row) -> list[bytes]:
    """Return the first, middle and last frame of a stored clip as JPEG, none of one that is not stored."""
    if not row["shard"]:
        return []
    place = row["shard"], row["offset"], row["length"], row["crc32"]
    count = row["frame_count"] or 1
    try:
        payload = read_payload(dataset.root, *place, clip_id=row["id"])
        shown = sorted({0, count // 2, count - 1})
        frames = payload_frames(payload, kind=row["payload_kind"], indices=shown)
    except (OSError, ValueError):
        return []  # `dataset verify` is the command that tells of damage
    return [thumbnail(frame_HWC, width_px=THUMB_PX) for frame_HWC in frames]
