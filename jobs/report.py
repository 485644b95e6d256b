"""The report page of a chain and its last screen: what was made, where, and what to try next.

One self-contained file: videos are embedded, nothing is loaded from anywhere, every text from outside is escaped.
"""

import base64
import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.events import read_events
from ingest.files import atomic_write
from ingest.shards import read_payload
from ingest.store import Dataset
from pipelines.chain import ChainResult
from pipelines.identity import code_version
from pipelines.manifest import read_set

Row = Mapping[str, Any]
KINORAY = ".venv/bin/kinoray"
MOST_SAMPLES = 48
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem;color:#1c2330;background:#fff}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem;border-bottom:1px solid #d8dde6}
table{border-collapse:collapse;font-size:14px}td,th{padding:.15rem .9rem .15rem 0;text-align:left;vertical-align:top}
.grid{display:flex;flex-wrap:wrap;gap:14px}.card{width:200px;font-size:13px}.card video{width:200px;background:#000}
.small{color:#566;font-size:13px}code{background:#eef1f5;padding:0 .25em}svg text{font:12px system-ui,sans-serif}
"""


def write(result: ChainResult) -> Path:
    """Write the page of a chain that ran at least one step and return its path."""
    steps = result.steps
    parts = [_head(result)]
    for name, step in steps.items():
        parts += _section(name, step)
    parts.append(_foot(result))
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>Kinoray: {_text(result.name)}</title><style>{STYLE}</style><body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )
    path = Path(result.out) / "report.html"
    atomic_write(path, page.encode())
    return path


def screen(result: ChainResult) -> list[str]:
    """Return the lines that end a chain on the terminal."""
    lines = [f"{result.name}: {result.status} in {result.wall_s:.0f} s"]
    for name, step in result.steps.items():
        lines.append(f"  {name:<10} {_in_words(step)}")
    lines += [f"  report     {result.report}", f"  run        {result.run_id} (kinoray.verb = run)"]
    if result.status == "done":
        lines += ["", "next:", f"  open {result.report} in a browser"]
        lines += [f"  {command}" for command in _next_commands(result)]
    elif result.status == "interrupted":
        lines += ["", "next: the same command again continues where this stopped"]
    return lines


def _next_commands(result: ChainResult) -> list[str]:
    commands = [f"{KINORAY} demo source=PATH_TO_YOUR_VIDEOS out=runs/mine"]
    if any(step["verb"] == "curate" for step in result.steps.values()):
        commands.append(
            f"{KINORAY} curate jobs/recipes/curate.toml source=PATH_TO_YOUR_VIDEOS out=datasets/mine"
        )
    return commands


def _in_words(step: Row) -> str:
    verb = step["verb"]
    if verb == "curate":
        return (
            f"{step['clips_kept']} clips kept, {step['clips_rejected']} rejected, {step['failed']} failed, "
            f"{step['duplicates']} duplicates from {step['sources']} videos "
            f"({step['sources_rejected']} without a clip) -> {step['dataset']}"
        )
    if verb == "train":
        return (
            f"{step['role']}: loss {step['loss_first']:.3f} -> {step['loss_last']:.3f} "
            f"in {step['steps']} steps -> {step['checkpoint']}"
        )
    if verb == "sample":
        return (
            f"{step['samples']} samples of {step['frames']} frames, {step['windows_per_sample']} windows each, "
            f"{step['seconds_per_sample']:.1f} s a sample -> {step['set']}"
        )
    shown = ", ".join(f"{k} {v:.3g}" for k, v in step["metrics"].items() if k in _SHOWN)
    return f"{shown} -> {step['out']}"


_SHOWN = ("seam_ratio", "motion_magnitude", "ssr_base_psnr", "nearest_is_own", "nearest_of")


def _section(name: str, step: Row) -> list[str]:
    verb = step["verb"]
    title = (
        f"<h2>{_text(name)} <span class=small>({_text(verb)}, {step['wall_s']:.0f} s)</span></h2>"
    )
    body = {"curate": _curate, "train": _train, "sample": _sample, "evaluate": _evaluate}[verb](
        step
    )
    return [title, f"<p>{_text(_in_words(step))}</p>", *body]


def _head(result: ChainResult) -> str:
    version = code_version()
    rows = [("run", result.run_id), ("code", version["code"]), ("python", version["python"])]
    rows += list(version["packages"].items())
    facts = " &middot; ".join(f"{_text(k)} <code>{_text(str(v))}</code>" for k, v in rows)
    return f"<h1>Kinoray: {_text(result.name)}</h1><p class=small>{_text(result.status)} &middot; {facts}</p>"


def _foot(result: ChainResult) -> str:
    commands = "".join(f"<li><code>{_text(c)}</code></li>" for c in _next_commands(result))
    honest = (
        "Tiny models that have seen a handful of clips reproduce them; that they do is what is checked here, "
        "not that they generalise."
    )
    return f"<h2>next</h2><ul>{commands}</ul><p class=small>{honest}</p>"


def _curate(step: Row) -> list[str]:
    dataset = Dataset.open(step["dataset"])
    ledger = dataset.ledger().to_pylist()
    sources = [row for row in ledger if row["kind"] == "source"]
    clips = [row for row in ledger if row["kind"] == "clip"]
    fates = Counter(_fate(row) for row in clips)
    bars = [("videos", len(sources)), ("candidate clips", len(clips)), *sorted(fates.items())]
    table = _table(
        ("video", "fate", "why", "candidates"),
        [
            (Path(row["source_uri"]).name, row["fate"], _why(row), str(row["num_candidates"] or 0))
            for row in sources
        ],
    )
    return [_bars(bars), table, "<div class=grid>", *_clips(dataset), "</div>"]


def _clips(dataset: Dataset, most: int = 24) -> Iterable[str]:
    rows = dataset.kept_clips().to_pylist()
    for row in rows[:most]:
        payload = read_payload(
            dataset.root, row["shard"], row["offset"], row["length"], row["crc32"]
        )
        scores = ", ".join(
            f"{k} {row[k]:.3g}" for k in ("motion", "luma_mean") if row.get(k) is not None
        )
        yield _card(
            bytes(payload), row["caption"] or "(no caption)", f"{row['clip_id'][:12]} {scores}"
        )
    if len(rows) > most:
        yield f"<p class=small>and {len(rows) - most} more clips</p>"


def _train(step: Row) -> list[str]:
    folder = Path(step["checkpoint"]).parent
    points = sorted(_losses(folder / "events.jsonl").items())
    note = (
        f"fixed draws: {step['loss_first']:.4f} before, {step['loss_last']:.4f} after; "
        f"checkpoint <code>{_text(step['digest'][:12])}</code>, "
        f"dataset <code>{_text(step['dataset_digest'][:12])}</code>"
    )
    return [_curve(points), f"<p class=small>{note}</p>"]


def _losses(path: Path) -> dict[int, float]:
    """Return the loss of each step; after a continuation the later line of a repeated step counts."""
    found: dict[int, float] = {}
    if path.exists():
        for event in read_events(path):
            if event.get("event") == "step":
                found[event["step"]] = event["loss"]
    return found


def _sample(step: Row) -> list[str]:
    folder = Path(step["set"])
    cards = []
    for row in read_set(folder)[:MOST_SAMPLES]:
        if row["status"] == "done":
            video = (folder / row["view_path"]).read_bytes()
            cards.append(
                _card(video, row["prompt"], f"seed {row['index']}, {row['identity'][:12]}")
            )
    return ["<div class=grid>", *cards, "</div>"]


def _evaluate(step: Row) -> list[str]:
    rows = [(name, f"{value:.4g}") for name, value in step["metrics"].items()]
    skipped = [(name, reason) for name, reason in step["skipped"].items()]
    return [_table(("metric", "value"), rows), _table(("not measured", "why"), skipped)]


def _card(video: bytes, title: str, note: str) -> str:
    data = base64.b64encode(video).decode()
    return (
        f'<div class=card><video controls loop muted preload=auto src="data:video/mp4;base64,{data}"></video>'
        f"<div>{_text(title)}</div><div class=small>{_text(note)}</div></div>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_text(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _bars(bars: Sequence[tuple[str, int]]) -> str:
    most = max((n for _, n in bars), default=1) or 1
    lines = []
    for i, (name, number) in enumerate(bars):
        y, width = 6 + 26 * i, 520 * number / most
        lines.append(
            f'<text x="190" y="{y + 15}" text-anchor="end">{_text(name)}</text>'
            f'<rect x="200" y="{y}" width="{width:.1f}" height="20" fill="#4a77b4"/>'
            f'<text x="{208 + width:.1f}" y="{y + 15}">{number}</text>'
        )
    return f'<svg width="800" height="{26 * len(bars) + 10}" role="img">{"".join(lines)}</svg>'


def _curve(points: Sequence[tuple[int, float]]) -> str:
    if len(points) < 2:
        return ""
    last, top = points[-1][0], max(loss for _, loss in points) or 1.0
    path = " ".join(f"{60 + 700 * s / last:.1f},{170 - 150 * v / top:.1f}" for s, v in points)
    return (
        '<svg width="800" height="200" role="img"><path d="M60 20V170H760" fill="none" stroke="#999"/>'
        f'<text x="52" y="26" text-anchor="end">{top:.3g}</text><text x="52" y="174" text-anchor="end">0</text>'
        f'<text x="760" y="190" text-anchor="end">step {last}</text><text x="66" y="16">training loss</text>'
        f'<polyline points="{path}" fill="none" stroke="#b4534a" stroke-width="1.5"/></svg>'
    )


def _fate(row: Row) -> str:
    return f"rejected: {row['rule']}" if row["fate"] == "rejected" else str(row["fate"])


def _why(row: Row) -> str:
    if row["fate"] == "failed":
        return f"{row['stage']}: {row['error_class']}: {row['message']}"
    if row["fate"] == "duplicate":
        return f"same content as {str(row['duplicate_of'])[:12]}"
    if row["score"] is None:
        return str(row["rule"] or "")
    return f"{row['rule']} ({row['score']:g}, threshold {row['threshold']:g})"


def _text(value: str) -> str:
    return html.escape(value, quote=True)
