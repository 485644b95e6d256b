"""Sampling killed at random moments: its driver, a sampling actor, or the raylet, by their process ids only."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from ingest.objects import Root
from ingest.tables import Table
from pipelines.manifest import FOLDER, complete_rows, read_set
from pipelines.videos import read_frames
from tests.faults.curate_kills import END_S, family, find, start, waited
from tests.pipelines.made_roles import made_roles

VICTIMS = ("driver", "worker", "raylet")
ACTOR = "ray::Host"
# How many an actor may have begun: one that it generates, one that it writes.
IN_FLIGHT = 2
RECIPE = """
verb = "sample"
prompts = "prompts.txt"
base = "{base}"
motion = "{motion}"
ssr = "{ssr}"
num_seeds = 2
base_solver = {{steps = {steps}}}
ssr_solver = {{steps = 4}}
windows = {{window = 8, overlap = 2}}
num_actors = {actors}
ssr_actors = {ssr_actors}
"""


def recipe(
    folder: Path, *, prompts: int, actors: int = 2, ssr_actors: int = 0, steps: int = 25
) -> Path:
    """Write checkpoints, prompts and a recipe of a set; more steps make its videos slower."""
    made = made_roles(folder / "roles")
    (folder / "prompts.txt").write_text("\n".join(f"a thing, number {i}" for i in range(prompts)))
    place = folder / "set.toml"
    place.write_text(RECIPE.format(**made, actors=actors, ssr_actors=ssr_actors, steps=steps))
    return place


@dataclass(frozen=True, kw_only=True)
class Killed:
    """What a kill met: the run's exit code, how many samples it had committed, how many files of others it left."""

    code: int
    committed: int
    again: int


def killed_when(folder: Path, victim: str, more: int, after_s: float, *words: str) -> Killed:
    """Run the command line, kill one victim `after_s` behind the `more`th sample that it commits, and wait for the end.

    No file of a committed sample may change, whatever is killed and however the run goes on.
    """
    out = folder / "out"
    before = stamps(out)
    begun = len(before)
    process = start(folder, words, folder / "said")
    run = psutil.Process(process.pid)
    children: list[psutil.Process] = []
    last_s = time.monotonic() + END_S
    while process.poll() is None and time.monotonic() < last_s:
        if progress(out) >= begun + more:
            time.sleep(after_s)
            children = family(run)
            if target := actor(run) if victim == "worker" else find(run, victim):
                target.kill()
                break
        time.sleep(0.02)
    code = waited(process, children + family(run), victim)
    after = stamps(out)
    assert before.items() <= after.items(), "a committed sample was made again"
    known = {path.parent / path.name.split(".")[0] for path in after}
    left = {path.parent / path.name.split(".")[0] for path in out.glob("videos/*/*.mp4")} - known
    return Killed(code=code, committed=len(after), again=len(left))


def actor(run: psutil.Process) -> psutil.Process | None:
    """Return a sampling actor."""
    for one in family(run):
        try:
            if " ".join(one.cmdline()).startswith(ACTOR):
                return one
        except psutil.Error:
            continue
    return None


def progress(out: Path) -> int:
    """Return how many samples the log calls done."""
    log, found = out / "events.jsonl", 0
    for line in log.read_text().splitlines() if log.exists() else ():
        if '"progress"' in line:
            try:
                found = int(json.loads(line)["done"])
            except (ValueError, KeyError):
                continue
    return found


def stamps(out: Path) -> dict[Path, int]:
    """Return when each committed sample's first file was written."""
    if not (out / FOLDER).exists():
        return {}
    rows = [row for row in read_set(out) if row["status"] == "done"]
    return {out / row["base_path"]: (out / row["base_path"]).stat().st_mtime_ns for row in rows}


def check(out: Path, calm: Path) -> None:
    """Every sample once, its files those of the manifest, its frames those of an undisturbed run; nothing half written."""
    rows = Table.open(Root.of(out), FOLDER).rows().to_pylist()
    done = [row["identity"] for row in rows if row["status"] == "done"]
    assert len(done) == len(set(done)) == len(complete_rows(out))
    frames = [{r["identity"]: r["frames_sha256"] for r in complete_rows(f)} for f in (out, calm)]
    assert frames[0] == frames[1]
    for row in complete_rows(out):
        read_frames(out / row["base_path"], row["base_sha256"])
        read_frames(out / row["lossless_path"], row["frames_sha256"])
    named = {row[key] for row in complete_rows(out) for key in ("base_path", "lossless_path", "view_path")}  # fmt: skip
    found = {str(path.relative_to(out)) for path in out.glob("videos/**/*") if path.is_file()}
    assert found == named


def again(folder: Path) -> None:
    """Begin the set anew."""
    shutil.rmtree(folder / "out")


def campaign(
    folder: Path, words: Sequence[str], kills: Sequence[tuple[str, int, float]], actors: int
) -> list[str]:
    """Kill again and again in one set, each time after some more samples; return what each kill met."""
    told = []
    for victim, more, after_s in kills:
        met = killed_when(folder, victim, more, after_s, *words)
        assert met.again <= IN_FLIGHT * actors, f"{met.again} samples will be made again"
        if victim == "worker":
            assert met.code == 0, (folder / "said").read_text()[-2000:]
        told.append(f"{victim}: {met.committed} committed, {met.again} begun, code {met.code}")
        if met.code == 0:
            check(folder / "out", folder / "calm")
            again(folder)
    return told
