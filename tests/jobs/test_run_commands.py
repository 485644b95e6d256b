"""status, logs, stop and list from run folders alone: no cluster, no Ray."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.__main__ import _guarded

CHECKOUT = Path(__file__).resolve().parents[2]
# A run's parts as a verb has them: a claim, a log, the stop flag, the mark of who works here; it stops like one.
RUN = """
import sys, time
from pathlib import Path
from cluster import running
from cluster.eventlog import EventLog
from cluster.interrupt import Interrupt
from pipelines.output import claim, finish

folder = Path(sys.argv[1])
claimed = claim(folder, "train", {"steps": 3}, inputs={}, resume=True)
log = EventLog(folder / "events.jsonl")
with Interrupt() as stop, running.held(folder):
    log.emit(verb="train", event="stage", text="train: begins")
    log.emit(verb="train", event="warning", text="train: a clip is damaged")
    done = 0
    while not stop.requested:
        log.emit(verb="train", event="progress", stage="steps", done=done, total=900, left_s=7.0)
        done += 1
        time.sleep(0.1)
    log.emit(verb="train", event="stage", text="train: saved")
    finish(claimed, {"status": "interrupted"})
sys.exit(130)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/base")
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen([sys.executable, "-c", RUN, str(folder)], env=env)
    deadline_s = time.monotonic() + 60
    while not (folder / "events.jsonl").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    yield folder, process
    process.kill()
    process.wait()


def guarded(*words):
    try:
        return _guarded(list(words))
    except SystemExit as end:
        return end.code


def told(capsys, *words, code=0):
    capsys.readouterr()
    assert guarded(*words, "--json") == code
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_run_is_looked_at_and_stopped_by_its_folder(run, capsys):
    folder, process = run
    found = told(capsys, "status", str(folder))
    assert (found["verb"], found["state"], found["warnings"]) == ("train", "running", 1)
    assert "of 900, about 7 s left" in found["stages"]["steps"]
    assert str(process.pid) in found["process"]
    assert told(capsys, "status")["folder"] == str(folder)  # the newest below here
    (row,) = told(capsys, "list")["runs"]
    assert (row["folder"], row["state"]) == (str(folder), "running")

    stopped = told(capsys, "stop", str(folder))
    assert process.wait(30) == 130
    assert (stopped["state"], stopped["exit"], stopped["said"]) == (
        "interrupted",
        130,
        "train: saved",
    )
    assert guarded("logs", str(folder), "--follow") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("warning: train: a clip is damaged")
    assert lines[-1].endswith("train: saved")
    assert guarded("stop", str(folder)) == 0


def test_a_run_that_was_killed_is_unfinished(run, capsys):
    folder, process = run
    process.kill()
    process.wait()
    found = told(capsys, "status", str(folder), "--watch")
    assert (found["state"], found["exit"], found["process"]) == ("unfinished", None, "")
    assert "the same command as before continues" in found["next"]


def test_following_ends_with_the_run_and_repeats_nothing(run, capsys):
    folder, process = run
    time.sleep(0.5)
    process.terminate()
    assert guarded("logs", str(folder), "--follow") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("train: begins" in line for line in lines) == 1
    steps = [line.split()[2] for line in lines if " steps: " in line]
    assert steps == [str(number) for number in range(len(steps))]


def test_a_folder_without_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert guarded("list") == 0
    assert told(capsys, "list") == {"runs": [], "found": 0}
    (tmp_path / "recipe.json").write_text('{"name": "of another program"}')
    (tmp_path / "events.jsonl").write_text("\xff\n")
    assert guarded("status", ".") == 2
    assert guarded("list", "nowhere") == 2
