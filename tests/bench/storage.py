"""The storage bench: kinoray's shards and ledger against the formats that others train from.

`python -m tests.bench.storage` measures and writes storage.md. One loop for all formats, the same payloads in the same
order, a CRC-32 of every payload on both sides, views of the file wherever a library can give them, a fresh process for
every (format, repeat) and the formats in a new order each repeat. Time is CPU time, because others use the machine.
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.bench import storage_remote, storage_table
from tests.bench.storage_child import MEMBERS, Job
from tests.bench.storage_clips import cache, corpora
from tests.bench.storage_corpus import Corpus
from tests.bench.storage_formats import OWN
from tests.bench.storage_table import Ledger, Result, Row, Workload

LOCK = Path(__file__).with_name("requirements.lock")
TABLE = Path(__file__).with_name("storage.md")
CHECKOUT = Path(__file__).resolve().parents[2]
PASSES = {"h264": 10, "raw": 4}
# The gates' rows are repeated most: time on a shared machine is worth little once.
GATED = ("memmap", "memory", "ours", "ours_reader")
GATE_REPEATS, OWN_REPEATS, PEER_REPEATS, OPENINGS = 15, 5, 3, 5
TIMEOUT_S = 900


def main() -> None:
    """Measure everything and write the table."""
    rows()
    sys.stdout.write(TABLE.read_text())


def rows() -> list[Row]:
    """Measure everything, write storage.md, and return what `make bench` shows of it."""
    peers = Peers()
    with tempfile.TemporaryDirectory(prefix="kinoray-bench-") as name:
        work = Path(name)
        clips = corpora()
        say("remote reads")
        remote = storage_remote.measure(clips["h264"])
        ledger = at_scale(work / "ledger")
        workloads = [compare(kind, clips[kind], peers, work / kind) for kind in PASSES]
    TABLE.write_text(storage_table.text(workloads, remote, ledger))
    return storage_table.summary(workloads, remote, ledger)


def say(text: str) -> None:
    sys.stderr.write(f"storage bench: {text}\n")


@dataclass
class Peers:
    """The peers' environment, made from its lock when it is first needed; `missing` tells why there is none."""

    missing: str = ""
    _python: str = ""
    _tried: bool = field(default=False, repr=False)

    @property
    def python(self) -> str:
        if not self._tried:
            self._tried = True
            try:
                self._python = self._make()
            except (OSError, subprocess.SubprocessError) as error:
                told = getattr(error, "stderr", "") or str(error)
                self.missing = last_line(told)
        return self._python

    def _make(self) -> str:
        home = cache() / "venv"
        uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
        say("the peers' environment")
        if not (home / "bin" / "python").exists():
            subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, home], check=True)
        sync = [uv, "pip", "sync", "--quiet", "--compile-bytecode", "--require-hashes", str(LOCK)]
        env = {**os.environ, "VIRTUAL_ENV": str(home)}
        subprocess.run(sync, check=True, env=env, capture_output=True, text=True)
        return str(home / "bin" / "python")


def compare(
    name: str, corpus: Corpus, peers: Peers, work: Path, formats: Iterable[str] = MEMBERS
) -> Workload:
    """Write a corpus in every format, then read it from all of them, repeat by repeat."""
    results = {}
    for key in formats:
        own, kind = key in OWN, MEMBERS[key]
        result = Result(about=kind.about, own=own, shared=bool(kind.stored))
        result.missing = "" if own or peers.python else peers.missing
        results[key] = result
        if not result.missing and not kind.stored:
            say(f"{name}: writing {key}")
            run(job(name, key, corpus, work, task="write"), peers, result, result.written)
    for repeat in range(GATE_REPEATS):
        order = [key for key in results if repeat < repeats(key)]
        random.Random(repeat).shuffle(order)
        say(f"{name}: repeat {repeat + 1} of {GATE_REPEATS}, {len(order)} formats")
        for key in order:
            if not results[key].missing:
                found: dict[str, float] = {}
                run(job(name, key, corpus, work, seed=repeat), peers, results[key], found)
                results[key].runs[repeat] = found
    shutil.rmtree(work, ignore_errors=True)
    return Workload(
        name=name, num_clips=len(corpus.lengths), lengths=corpus.lengths, results=results
    )


def repeats(key: str) -> int:
    if key in GATED:
        return GATE_REPEATS
    return OWN_REPEATS if key in OWN else PEER_REPEATS


def job(
    name: str, key: str, corpus: Corpus, work: Path, *, task: str = "read", seed: int = 0
) -> Job:
    folder = work / (MEMBERS[key].stored or key)
    return Job(
        task=task,
        format=key,
        corpus=str(corpus.path),
        folder=str(folder),
        passes=PASSES.get(name, 1),
        seed=seed,
    )


def run(told: Job, peers: Peers, result: Result, found: dict[str, float]) -> None:
    """Do a job in a process of its own and keep what it measured; a failure is the format's result."""
    python = sys.executable if told.format in OWN else peers.python
    command = [python, "-m", "tests.bench.storage_child", json.dumps(asdict(told))]
    work = Path(told.folder).parent
    home = work / "home"
    home.mkdir(parents=True, exist_ok=True)
    env = {
        **{k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
        "HOME": str(home),
        "TMPDIR": str(work),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        command,
        cwd=CHECKOUT,
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        result.missing = last_line(done.stderr) or f"its process ended with {done.returncode}"
        say(f"{told.format} failed: {done.stderr[-2000:]}")
        return
    facts = json.loads(done.stdout.splitlines()[-1])
    result.version = facts.pop("version")
    found |= facts


def at_scale(folder: Path) -> Ledger:
    """Build the ledger of a million rows, then open it, ask it and commit to it in fresh processes."""

    def ask(task: str) -> dict[str, float]:
        say(f"ledger: {task}")
        command = [sys.executable, "-m", "tests.bench.storage_ledger", task, str(folder)]
        done = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    built = ask("build")
    openings = [ask("open") for _ in range(OPENINGS)]
    opened = {key: statistics.median(o[key] for o in openings) for key in openings[0]}
    found = built | opened | ask("filter") | ask("commit")
    shutil.rmtree(folder)
    return found


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:160] if lines else ""


if __name__ == "__main__":
    main()
