"""The report page of a chain and its last screen: what was made, where, and what to try next.

One self-contained file: videos are embedded, nothing is loaded from anywhere, every text from outside is escaped.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.eventlog import read_events
from ingest.files import atomic_write
from ingest.store import Dataset
from jobs import dataset_report
from jobs.page import card, curve, page, table, text
from pipelines.chain import ChainResult
from pipelines.identity import code_version
from pipelines.manifest import read_set

Row = Mapping[str, Any]
KINORAY = ".venv/bin/kinoray"
MOST_SAMPLES = 48


def write(result: ChainResult) -> Path:
    """Write the page of a chain that ran at least one step and return its path."""
    steps = result.steps
    parts = [_head(result)]
    for name, step in steps.items():
        parts += _section(name, step)
    parts.append(_foot(result))
    path = Path(result.out) / "report.html"
    atomic_write(path, page(result.name, parts))
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
    title = f"<h2>{text(name)} <span class=small>({text(verb)}, {step['wall_s']:.0f} s)</span></h2>"
    body = {"curate": _curate, "train": _train, "sample": _sample, "evaluate": _evaluate}[verb](
        step
    )
    return [title, f"<p>{text(_in_words(step))}</p>", *body]


def _head(result: ChainResult) -> str:
    version = code_version()
    rows = [("run", result.run_id), ("code", version["code"]), ("python", version["python"])]
    rows += list(version["packages"].items())
    facts = " &middot; ".join(f"{text(k)} <code>{text(str(v))}</code>" for k, v in rows)
    return f"<h1>Kinoray: {text(result.name)}</h1><p class=small>{text(result.status)} &middot; {facts}</p>"


def _foot(result: ChainResult) -> str:
    commands = "".join(f"<li><code>{text(c)}</code></li>" for c in _next_commands(result))
    honest = (
        "Tiny models that have seen a handful of clips reproduce them; that they do is what is checked here, "
        "not that they generalise."
    )
    return f"<h2>next</h2><ul>{commands}</ul><p class=small>{honest}</p>"


def _curate(step: Row) -> list[str]:
    return dataset_report.fates(Dataset.open(step["dataset"]))


def _train(step: Row) -> list[str]:
    folder = Path(step["checkpoint"]).parent
    points = sorted(_losses(folder / "events.jsonl").items())
    note = (
        f"fixed draws: {step['loss_first']:.4f} before, {step['loss_last']:.4f} after; "
        f"checkpoint <code>{text(step['digest'][:12])}</code>, "
        f"dataset <code>{text(step['dataset_digest'][:12])}</code>"
    )
    return [curve(points), f"<p class=small>{note}</p>"]


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
            cards.append(card(video, row["prompt"], f"seed {row['index']}, {row['identity'][:12]}"))
    return ["<div class=grid>", *cards, "</div>"]


def _evaluate(step: Row) -> list[str]:
    rows = [(name, f"{value:.4g}") for name, value in step["metrics"].items()]
    skipped = [(name, reason) for name, reason in step["skipped"].items()]
    return [table(("metric", "value"), rows), table(("not measured", "why"), skipped)]
