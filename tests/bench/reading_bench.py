"""Decode-bound training reads against bare decord: the same clips, frames, resize and cores.

Bare: one process a core, payloads in memory, decord, area resize, nothing else. Ours: a ClipStream with one decode worker a
core, its consumer on the same cores, order, CRC, batches and all. Two measures: wall time in turns (median ratio of pairs), and
CPU time a clip of all processes while both run side by side on the same cores, so that what else the machine does slows both.

    python -m tests.bench.reading_bench CLIP.mp4 ...
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

import cv2
import decord
import numpy as np

from ingest.augment import Frames
from ingest.decode import payload_frames
from ingest.loader import ClipStream, Part
from ingest.objects import Root
from ingest.order import Cursor
from ingest.reader import ViewReader
from ingest.reads import Work
from tests.ingest.made_views import place, write_view

BATCH, WARM = 8, 5


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Clips a second and CPU milliseconds a clip, of us and bare; ratios above 1 are in our favour."""

    cores: int
    ours_per_s: float
    bare_per_s: float
    wall_ratio: float
    ours_cpu_ms: float
    bare_cpu_ms: float
    consumer_cpu_ms: float

    @property
    def cpu_ratio(self) -> float:
        return self.bare_cpu_ms / self.ours_cpu_ms


def decoding(
    payloads: Sequence[bytes],
    folder: Path,
    *,
    cores: int,
    clips: int = 96,
    pairs: int = 5,
    px: int = 128,
) -> Figures:
    """Measure on the first `cores` cores that this process may use, `clips` a core and turn."""
    chosen = sorted(os.sched_getaffinity(0))[:cores]
    task = {"root": str(folder), "view": _store(payloads, folder), "clips": clips, "px": px}
    bare = [{**task, "what": "bare", "cores": chosen}] * cores
    ours = [{**task, "what": "ours", "cores": chosen, "clips": clips * cores}]
    turns = [(_rate(_run(ours)), _rate(_run(bare))) for _ in range(pairs)]
    together = [_run(ours + bare) for _ in range(pairs)]
    return Figures(
        cores=cores,
        ours_per_s=median(one for one, _ in turns),
        bare_per_s=median(other for _, other in turns),
        wall_ratio=median(one / other for one, other in turns),
        ours_cpu_ms=median(_ms(found[:1]) for found in together),
        bare_cpu_ms=median(_ms(found[1:]) for found in together),
        consumer_cpu_ms=median(
            found[0]["consumer"] / found[0]["clips"] * 1e3 for found in together
        ),
    )


def _rate(found: list[dict]) -> float:
    return sum(f["clips"] for f in found) / max(f["wall"] for f in found)


def _ms(found: list[dict]) -> float:
    return sum(f["cpu"] for f in found) / sum(f["clips"] for f in found) * 1e3


def _store(payloads: Sequence[bytes], folder: Path) -> str:
    named = sorted((hashlib.sha256(data).hexdigest(), data) for data in payloads)
    rows = []
    for (name, data), found in zip(named, place(folder, named), strict=True):
        frames, height, width, _ = payload_frames(data).shape
        shape = {"frame_count": frames, "height": height, "width": width}
        words = {
            "payload_kind": "h264_mp4",
            "fps_num": 16,
            "fps_den": 1,
            "caption": "",
            "label": "",
        }
        rows.append({"clip_id": name, **found, **shape, **words})
    return write_view(Root.of(folder), rows).digest


def _run(tasks: list[dict]) -> list[dict]:
    """Run each task in a process of its own, all from one moment on; return their times."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.reading_bench", json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for task in tasks
    ]
    for process in started:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [json.loads(process.communicate()[0]) for process in started]
    return [{**said, "clips": task["clips"]} for said, task in zip(told, tasks, strict=True)]


def _bare(task: dict) -> None:
    cv2.setNumThreads(1)
    reader = ViewReader(task["root"], task["view"])
    payloads = [bytes(reader.payload(i)) for i in range(len(reader))]
    indices = list(range(reader.row(0)["frame_count"]))
    out = np.empty((len(indices), task["px"], task["px"], 3), np.uint8)

    def clip(number: int) -> None:
        payload = io.BytesIO(payloads[number % len(payloads)])
        video = decord.VideoReader(payload, ctx=decord.cpu(0), num_threads=1)
        for frame, made in zip(video.get_batch(indices).asnumpy(), out, strict=True):
            cv2.resize(frame, made.shape[1::-1], dst=made, interpolation=cv2.INTER_AREA)

    for number in range(len(payloads)):
        clip(number)
    _go()
    wall, cpu = time.monotonic(), time.process_time()
    for number in range(task["clips"]):
        clip(number)
    _tell(time.monotonic() - wall, time.process_time() - cpu)


def _ours(task: dict) -> None:
    cursor = Cursor(view_digest=task["view"], seed=1, global_batch=BATCH)
    with ClipStream(
        Part(root=task["root"], view=task["view"]),
        cursor=cursor,
        read=Frames(width=task["px"], height=task["px"]),
        work=Work(decode_workers=len(task["cores"])),
    ) as stream:
        next(stream)
        pids = stream.pids()
        _go()
        # What was read ahead while others got ready is not counted.
        for _ in islice(stream, WARM):
            pass
        wall, own, theirs = time.monotonic(), time.process_time(), sum(map(_cpu_of, pids))
        for _ in range(task["clips"] // BATCH):
            next(stream)
        wall, own = time.monotonic() - wall, time.process_time() - own
        _tell(wall, own + sum(map(_cpu_of, pids)) - theirs, own)


def _go() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def _tell(wall: float, cpu: float, consumer: float = 0.0) -> None:
    print(json.dumps({"wall": wall, "cpu": cpu, "consumer": consumer}), flush=True)


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    if sys.argv[1].startswith("{"):
        task = json.loads(sys.argv[1])
        os.sched_setaffinity(0, task["cores"])
        (_bare if task["what"] == "bare" else _ours)(task)
        return
    payloads = [Path(name).read_bytes() for name in sys.argv[1:]]
    for cores in (1, 2):
        with tempfile.TemporaryDirectory() as name:
            figures = decoding(payloads, Path(name), cores=cores)
            print(figures, f"CPU ratio {figures.cpu_ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
