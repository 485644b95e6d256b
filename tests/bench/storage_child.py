"""One format in a process of its own: `python -m tests.bench.storage_child '<json>'` prints what it measured as JSON.

Nothing but the standard library is loaded before the format imports what it needs, so that import time and memory
are the format's own. Time is CPU time of the whole process, all threads.
"""

import json
import random
import re
import statistics
import sys
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tests.bench.storage_corpus import Corpus, load
from tests.bench.storage_formats import OWN, Format
from tests.bench.storage_peers import PEERS

BEST_REPEATS = 5
MEMBERS: dict[str, type[Format]] = OWN | PEERS


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process is told: a corpus, a format, its folder, how often to pass over the clips, the order's seed."""

    task: str
    format: str
    corpus: str
    folder: str
    passes: int = 1
    seed: int = 0


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    corpus, kind = load(Path(job.corpus)), MEMBERS[job.format]
    folder = Path(job.folder)
    if job.task == "write":
        folder.mkdir(parents=True)
        before = time.process_time()
        kind.write(corpus, folder)
        found = {"write_s": time.process_time() - before, "bytes": size(folder)}
    else:
        found = measured(job, kind, corpus)
    sys.stdout.write(f"\n{json.dumps(found | {'version': version(kind)})}\n")


def measured(job: Job, kind: type[Format], corpus: Corpus) -> dict[str, float]:
    """Time import and opening; then all clips, in sequence and in random order; then the best tenth of them."""
    before = time.process_time()
    kind.imports()
    imported = time.process_time()
    opened = kind(Path(job.folder), corpus)
    found = {"import_s": imported - before, "open_s": time.process_time() - imported}
    if kind.reads:
        found |= read(job, opened, corpus)
        found["rss_anon_mb"] = memory_mb()
        # After the clock: what a format that verifies by itself handed out is what was written.
        check(opened.sequential(), corpus)
    if kind.filters:
        found["best_s"] = best(opened, corpus)
    return found


def read(job: Job, opened: Format, corpus: Corpus) -> dict[str, float]:
    """Return the CPU seconds a clip of `passes` passes in sequence and of as many in random order."""
    count = len(corpus.lengths)
    order = orders(count, job.passes, job.seed)
    ways = {
        "sequential": ([opened.sequential] * job.passes, list(range(count)) * job.passes),
        "random": ([lambda: opened.random(order)], order),
    }
    # Which of the two comes first pays for the first touch of the mapped pages; so they take turns.
    names = sorted(ways, reverse=job.seed % 2 == 0)
    return {f"{name}_s": consume(*ways[name], opened, corpus) / len(order) for name in names}


def orders(count: int, passes: int, seed: int) -> list[int]:
    """Return `passes` permutations one behind the other: the same for every format of a repeat."""
    chance, order = random.Random(seed), []
    for _ in range(passes):
        order += chance.sample(range(count), count)
    return order


def consume(streams: list, indices: list[int], opened: Format, corpus: Corpus) -> float:
    """Return the CPU seconds of taking all payloads with a CRC-32 of each; raises when one is not as written."""
    touch = len if opened.verifies else zlib.crc32
    wanted = corpus.lengths if opened.verifies else corpus.crcs
    total = 0
    before = time.process_time()
    for stream in streams:
        for payload in stream():
            total += touch(payload)
    took_s = time.process_time() - before
    if total != sum(wanted[i] for i in indices):
        raise SystemExit(f"{type(opened).__name__}: gave other payloads than were written")
    return took_s


def check(payloads: Iterable, corpus: Corpus) -> None:
    """Raise unless these payloads are those of the corpus, in its order."""
    if [zlib.crc32(payload) for payload in payloads] != corpus.crcs:
        raise SystemExit("payloads differ from what was written, or come in another order")


def best(opened: Format, corpus: Corpus) -> float:
    """Return the CPU seconds of finding and reading the best tenth; the first time, with late imports, is left out."""
    took_s = [
        consume([lambda: opened.best(corpus.threshold)], corpus.best, opened, corpus)
        for _ in range(BEST_REPEATS + 1)
    ]
    return statistics.median(took_s[1:])


def memory_mb() -> float:
    """Return the anonymous memory of this process: what is not a mapping of a file."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1e3


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def version(kind: type[Format]) -> str:
    try:
        return metadata.version(kind.version_of)
    except metadata.PackageNotFoundError:
        return "here"


if __name__ == "__main__":
    main()
