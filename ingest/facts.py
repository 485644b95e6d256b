"""What a dataset says, as one digest and as counts."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ingest.clip import digest_of

SAID_BY_LEDGER = ["kind", "id", "fate", "rule", "payload_sha256"]
_CLOCK = ["frame_count", "fps_num", "fps_den"]


def digest(ledger: pa.Table, kept: pa.Table) -> str:
    """Return the hex sha256 of every fate, and of kept clips' payload, preferred caption and label.

    It is independent of time, attempts, names of files, packing into shards and order of commits.
    """
    said = kept.select(["clip_id", "payload_sha256", "caption", "label"]).to_pylist()
    of_clip = {(row["clip_id"], row["payload_sha256"]): row for row in said}
    rows: list[list[str]] = []
    for row in ledger.select(SAID_BY_LEDGER).to_pylist():
        if row["fate"] != "kept":  # that its payload is still stored says nothing
            row["payload_sha256"] = None
        clip = of_clip.get((row["id"], row["payload_sha256"]), {})
        label = [clip["label"]] if clip.get("label") else []
        rows.append([*(row[n] or "" for n in SAID_BY_LEDGER), clip.get("caption", ""), *label])
    return digest_of(sorted(rows))


def info(ledger: pa.Table, kept: pa.Table) -> dict[str, object]:
    """Return counts: sources and clips by fate, rejections by rule, frames, seconds, bytes."""
    fates = _counts(ledger, "kind", "fate")
    rules = Counter(rule for rule in ledger.column("rule").to_pylist() if rule)
    both = ("source", "clip")
    return {
        "sources": sum(count for (kind, _), count in fates.items() if kind == "source"),
        "sources_rejected": fates.get(("source", "rejected"), 0),
        "clips_kept": kept.num_rows,
        "clips_rejected": fates.get(("clip", "rejected"), 0),
        "failed": sum(fates.get((kind, "failed"), 0) for kind in both),
        "duplicates": sum(fates.get((kind, "duplicate"), 0) for kind in both),
        "rules": dict(sorted(rules.items())),
        "frames": sum(kept.column("frame_count").to_pylist()),
        "seconds": sum(seconds(row) for row in kept.select(_CLOCK).to_pylist()),
        "payload_bytes": sum(kept.column("length").to_pylist()),
    }


def seconds(row: Mapping[str, Any]) -> float:
    """Return the length of a clip in seconds; a still has none."""
    return row["frame_count"] * row["fps_den"] / row["fps_num"] if row["fps_num"] else 0.0


def _counts(rows: pa.Table, *names: str) -> dict[tuple[str, str], int]:
    grouped = rows.group_by(list(names)).aggregate([([], "count_all")]).to_pylist()
    return {(row[names[0]], row[names[1]]): row["count_all"] for row in grouped}
