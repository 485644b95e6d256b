"""What curation costs against its floor: one ffmpeg that decodes and scales, and one that encodes the same kept clips.

`python -m tests.bench.ingest [SECONDS]` measures the ten-minute film (or its first seconds) in one run, in CPU seconds with
all children, and writes tests/bench/ingest.md. Each source is curated in a process of its own, as a worker does that has
curated a source before: what is imported and asked once is not counted. The memory is the largest resident set of that process,
and of its decoder beside it.
"""

import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

from ingest import child, encode, onepass
from ingest.clip import Prep
from ingest.keep import Keep
from ingest.sources import list_sources
from ingest.unit import curate_unit, plan_unit
from jobs.demo_videos import ARCHIVES
from tests.bench.machine import cpu_name

FILM = "moviepy_10_minutes/resources/bbb.mp4"
TABLE = Path(__file__).with_name("ingest.md")
GOAL, MEMORY_MIB = 1.25, 300


def main() -> None:
    """Measure 720p, then the same film at 1080p, and write the table.

    All of it on one core: two threads of one core take time from each other, and only ours has two processes.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        film = unpacked(folder)
        if seconds:
            film = made(film, folder / "short.mp4", "-t", str(seconds), "-c", "copy")
        large = made(
            film, folder / "1080p.mp4", "-vf", "scale=1920:1080:flags=bicubic,noise=alls=6:allf=t",
            "-c:v", "libx264", "-preset", "veryfast", "-b:v", "5M", "-an",
        )  # fmt: skip
        rows = [
            measured("720p24 H.264", film, folder),
            measured("1080p24 H.264, noise, 5 Mb/s", large, folder),
        ]
    text = table(rows)
    TABLE.write_text(text)
    sys.stdout.write(text)


def table(rows: list[dict]) -> str:
    """Return the rows as Markdown."""
    head = (
        "| source | minutes | clips kept | ours, CPU-s | of it in this process | floor: decode + scale | + encode "
        "| ratio | MiB, ours + decoder |"
    )
    lines = [
        (
            f"Measured {time.strftime('%Y-%m-%d')} by `python -m tests.bench.ingest` on one core of {cpu_name()}. "
            f"Goal: ratio at most {GOAL}, memory at most {MEMORY_MIB} MiB."
        ),
        "",
        head,
        "| --- " * (head.count("|") - 1) + "|",
    ]
    for r in rows:
        floor = r["decode_s"] + r["encode_s"]
        lines.append(
            f"| {r['name']} | {r['source_s'] / 60:.1f} | {r['kept']} | {r['ours_s']:.1f} | {r['self_s']:.1f} | "
            f"{r['decode_s']:.1f} | {r['encode_s']:.1f} | **{r['ours_s'] / floor:.2f}** | "
            f"{r['mib']:.0f} + {r['decoder_mib']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def measured(name: str, film: Path, folder: Path) -> dict:
    """Curate a film in a process of its own, then do the least that this takes."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.ingest", "--one", str(film), str(folder)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    width, height = found["width"], found["height"]
    scale = f"fps=16:round=up,scale={width}:{height}:flags=area,format=yuv420p"
    decode_s = spent_by(
        "-threads", "1", "-i", film, "-an", "-vf", scale, "-f", "rawvideo", "/dev/null"
    )
    prep = Prep()
    encode_s = spent_by(
        "-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{width}x{height}", "-framerate", "16", "-i", folder / "kept.yuv",
        "-c:v", "libx264", "-preset", prep.preset, "-crf", str(prep.crf), "-g", str(prep.gop), "-keyint_min", str(prep.gop),
        "-coder", encode.CODER, "-sc_threshold", "0", "-bf", "0", "-threads", "1", folder / "floor.mp4",
    )  # fmt: skip
    return {"name": name, "decode_s": decode_s, "encode_s": encode_s} | found


def one(film: str, folder: str) -> None:
    """Curate one source and print what it cost; the frames of kept clips go to a file for the floor."""
    prep, size = Prep(), (0, 0)
    kept = Path(folder, "kept.yuv")
    kept.write_bytes(b"")
    encode = onepass.encode_clip
    spared_s = 0.0

    def noted(frames: np.ndarray, *words: object, **more: object) -> bytes:
        nonlocal size, spared_s
        before_s = spent()
        with kept.open("ab") as file:
            frames.tofile(file)
        size = (frames.shape[2], frames.shape[1] * 2 // 3)
        spared_s += spent() - before_s
        return encode(frames, *words, **more)

    warm_up(film, Path(folder), prep)
    onepass.encode_clip = noted
    unit = plan_unit(list_sources([film])[0], prep=prep)
    before = usage()
    made_of = curate_unit(unit, prep=prep, keep=Keep(), root=Path(folder) / "dataset")
    after = usage()
    status = Path("/proc/self/status").read_text()
    told = {
        "self_s": after[0] - before[0] - spared_s,
        "ours_s": sum(after) - sum(before) - spared_s,
        "kept": made_of.stats["kept"],
        "source_s": made_of.stats["source_s"],
        "width": size[0],
        "height": size[1],
        "mib": int(status.split("VmHWM:")[1].split()[0]) / 1024,
        "decoder_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }
    sys.stdout.write(f"\n{json.dumps(told)}\n")


def warm_up(film: str, folder: Path, prep: Prep) -> None:
    """Curate the first seconds of a film, for what a worker does only once."""
    first = made(Path(film), folder / "first.mp4", "-t", "12", "-c", "copy", "-an")
    unit = plan_unit(list_sources([str(first)])[0], prep=prep)
    curate_unit(unit, prep=prep, keep=Keep(), root=folder / "warm")


def unpacked(folder: Path) -> Path:
    """Take the ten-minute film out of its archive."""
    with tarfile.open(next(ARCHIVES.glob("moviepy-*.tar.gz"))) as archive:
        member = next(m for m in archive.getmembers() if m.name.endswith("moviepy_10_minutes.zip"))
        packed = archive.extractfile(member)
        assert packed is not None
        with zipfile.ZipFile(io.BytesIO(packed.read())) as inner:
            (folder / "bbb.mp4").write_bytes(inner.read(FILM))
    return folder / "bbb.mp4"


def made(film: Path, path: Path, *words: str) -> Path:
    """Make another video of one."""
    spent_by("-i", film, *words, path)
    return path


def spent_by(*words: str | Path) -> float:
    """Return the CPU seconds of one run of the bundled ffmpeg."""
    before_s = usage()[1]
    command = [child.executable(), "-v", "error", "-y", *map(str, words)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return usage()[1] - before_s


def usage() -> tuple[float, float]:
    """Return the CPU seconds of this process and of its children that ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    mine, theirs = (found.ru_utime + found.ru_stime for found in both)
    return mine, theirs


def spent() -> float:
    """Return the CPU seconds of this process."""
    return usage()[0]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    else:
        main()
