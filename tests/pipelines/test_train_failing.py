"""What fails while a training runs: one line, exit code 1 or none at all, and the same command goes on from what was there."""

import contextlib
import json
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from mlflow.tracking import MlflowClient

from cluster.spool import spool_of
from cluster.tracking import Tracker
from jobs import config
from models import checkpoint
from pipelines import pieces, saved, train, training
from pipelines.output import read_json
from pipelines.shelves import Mixed, freeze
from pipelines.train_spec import spec_of
from tests.cluster.served import free_port, served
from tests.faults.curate_kills import start
from tests.faults.train_kills import find, killed_at_step, reached
from tests.pipelines.conftest import Ran, kinoray
from tests.pipelines.test_train import RECIPE, losses
from tests.pipelines.test_train_wrong import halve
from tests.pipelines.test_training import ALONE, Posts

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    # SQLAlchemy says this to MLflow, where a test asks the tracker.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]

NETWORK = "sample_px = 16, temporal_factor = [2], text_dim = 16, head_dim = 8"
ADDRESS_SPACE = 400 << 30  # more than Ray's processes map, less than the tensor asked for


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    (tmp_path / "train.toml").write_text(RECIPE.format(dataset=tiny.root))
    return tmp_path


def failed(ran: Ran) -> str:
    """Return the one line in which a run failed."""
    assert ran.code == 1, ran.err[-2000:]
    lines = [line for line in ran.err.splitlines() if line.startswith("kinoray: ")][1:]
    assert len(lines) == 1, ran.err[-2000:]
    assert "Traceback" not in ran.err
    assert "; next: " in lines[0]
    return lines[0]


def status(folder: Path, uri: str = "") -> str:
    """Return how the tracker saw the run end."""
    told = read_json(folder / "out" / "tracking.json") or {}
    client = MlflowClient(tracking_uri=uri or f"sqlite:///{folder}/.kinoray/mlflow.db")
    return client.get_run(told["run_id"]).info.status


def reference(folder: Path, **keys: Any) -> str:
    """Return the digest of what the recipe comes to undisturbed, on one worker, without Ray."""
    table = {**config.read(folder / "train.toml"), **keys, "out": str(folder / "reference")}
    made = config.build(train.Config, {k: v for k, v in table.items() if k != "verb"}, name="x")
    shelves = freeze((Mixed(dataset=made.dataset),))
    training.train(
        train._job(made, shelves, spec_of(made, shelves, None), "reference"), ALONE, Posts()
    )
    torch.use_deterministic_algorithms(mode=False)
    return checkpoint.load(folder / "reference" / "checkpoint").digest


@contextlib.contextmanager
def address_space(most: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.faults
def test_memory_that_runs_out_is_said_and_not_tried_again(folder):
    # torch's CPU allocator says so by a RuntimeError: a weight of 618 GB
    words = ("num_workers=1", f"model={{widths = [8, 131072], {NETWORK}}}")
    with address_space(ADDRESS_SPACE):
        ran = kinoray(folder, "train", "train.toml", *words)
    assert "out of memory; next: a smaller form.micro_batch" in failed(ran)
    assert "started again" not in ran.err
    assert status(folder) == "FAILED"
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "events.jsonl",
        "recipe.json",
        "tracking.json",
    ]


@pytest.mark.faults
def test_damaged_and_half_written_checkpoints_are_said_and_cleared(folder):
    words = ("train", "train.toml", "num_workers=1", "checkpoint_every=1", "retention.newest=9")
    killed_at_step(folder, "driver", 6, *words, "steps=9")
    out = folder / "out"
    whole = saved.steps(out)
    assert len(whole) >= 4
    groups = ("params", "ema", "optimizer")
    files = [*(pieces.file_name(group, 0) for group in groups), pieces.INDEX]
    for number, step in enumerate(whole):
        halve(saved.folder_of(out, step) / files[number % len(files)])
    # what a kill leaves of one that is written, and of one that is removed
    half = out / "checkpoints" / ".step-0000008.writing-1-abcdef"
    half.mkdir()
    (half / "params.safetensors").write_bytes(b"x" * 5_000_000)
    gone = saved.folder_of(out, 9)
    gone.mkdir()
    (gone / "params.safetensors").write_bytes(b"x")

    again = kinoray(folder, *words, "steps=9", "--json")
    assert again.code == 0, again.err[-2000:]
    said = [line for line in again.err.splitlines() if "is damaged and was passed over" in line]
    assert len(said) == len(whole)
    assert again.err.count("no whole checkpoint is left: the training starts over") == 1
    assert again.err.count("that a killed run left half written") == 1
    assert again.told["digest"] == reference(folder, steps=9, num_workers=1)
    assert not list(out.rglob("*.writing-*"))
    assert not (out / "ray-train").exists()
    assert [step for step, _ in losses(folder)][-9:] == list(range(1, 10))


@pytest.mark.faults
def test_a_disk_that_fills_up_is_one_line_and_loses_no_checkpoint(folder, disk_of):
    small_disk = disk_of("2600k")
    out = small_disk / "out"
    words = ("train", "train.toml", f"out={out}", "num_workers=1", "checkpoint_every=1")
    words = (*words, "retention.newest=9")
    full = kinoray(folder, *words)
    assert "the disk is full" in failed(full)
    assert "the same command again continues" in full.err
    whole = saved.steps(out)
    assert whole
    for step in whole:
        kept = saved.folder_of(out, step)
        assert pieces.damaged(kept, pieces.read_index(kept), ALONE) == []
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    again = kinoray(folder, *words, "--json")
    assert again.code == 0, again.err[-2000:]
    assert again.told["digest"] == reference(folder, num_workers=1)
    done = [step for step, _ in losses(small_disk)]
    assert done[done.index(whole[-1] + 1) :].count(whole[-1]) == 0, "what was saved was done again"


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_a_tracker_that_is_away_dies_and_comes_back_misses_nothing(folder):
    port = free_port()
    uri, log = f"http://127.0.0.1:{port}", folder / "out" / "events.jsonl"
    words = ["train", "train.toml", f"tracking_uri={uri}", "num_workers=1", "steps=2000"]
    words += ["optimizer.learning_rate=1e-4", "checkpoint_every=1000"]
    told = folder / "said"
    run = start(folder, words, told)
    try:
        with served(folder, port):  # away when the training began
            _until(lambda: _steps(uri) > 5, run)
        seen = reached(log, 0)  # dead in the middle
        _until(lambda: reached(log, 0) > seen + 20, run)
        with served(folder, port):
            run.send_signal(2)
            assert run.wait(300) == 130, told.read_text()[-2000:]
            _sent(folder, uri)
            client = MlflowClient(tracking_uri=uri)
            (found,) = client.search_runs([_experiment(client)])
            last = reached(log, 0)
            history = client.get_metric_history(found.info.run_id, "loss")
            assert [metric.step for metric in history] == list(range(1, last + 1))
            assert dict(losses(folder)) == {metric.step: metric.value for metric in history}
            assert found.info.status == "KILLED"
    finally:
        run.kill()
        run.wait(30)
    lines = told.read_text().splitlines()
    assert len([line for line in lines if "does not answer" in line]) == 1, lines
    assert "Connection refused" in next(line for line in lines if "does not answer" in line)


def _sent(folder: Path, uri: str) -> None:
    """Let another process's tracker send what a slow server had not taken when the run ended."""
    spool = folder / ".kinoray" / "tracking-spool"
    other = Tracker(uri, spool=spool).start("other", experiment="another")
    deadline_s = time.monotonic() + 120
    while len(list(spool_of(spool, uri).iterdir())) > 1:
        assert time.monotonic() < deadline_s, "it was never sent"
        time.sleep(0.2)
    other.end("FINISHED")


def _experiment(client: MlflowClient) -> str:
    found = client.get_experiment_by_name("kinoray")
    return found.experiment_id if found else ""


def _steps(uri: str) -> int:
    client = MlflowClient(tracking_uri=uri)
    experiment = _experiment(client)
    runs = client.search_runs([experiment]) if experiment else []
    return len(client.get_metric_history(runs[0].info.run_id, "loss")) if runs else 0


def _until(done: Any, run: subprocess.Popen, timeout_s: float = 500) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not done():
        assert run.poll() is None, "the training has ended"
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.2)


@pytest.mark.faults
def test_workers_that_ray_ends_for_want_of_memory_are_one_line(folder, monkeypatch):
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")  # every machine uses more than that
    line = failed(kinoray(folder, "train", "train.toml"))
    assert "a machine's memory ran out (" in line
    monkeypatch.delenv("RAY_memory_usage_threshold")
    assert kinoray(folder, "train", "train.toml").code == 0


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("max_failures", [0, 1])
def test_workers_that_die_again_and_again_end_a_training_in_one_line(folder, max_failures):
    log = folder / "out" / "events.jsonl"
    told = folder / "said"
    words = ("train", "train.toml", f"max_failures={max_failures}", "steps=4000")
    run = start(folder, words, told)
    try:
        for number in range(max_failures + 1):
            # what the group before said may come late: count from the word that another one has begun
            _until(lambda n=number: told.read_text().count("started again") == n, run)
            before = log.stat().st_size if log.exists() else 0
            _until(lambda before=before: reached(log, before) > 0, run)
            _until(lambda: saved.steps(folder / "out"), run)
            worker = find(psutil.Process(run.pid), "worker")
            assert worker is not None
            worker.kill()
        code = run.wait(200)
    finally:
        run.kill()
        run.wait(30)
    assert "a worker has died" in failed(Ran(code, {}, told.read_text(), folder))
    # the same command goes on from the newest checkpoint
    steps = saved.steps(folder / "out")
    seen = log.stat().st_size
    killed_at_step(folder, "driver", steps[-1] + 1, *words)
    first = next(
        e for e in map(json.loads, log.read_text()[seen:].splitlines()) if e["event"] == "step"
    )
    assert first["step"] == steps[-1] + 1
