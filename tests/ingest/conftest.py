"""Videos made by the bundled ffmpeg, and the shared folder of real ones where there is one."""

import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pyarrow as pa
import pytest

from ingest import planes
from ingest.clip import Prep
from ingest.keep import Keep
from ingest.schema import captions_schema
from ingest.sources import Source, list_sources
from ingest.store import Dataset, empty_captions
from ingest.unit import UnitResult, curate_unit, plan_unit

WIDTH, HEIGHT, STRIP, BITS = 192, 128, 8, 12
KEEP_ALL = Keep(
    min_motion=None,
    max_motion=None,
    max_duplicate_frame_share=None,
    min_luma=None,
    max_luma=None,
    min_luma_range=None,
)


@dataclass(frozen=True)
class Studio:
    """Makes small videos whose frames carry their number as bars along the lower edge."""

    folder: Path
    made: dict[str, Path] = field(default_factory=dict)

    def run(self, *args: str | Path, data: bytes = b"") -> None:
        exe = imageio_ffmpeg.get_ffmpeg_exe()
        command = [exe, "-hide_banner", "-loglevel", "error", "-y", *map(str, args)]
        subprocess.run(command, input=data, check=True, timeout=120)

    def frames(self, count: int, *, cut_at: tuple[int, ...] = ()) -> np.ndarray:
        y, x = np.mgrid[:HEIGHT, :WIDTH]
        out = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
        shot = 0
        for number in range(count):
            shot += number in cut_at
            wave = 128 + 90 * np.sin((x + 2 * number) / (9 + 6 * shot) + y / (14 - 4 * shot))
            out[number] = (wave[..., None] + [0, 12 * shot, -20]).clip(0, 255)
            bits = [(number >> bit) & 1 for bit in range(BITS)]
            bars = np.repeat(np.array(bits, np.uint8) * 255, WIDTH // BITS)
            out[number, -STRIP:] = bars[None, :, None]
        return out

    def numbered(
        self,
        name: str,
        *,
        fps: str = "24",
        count: int = 144,
        timing: tuple[str, ...] = (),
        codec: tuple[str, ...] = ("-c:v", "libx264", "-qp", "4", "-preset", "ultrafast"),
        cut_at: tuple[int, ...] = (),
    ) -> Path:
        asked = f"{name} {fps} {count} {timing} {codec} {cut_at}"
        if asked not in self.made:
            path = self.folder / str(len(self.made)) / name  # one name may be asked for twice
            path.parent.mkdir()
            shape = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}")
            data = self.frames(count, cut_at=cut_at).tobytes()
            pixels = ("-pix_fmt", "yuv420p", "-threads", "1")
            self.run(*shape, "-r", fps, "-i", "-", *timing, *codec, *pixels, path, data=data)
            self.made[asked] = path
        return self.made[asked]


def numbers_of(frames: np.ndarray) -> list[int]:
    """Read the bars back from frames of any size, planar or RGB."""
    grey_THW = np.stack([planes.luma(frame) for frame in frames])
    height, width = grey_THW.shape[1:]
    strip = height * STRIP // HEIGHT
    middle = grey_THW[:, -strip // 2 - 1 : -strip // 2 + 1].mean(axis=1)
    centres = [round((bit + 0.5) * width / BITS) for bit in range(BITS)]
    bits = middle[:, centres] > 127
    return [sum(1 << bit for bit in range(BITS) if row[bit]) for row in bits]


@pytest.fixture(scope="session")
def read_numbers() -> Callable[[np.ndarray], list[int]]:
    return numbers_of


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(tmp_path_factory.mktemp("studio"))


@pytest.fixture(scope="session")
def good(studio: Studio) -> Path:
    """A video without a flaw, five seconds and a bit."""
    return studio.numbered("n24.mp4", fps="24", count=123)


@pytest.fixture(scope="session")
def keep_all() -> Keep:
    return KEEP_ALL


@pytest.fixture(scope="session")
def curate() -> Callable[..., UnitResult]:
    """Curate one file with every keep rule off, unless told otherwise."""

    def run(path: Path | Source, root: Path, **settings: object) -> UnitResult:
        options = {"prep": Prep(), "keep": KEEP_ALL} | settings
        source = path if isinstance(path, Source) else list_sources([str(path)])[0]
        unit = plan_unit(source, prep=options["prep"])
        return curate_unit(unit, root=root, **options)

    return run


@pytest.fixture(scope="session")
def shared_videos() -> Path:
    folder = Path(__file__).resolve().parents[3] / "shared" / "videos"
    if not folder.is_dir():
        pytest.skip("the folder ../shared/videos is absent: no real videos to run on")
    return folder


def _curate_shared(source: Source, root: Path) -> tuple[UnitResult, float]:
    unit = plan_unit(source, prep=Prep())
    result = curate_unit(unit, prep=Prep(), keep=Keep(), root=root)
    # Not getrusage: its maximum is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    return result, int(status.split("VmHWM:")[1].split()[0]) / 1024


@dataclass(frozen=True)
class Curated:
    dataset: Dataset
    results: dict[str, UnitResult]
    peak_mib: float


@pytest.fixture(scope="session")
def curated(shared_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Curated:
    """Every shared video, curated with the default settings by two processes, then committed."""
    root = tmp_path_factory.mktemp("shared") / "dataset"
    dataset = Dataset.create(root, Prep().contract, Prep())
    sources = list_sources([str(shared_videos)])
    sources.sort(key=lambda source: -source.bytes)
    results, peak_mib = {}, 0.0
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        done = pool.map(_curate_shared, sources, [root] * len(sources))
        for source, (result, mib) in zip(sources, done, strict=True):
            results[Path(source.uri).name] = result
            peak_mib = max(peak_mib, mib)
    for batch, result in enumerate(results.values(), 1):
        dataset.commit(result.rows, empty_captions(), app_id="test", batch=batch)
    return Curated(dataset, results, peak_mib)


@pytest.fixture(scope="session")
def small_dataset(
    studio: Studio, curate: Callable[..., UnitResult], tmp_path_factory: pytest.TempPathFactory
) -> Dataset:
    """Seven clips of two made videos, committed."""
    root = tmp_path_factory.mktemp("small") / "dataset"
    dataset = Dataset.create(root, Prep().contract, Prep())
    paths = [
        studio.numbered("five.mp4", fps="16", count=400),
        studio.numbered("two.mp4", fps="16", count=170, cut_at=(84,)),
    ]
    for batch, path in enumerate(paths, 1):
        result = curate(path, root)
        rows, named = result.rows.to_pylist(), path.stem
        said = [
            {
                "clip_id": row["id"],
                "producer": "name/v1",
                "payload_sha256": row["payload_sha256"],
                "caption": named,
                "rank": 0,
            }
            for row in rows
            if row["fate"] == "kept" and row["kind"] == "clip"
        ]
        captions = pa.Table.from_pylist(said, schema=captions_schema())
        dataset.commit(result.rows, captions, app_id="test", batch=batch)
    return dataset
