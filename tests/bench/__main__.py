"""Speed as ratios, each against a named bound or peer in the same run: `make bench` prints the table and keeps it.

curate: CPU seconds of one source through the whole unit against decoding and scaling it once and encoding the kept clips
once (tests.bench.ingest). read: verified payload reads against np.memmap with the same CRC. executor: units a second
through the pool against bare Ray tasks. models: STUNet against its peers (tests.bench.models); train:
the loop under Ray Train against itself bare (tests.bench.train); both with tables of their own.
"""

import platform
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import ray

from cluster import pool
from cluster.interrupt import Interrupt
from cluster.session import Cluster, session
from ingest.clip import Prep
from ingest.keep import Keep
from ingest.shards import read_payload
from ingest.sources import list_sources
from ingest.store import Dataset, empty_captions
from ingest.unit import curate_unit, plan_unit
from tests.bench import ingest, models, storage, train
from tests.bench.machine import cores, cpu_name
from tests.bench.reading_bench import decoding
from tests.bench.storage_clips import corpora

SECONDS = 60
TABLE = Path(__file__).with_name("results.md")
Row = tuple[str, str, str, str]


def main() -> None:
    """Run all benches and write the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [*curate(folder), *read(folder), executor(), *decoded(folder)]
    rows += (
        storage.rows()
    )  # a quarter of an hour: the peers, the remote cost, a million ledger rows
    lines = [
        (
            f"Measured {time.strftime('%Y-%m-%d')} by `make bench` on {cpu_name()}, {cores()} cores, "
            f"Python {platform.python_version()}."
        ),
        "",
        "| what | ours | bound or peer | ratio |",
        "| --- | --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    text = "\n".join(lines) + "\n"
    TABLE.write_text(text)
    sys.stdout.write(text)
    train.main()  # some minutes, and another quarter: tables of their own
    models.main()


def curate(folder: Path) -> list[Row]:
    """Compare the CPU of curation with its floor (see tests.bench.ingest), and keep a dataset for the reads."""
    film = ingest.made(
        ingest.unpacked(folder), folder / "film.mp4", "-ss", "61", "-t", str(SECONDS), "-c", "copy"
    )
    found = ingest.measured("film", film, folder)
    prep = Prep()
    dataset = Dataset.create(folder / "dataset", prep.contract, prep)
    unit = plan_unit(list_sources([str(film)])[0], prep=prep)
    made = curate_unit(unit, prep=prep, keep=Keep(), root=dataset.root)
    dataset.commit(made.rows, empty_captions(), app_id="bench", batch=1)
    floor = found["decode_s"] + found["encode_s"]
    return [
        (
            f"curate one minute of 720p24, {found['kept']} clips kept",
            f"{found['ours_s']:.2f} CPU-s",
            f"decode and scale it, encode the kept: {floor:.2f} CPU-s",
            f"{found['ours_s'] / floor:.2f}",
        )
    ]


def read(folder: Path) -> list[Row]:
    """Compare verified reads in random order with np.memmap slices of the same shards."""
    dataset = Dataset.open(folder / "dataset")
    rows = dataset.kept_clips().to_pylist()
    if not rows:
        return []
    order = np.random.default_rng(0).integers(0, len(rows), 4000)
    maps = {row["shard"]: np.memmap(dataset.root.path / row["shard"], mode="r") for row in rows}

    def plain() -> None:
        for i in order:
            row = rows[i]
            zlib.crc32(maps[row["shard"]][row["offset"] : row["offset"] + row["length"]])

    def verified() -> None:
        for i in order:
            row = rows[i]
            read_payload(dataset.root, row["shard"], row["offset"], row["length"], row["crc32"])

    peer, ours = cpu_of(plain), cpu_of(verified)
    rate = f"{len(order) / ours:.0f} clips/CPU-s, CRC checked"
    return [
        (
            "random payload reads",
            rate,
            f"np.memmap and the same CRC: {len(order) / peer:.0f}",
            f"{peer / ours:.2f}",
        )
    ]


def decoded(folder: Path) -> list[Row]:
    """Compare the training stream with bare decord processes over the same clips on the same cores, in CPU time."""
    payloads = [bytes(clip) for clip in corpora()["h264"].payloads[:200]]
    found = []
    for number in range(1, min(2, cores()) + 1):
        figures = decoding(payloads, folder / f"decoding{number}", cores=number)
        found.append(
            (
                f"training stream, decoding on {number} cores",
                f"{figures.ours_cpu_ms:.1f} CPU-ms a clip",
                f"bare decord and the same resize: {figures.bare_cpu_ms:.1f}",
                f"{figures.cpu_ratio:.2f}",
            )
        )
    return found


def executor() -> Row:
    """Compare units through the pool with bare Ray tasks that are waited for in the same window."""
    number = 400
    with session(Cluster()), Interrupt() as stop:
        units = (pool.Unit(key=str(i), payload=i) for i in range(number))
        list(pool.run_tasks(abs, (pool.Unit(key="w", payload=1),), config=pool.Pool(), stop=stop))
        started_s = time.monotonic()
        done = sum(1 for _ in pool.run_tasks(abs, units, config=pool.Pool(), stop=stop))
        ours = done / (time.monotonic() - started_s)
        task = ray.remote(num_cpus=1, max_retries=0)(lambda x: abs(x))  # noqa: PLW0108  Ray takes no builtins
        ray.get(task.remote(1))
        started_s = time.monotonic()
        flying = [task.remote(i) for i in range(4)]
        for i in range(4, number):
            ready, flying = ray.wait(flying, num_returns=1)
            ray.get(ready)
            flying.append(task.remote(i))
        ray.get(flying)
        bare = number / (time.monotonic() - started_s)
    return (
        "executor, empty units",
        f"{ours:.0f} units/s",
        f"bare Ray tasks, same window: {bare:.0f}",
        f"{ours / bare:.2f}",
    )


def ffmpeg(*words: str | Path) -> None:
    """Run the bundled ffmpeg."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, words)]
    subprocess.run(command, check=True)


def cpu_of(work) -> float:
    """Return the CPU seconds of `work`, children included."""
    before = spent()
    work()
    return spent() - before


def spent() -> float:
    usages = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usages)


if __name__ == "__main__":
    main()
