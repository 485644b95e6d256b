"""What status, logs, stop and list do without a cluster: they read run folders, and signal a process of this machine."""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster import running
from jobs import render, run_folders
from jobs.run_folders import Run

LOOK_EVERY_S = 1.0
MOST_LISTED = 50


def status(folder: Path, *, watch: bool, as_json: bool) -> None:
    """Show the run in a folder; watched, again until nobody works in it."""
    run, shown = run_folders.look(folder), ""
    with _leaving(run):
        while watch and run.worker is not None:
            shown = render.again(_line(run), shown)
            time.sleep(LOOK_EVERY_S)
            run = run_folders.look(run.folder)
    steps = _steps(run)
    if as_json:
        told = {**_facts(run), "stages": run.stages, "next": _next(run)}
        render.result({**told, "steps": [_facts(step) for step in steps]}, as_json=True)
        return
    render.result(_facts(run), as_json=False)
    render.table([*run.stages.items(), *((f"{s.folder.name} ({s.verb})", _line(s)) for s in steps)])
    render.say(f"next: {_next(run)}")


def logs(folder: Path, *, follow: bool, as_json: bool) -> None:
    """Show the events of a run as lines; followed, until nobody works in it."""
    run = run_folders.look(folder)
    write = render.say if as_json else render.out
    told = 0
    with _leaving(run):
        while True:
            at_work = running.worker(run.folder) is not None
            events = list(run_folders.events(run.folder))
            for event in events[told:]:
                if line := run_folders.line(event):
                    write(line)
            told = len(events)
            if not (follow and at_work):
                break
            time.sleep(LOOK_EVERY_S)
    run = run_folders.look(run.folder)
    if as_json:
        render.result({**_facts(run), "next": _next(run)}, as_json=True)
    else:
        render.say(f"next: {_next(run)}")


def stop(folder: Path, *, as_json: bool) -> None:
    """Ask the process in a folder to commit what is in flight and end, and wait for it."""
    run = run_folders.look(folder)
    if run.worker is not None:
        _signal(run.folder, run.worker)
        render.say("kinoray: it commits what is in flight")
        with _leaving(run):
            while running.worker(run.folder) == run.worker:
                time.sleep(LOOK_EVERY_S / 4)
        run = run_folders.look(run.folder)
    if as_json:
        render.result({**_facts(run), "next": _next(run)}, as_json=True)
        return
    render.result(_facts(run), as_json=False)
    render.say(f"next: {_next(run)}")


def listing(folder: Path, *, as_json: bool) -> None:
    """Show the runs below a folder, those that wrote last first."""
    if not folder.is_dir():
        raise run_folders.NoRun(f"{folder}: no such folder; next: kinoray list FOLDER")
    found = run_folders.find(folder)
    runs = [run_folders.look(path) for path in found[:MOST_LISTED]]
    if as_json:
        render.result({"runs": [_facts(run) for run in runs], "found": len(found)}, as_json=True)
        return
    if not runs:
        render.say(f"no runs below {folder}; next: kinoray VERB RECIPE")
        return
    names = ("folder", "verb", "state", "last", "said")
    rows = [tuple(render.cell(_facts(run)[name]) for name in names) for run in runs]
    render.table([names, *rows])
    if len(found) > len(runs):
        render.say(f"and {len(found) - len(runs)} older")
    render.say(f"next: kinoray status {runs[0].folder}")


def _signal(folder: Path, worker: running.Worker) -> None:
    if worker.job:
        raise run_folders.NoRun(
            f"{folder}: the Ray job {worker.job} is at work in it; "
            f"next: kinoray stop {worker.job} --address http://HOST:8265"
        )
    if not worker.is_here:
        raise run_folders.NoRun(
            f"{folder}: process {worker.pid} of {worker.host} is at work in it, this is {socket.gethostname()}; "
            f"next: kinoray stop there"
        )
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker.pid, signal.SIGTERM)


@contextlib.contextmanager
def _leaving(run: Run) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        render.say(f"\nkinoray: the run goes on; next: kinoray logs {run.folder} --follow")
        sys.exit(130)


def _steps(run: Run) -> list[Run]:
    """Return the runs of a chain's steps in the order in which they began."""
    if run.verb != "run":
        return []
    found = [run_folders.look(path) for path in run_folders.find(run.folder) if path != run.folder]
    return sorted(found, key=lambda step: step.begun_s)


def _facts(run: Run) -> dict[str, Any]:
    worker = run.worker
    return {
        "folder": str(run.folder),
        "verb": run.verb,
        "state": run.state,
        "exit": run.exit,
        "digest": run.digest,
        "begun": _clock(run.begun_s),
        "last": _clock(run.last_s),
        "process": f"{worker.pid} on {worker.host}" if worker else "",
        "job": worker.job if worker else "",
        "warnings": run.warnings,
        "said": run.text,
    }


def _line(run: Run) -> str:
    stages = "; ".join(f"{name} {text}" for name, text in list(run.stages.items())[-1:])
    return ", ".join(part for part in (run.state, stages or run.text) if part)


def _next(run: Run) -> str:
    if run.state == "running":
        return f"kinoray logs {run.folder} --follow, or kinoray stop {run.folder}"
    if run.state == "done":
        return f"kinoray logs {run.folder}"
    return f"kinoray logs {run.folder}; the same command as before continues"


def _clock(time_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_s)) if time_s else ""
