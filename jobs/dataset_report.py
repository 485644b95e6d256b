"""The page of a dataset: what became of every input, how the scores lie, what the clips look like, what was done to it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ingest import refs
from ingest.files import atomic_write
from ingest.shards import CorruptPayload, read_payload
from ingest.store import Dataset
from jobs import curate_report, run_notes
from jobs.page import bars, card, page, picture, table, text
from jobs.rule_words import counted, words

Row = Mapping[str, Any]
MOST_CLIPS = 24
MOST_ROWS = 500


def write(dataset: Dataset, path: Path) -> Path:
    """Write the page of a dataset and return its path."""
    shown = [*_inputs(dataset), '<h2>clips</h2><div class="grid">', *_clips(dataset), "</div>"]
    parts = [*_head(dataset), *curate_report.parts(dataset, run_notes.latest(dataset)), *shown]
    parts += [*_groups(dataset), *_past(dataset)]
    atomic_write(path, page(str(dataset.root), parts))
    return path


def fates(dataset: Dataset) -> list[str]:
    """Return the parts that show what became of every video and candidate, and the first clips."""
    rows = dataset.query(
        "SELECT kind, CASE WHEN fate = 'rejected' THEN 'rejected: ' || coalesce(rule, '') ELSE fate END"
        " AS fate, count(*) AS number FROM ledger GROUP BY 1, 2 ORDER BY 1, 2"
    ).to_pylist()
    clips = [(_words(row["fate"]), row["number"]) for row in rows if row["kind"] == "clip"]
    videos = sum(row["number"] for row in rows if row["kind"] == "source")
    shown = [("inputs", videos), ("candidate clips", sum(n for _, n in clips)), *clips]
    return [bars(shown), *_inputs(dataset), '<div class="grid">', *_clips(dataset), "</div>"]


def _head(dataset: Dataset) -> Iterable[str]:
    yield f"<h1>{text(str(dataset.root))}</h1>"
    facts: dict[str, Any] = {
        "version": dataset.version,
        "digest": dataset.digest()[:12],
        **dataset.info(),
    }
    facts["contract"] = dataset.contract.describe()
    facts["rules"] = counted(facts["rules"])
    rows = [(k, _fact(v)) for k, v in facts.items()]
    yield table(("fact", "value"), rows)


def _fact(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _inputs(dataset: Dataset) -> Iterable[str]:
    columns = "source_uri, fate, rule, score, threshold, stage, error_class, message, duplicate_of, num_candidates"
    rows = dataset.query(
        f"SELECT {columns} FROM ledger WHERE kind = 'source' ORDER BY source_uri LIMIT {MOST_ROWS + 1}"
    ).to_pylist()
    yield table(
        ("input", "fate", "why", "candidates"),
        [
            (
                Path(row["source_uri"] or "(taken down)").name,
                row["fate"],
                _why(row),
                str(row["num_candidates"] or 0),
            )
            for row in rows[:MOST_ROWS]
        ],
    )
    if len(rows) > MOST_ROWS:
        yield '<p class="small">and more: kinoray dataset query tells all of them</p>'


def _clips(dataset: Dataset) -> Iterable[str]:
    # By hash, so that a big dataset shows some of everything.
    columns = (
        'clip_id, shard, "offset", length, crc32, payload_kind, caption, label, motion, luma_mean'
    )
    rows = dataset.query(f"SELECT {columns} FROM clips ORDER BY clip_id LIMIT {MOST_CLIPS + 1}")
    for row in rows.to_pylist()[:MOST_CLIPS]:
        place = row["shard"], row["offset"], row["length"], row["crc32"]
        try:
            payload = bytes(read_payload(dataset.root, *place, clip_id=row["clip_id"]))
        except (CorruptPayload, FileNotFoundError) as error:
            yield f'<div class="card">{text(str(error))}</div>'
            continue
        told = [f"{k} {row[k]:.3g}" for k in ("motion", "luma_mean") if row[k] is not None]
        note = " ".join([row["clip_id"][:12], row["label"], ", ".join(told)])
        show = {"h264_mp4": card, "png": picture}.get(row["payload_kind"])
        if show:
            yield show(payload, row["caption"] or "(no caption)", note)
    if rows.num_rows > MOST_CLIPS:
        yield '<p class="small">and more clips</p>'


def _groups(dataset: Dataset) -> Iterable[str]:
    clips = dataset.kept_clips()
    for column in ("label", "licence", "consent"):
        counted = Counter(clips.column(column).to_pylist())
        if set(counted) - {""}:
            rows = [(k or "(none)", n) for k, n in counted.most_common(40)]
            yield f"<h2>{column}</h2>{bars(rows)}"


def _past(dataset: Dataset) -> Iterable[str]:
    tags = [(t.name, t.at, t.digest[:12]) for t in refs.tags(dataset.root)]
    if tags:
        yield f"<h2>tags</h2>{table(('tag', 'at', 'digest'), tags)}"
    done = [(r["at"], r["operation"], str(r["version"])) for r in dataset.history()[-50:]]
    if done:
        yield f"<h2>log</h2>{table(('at', 'operation', 'ledger version'), done)}"


def _words(fate: str) -> str:
    name, _, rule = fate.partition(": ")
    return f"{name}: {words(rule)}" if rule else name


def _why(row: Row) -> str:
    if row["fate"] == "failed":
        return f"{row['stage']}: {row['error_class']}: {row['message']}"
    if row["fate"] == "duplicate":
        return f"same content as {str(row['duplicate_of'])[:12]}"
    if row["score"] is None:
        return words(row["rule"] or "")
    return f"{words(row['rule'])} ({row['score']:g}, threshold {row['threshold']:g})"
