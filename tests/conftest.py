"""A tiny dataset and tiny networks for the whole suite; made here, so that no download and no shared folder is needed."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import numpy as np
import pytest

from cluster.session import Cluster, session
from ingest.caption import Captions
from ingest.clip import Contract, Prep
from ingest.encode import encode_video
from ingest.keep import Keep
from ingest.sources import list_sources
from ingest.store import Dataset, empty_captions
from ingest.unit import curate_unit, plan_unit
from pipelines.annotate import annotate
from pipelines.captioners import passes_of
from tests.around import Heard, surroundings
from tests.cluster.headed import Headed, headed

KEEP_ALL = Keep(
    min_motion=None,
    max_motion=None,
    max_duplicate_frame_share=None,
    min_luma=None,
    max_luma=None,
    min_luma_range=None,
)
CAPTIONS = {"red.mp4": "a red square", "green.mp4": "a green square", "blue.mp4": "a blue square"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no worker is left with one at the end; mark who needs a head."""
    for item in items:
        if "ray_head" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.clusters)
    rooms = ("tests/pipelines/", "tests/cluster/")
    items.sort(key=lambda item: next((i for i, r in enumerate(rooms) if r in str(item.path)), 9))


@dataclass(frozen=True)
class Tiny:
    """Three videos of one clip each, and the dataset curated from them."""

    videos: Path
    root: Path
    dataset: Dataset


def moving_square(colour: int, *, seconds: float = 5.25, fps: int = 16, px: int = 64) -> np.ndarray:
    """Return uint8 THWC of a square that moves over a gradient; the channel `colour` is bright."""
    count = round(seconds * fps)
    y, x = np.mgrid[:px, :px]
    frames = np.empty((count, px, px, 3), np.uint8)
    for t in range(count):
        frames[t] = (40 + 60 * x / px)[..., None]
        inside = (abs(x - px / 2 - 12 * np.sin(t / 6)) < 10) & (abs(y - px / 2) < 10 + colour)
        frames[t][inside] = 30
        frames[t][inside, colour] = 230
    return frames


def make_videos(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for colour, (name, caption) in enumerate(CAPTIONS.items()):
        (folder / name).write_bytes(encode_video(moving_square(colour), 16, lossless=False))
        (folder / name).with_suffix(".txt").write_text(caption)
    return folder


@pytest.fixture(scope="session")
def tiny_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, tiny_videos: Path) -> Tiny:
    root = tmp_path_factory.mktemp("tiny") / "dataset"
    prep = Prep(contract=Contract(), payload_short_side_px=64)
    dataset = Dataset.create(root, prep.contract, prep)
    for batch, source in enumerate(list_sources([str(tiny_videos)]), 1):
        unit = plan_unit(source, prep=prep)
        result = curate_unit(unit, prep=prep, keep=KEEP_ALL, root=root)
        dataset.commit(result.rows, empty_captions(), app_id="tiny", batch=batch)
    passes = passes_of(Captions(), sources=list_sources([str(tiny_videos)]))
    annotate(dataset, passes, context=surroundings(ray_is_open=False), recorder=Heard())
    assert dataset.kept_clips().num_rows == len(CAPTIONS)
    return Tiny(videos=tiny_videos, root=root, dataset=dataset)


STORE = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until whoever started it is gone
"""


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """A local S3 server, reached through the environment like any other; gives its endpoint.

    A process of its own: SQL on a table holds this one's interpreter while it asks the store.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", STORE], text=True, **pipes) as server:
        endpoint = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        settings = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_REGION": "us-east-1",
        }
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        client.create_bucket(Bucket="kinoray")
        yield endpoint
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        client.close()
        server.terminate()


@pytest.fixture
def bucket(object_store: str) -> str:  # noqa: ARG001  what starts the server
    """A prefix of its own in the local S3 server."""
    return f"s3://kinoray/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One embedded cluster for all tests in this process: starting Ray takes seconds, so it is started once."""
    with session(Cluster(num_cpus=4, object_store_bytes=80 << 20)):
        yield


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Headed]:
    """A cluster that jobs are submitted to, once for all tests in this process."""
    with headed() as made:
        yield made
