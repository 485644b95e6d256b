"""What run folders tell by themselves: what was asked, how far it is, how it ended. Nothing of Ray, no cluster."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import running
from cluster.eventlog import read_events
from jobs import render

CODES = {"done": 0, "incomplete": 3, "interrupted": 130}
# A run lies in its own folder, in a chain's, in a dataset's runs/, or under .kinoray/runs.
DEPTH = 4
# Folders that hold thousands of files and never a run.
SKIPPED = frozenset(
    {"videos", "shards", "checkpoints", "samples", "manifest", "ledger", "node_modules"}
)


class NoRun(Exception):
    """There is no run in a folder; the message names the next step."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run as its folder tells of it.

    `state` is running, done, incomplete, interrupted, or unfinished: nobody works in it and it has no result. `stages` has the
    last progress of each stage, `text` the last words, times are UNIX seconds.
    """

    folder: Path
    verb: str
    digest: str
    state: str
    worker: running.Worker | None
    begun_s: float
    last_s: float
    text: str
    warnings: int
    stages: dict[str, str] = field(default_factory=dict)

    @property
    def exit(self) -> int | None:
        """Return the exit status that its end stands for, None without an end."""
        return CODES.get(self.state)


def look(folder: Path) -> Run:
    """Return the run in `folder`, or the newest below it; raises NoRun."""
    if _recipe(folder) is not None:
        return _read(folder)
    runs = find(folder)
    if not runs:
        raise NoRun(
            f"{folder}: no run in it; next: kinoray list FOLDER, or --address http://HOST:8265 for a job of a cluster"
        )
    return _read(runs[0])


def find(root: Path) -> list[Path]:
    """Return the folders of runs in and below `root`, those that wrote last first."""
    return sorted(_walk(root, DEPTH), key=_written_s, reverse=True)


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    if _recipe(folder) is not None:
        yield folder
    with contextlib.suppress(OSError):
        inner = [e.name for e in os.scandir(folder) if e.is_dir(follow_symlinks=False)]
        wanted = [
            n for n in inner if n not in SKIPPED and (not n.startswith(".") or n == ".kinoray")
        ]
        for name in sorted(wanted) if depth else ():
            yield from _walk(folder / name, depth - 1)


def _written_s(folder: Path) -> float:
    log = folder / "events.jsonl"
    return (log if log.exists() else folder / "recipe.json").stat().st_mtime


def _recipe(folder: Path) -> dict[str, Any] | None:
    found = _json(folder / "recipe.json")
    return found if found and {"verb", "digest", "recipe"} <= found.keys() else None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _read(folder: Path) -> Run:
    recipe = _recipe(folder) or {}
    first_s = last_s = 0.0
    text, warnings = "", 0
    stages: dict[str, str] = {}
    for event in events(folder):
        last_s = float(event.get("time", last_s))
        first_s = first_s or last_s
        warnings += event.get("event") == "warning"
        if event.get("event") == "progress":
            stages[str(event.get("stage", event.get("verb", "")))] = render.progress_text(event)
        elif event.get("event") == "step":
            stages["step"] = f"{event.get('step')}, loss {event.get('loss', float('nan')):.4g}"
        elif event.get("text"):
            text = str(event["text"])
    worker = running.worker(folder)
    return Run(
        folder=folder,
        verb=str(recipe.get("verb", "")),
        digest=str(recipe.get("digest", "")),
        state=_state(folder, worker),
        worker=worker,
        begun_s=first_s,
        last_s=last_s,
        text=text,
        warnings=warnings,
        stages=stages,
    )


def _state(folder: Path, worker: running.Worker | None) -> str:
    if worker is not None:
        return "running"
    return str((_json(folder / "result.json") or {}).get("status", "unfinished"))


def events(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what a run has logged, of all its attempts; nothing before its first word."""
    path = folder / "events.jsonl"
    if path.exists():
        yield from read_events(path)


def line(event: dict[str, Any]) -> str:
    """Return an event as one line, "" for one that is for machines."""
    kind = event.get("event")
    at = time.strftime("%H:%M:%S", time.localtime(float(event.get("time", 0.0))))
    if kind == "progress":
        return f"{at} {event.get('stage', event.get('verb', ''))}: {render.progress_text(event)}"
    if kind == "step":
        return f"{at} step {event.get('step')}: loss {event.get('loss', float('nan')):.4g}"
    if kind in ("stage", "note", "warning"):
        mark = "warning: " if kind == "warning" else ""
        return f"{at} {mark}{event.get('text', '')}"
    return ""
