import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient

from cluster import recording, tracking
from cluster.spool import Spool, flat, leftovers, spool_of, without_secrets
from cluster.tracking import Tracker, embedded_uri
from tests.cluster.served import free_port, served

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """The migrated database costs seconds: one for the module."""
    return embedded_uri(tmp_path_factory.mktemp("a store"))


def client(uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=uri)


def eventually(check):
    deadline_s = time.monotonic() + 20
    while not check():
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.1)


def test_a_run_is_recorded_with_all_that_was_said(store, tmp_path):
    tracker = Tracker(store, spool=tmp_path / "spool")
    parent = tracker.start("demo", experiment="kinoray")
    run = tracker.start(
        "train",
        experiment="kinoray",
        parent_id=parent.id,
        tags={"kinoray.verb": "train"},
        params={"model": {"widths": [8, 16]}, "uri": "http://me:word@host/x", "long": "z" * 9000},
    )
    for step in range(2500):
        run.log_metrics({"loss": 1 / (step + 1)}, step)
    (tmp_path / "page.html").write_text("<p>")
    run.log_artifact(tmp_path / "page.html", "report")
    run.log_dataset("dataset", "d" * 64, "/data", "train")
    run.end("FINISHED")
    parent.end("KILLED")

    told = client(store).get_run(run.id)
    assert told.info.status == "FINISHED"
    assert told.data.tags["mlflow.parentRunId"] == parent.id
    assert told.data.tags["kinoray.verb"] == "train"
    assert told.data.params["model.widths"] == "[8, 16]"
    assert told.data.params["uri"] == "http://host/x"
    assert len(told.data.params["long"]) <= 6000
    assert "sha256" in told.data.params["long"]
    history = client(store).get_metric_history(run.id, "loss")
    assert [(m.step, m.value) for m in history] == [(i, 1 / (i + 1)) for i in range(2500)]
    assert [f.path for f in client(store).list_artifacts(run.id, "report")] == ["report/page.html"]
    assert told.inputs is not None
    (used,) = told.inputs.dataset_inputs
    assert {tag.key: tag.value for tag in used.tags}["kinoray.digest"] == "d" * 64
    assert client(store).get_run(parent.id).info.status == "KILLED"
    assert list(spool_of(tmp_path / "spool", store).iterdir()) == []


def test_a_run_taken_up_again_goes_on_and_repeats_nothing(store, tmp_path):
    first = Tracker(store, spool=tmp_path / "spool").start("train", experiment="kinoray")
    for step in range(6):
        first.log_metrics({"loss": float(step)}, step)
    first.end("KILLED")
    again = Tracker(store, spool=tmp_path / "spool")
    run = again.start("train", experiment="kinoray", run_id=first.id)
    assert run.id == first.id
    for step in range(4, 9):
        run.log_metrics({"loss": float(step)}, step)
    run.log_metrics({"clips": 3.0}, 0)
    run.log_metrics({"clips": 5.0}, 0)
    run.end("FINISHED")
    history = client(store).get_metric_history(run.id, "loss")
    assert [(m.step, m.value) for m in history] == [(i, float(i)) for i in range(9)]
    assert client(store).get_run(run.id).info.status == "FINISHED"
    assert client(store).get_run(run.id).data.metrics["clips"] == 5.0


def test_what_a_continuation_says_otherwise_is_a_tag(store, tmp_path):
    words = []
    first = Tracker(store, spool=tmp_path / "spool")
    run = first.start("set", experiment="kinoray", params={"num_seeds": 5, "seed": 1})
    run.end("FINISHED")
    again = Tracker(store, spool=tmp_path / "spool", warn=words.append)
    more = {"num_seeds": 10, "seed": 1, "mode": "latency"}
    again.start("set", experiment="kinoray", run_id=run.id, params=more).end("FINISHED")
    told = client(store).get_run(run.id).data
    assert told.params == {"num_seeds": "5", "seed": "1", "mode": "latency"}
    assert told.tags["kinoray.now.num_seeds"] == "10"
    assert not words


def test_a_store_that_is_away_costs_a_warning_and_nothing_else(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    uri = f"sqlite:///{blocked}/mlflow.db"
    warnings = []
    tracker = Tracker(uri, spool=tmp_path / "spool", warn=warnings.append)
    started_s = time.monotonic()
    run = tracker.start("train", experiment="kinoray", params={"a": 1})
    for step in range(100):
        run.log_metrics({"loss": 1.0 / (1 + step)}, step)
    run.end("FINISHED")
    assert time.monotonic() - started_s < 15
    assert run.id.startswith("local-")
    assert len(warnings) == 1
    assert "does not answer" in warnings[0]
    assert len(warnings[0].splitlines()) == 1
    assert (
        len((spool_of(tmp_path / "spool", uri) / f"{run.id}.jsonl").read_text().splitlines()) == 103
    )


def test_a_server_that_is_away_holds_nobody_up(tmp_path):
    tracker = Tracker("http://me:word@127.0.0.1:9", spool=tmp_path, warn=(warnings := []).append)
    started_s = time.monotonic()
    run = tracker.start("train", experiment="kinoray")
    run.end("FINISHED")
    assert time.monotonic() - started_s < 20
    assert len(warnings) == 1
    assert "does not answer ([Errno 111] Connection refused)" in warnings[0]
    assert "word" not in warnings[0]


def test_what_was_kept_is_sent_once_when_the_store_is_back(store, tmp_path):
    spool = spool_of(tmp_path / "spool", store)
    lost = Spool(spool, "local-12ab")
    told = {"name": "train", "experiment": "kinoray", "parent_id": ""}
    lost.append({"do": "start", "time_ms": 1_000_000, **told})
    for step in range(5):
        lost.append(
            {"do": "metrics", "time_ms": 1_000_000 + step, "step": step, "values": {"loss": 1.0}}
        )
    lost.append({"do": "end", "time_ms": 1_000_009, "status": "FINISHED"})
    copy = (spool / "local-12ab.jsonl").read_text()
    # A process that ends gives its lock up and leaves the file.
    lost._file.close()

    for _ in range(2):
        tracker = Tracker(store, spool=tmp_path / "spool")
        other = tracker.start("other", experiment="kinoray")
        eventually(lambda: not (spool / "local-12ab.jsonl").exists())
        other.end("FINISHED")
        experiment = client(store).get_experiment_by_name("kinoray")
        assert experiment is not None
        query = "tags.`kinoray.local_id` = 'local-12ab'"
        (run,) = client(store).search_runs([experiment.experiment_id], query)
        assert run.info.status == "FINISHED"
        assert len(client(store).get_metric_history(run.info.run_id, "loss")) == 5
        # A second sending, as after a kill before the confirmation.
        (spool / "local-12ab.jsonl").write_text(copy)


def test_a_server_that_dies_and_comes_back_has_every_number_once(tmp_path):
    port, warnings = free_port(), []
    with served(tmp_path, port) as uri:
        run = Tracker(uri, spool=tmp_path / "spool", warn=warnings.append).start(
            "train", experiment="kinoray"
        )
        run.log_metrics({"loss": 0.0}, 0)
        eventually(lambda: not run.spool.waiting())
    for step in range(1, 40):
        run.log_metrics({"loss": float(step)}, step)
    eventually(lambda: warnings)  # a request has failed
    assert len(run.spool.waiting()) == 39
    with served(tmp_path, port):
        run.log_metrics({"loss": 40.0}, 40)
        run.end("FINISHED")
        history = client(uri).get_metric_history(run.id, "loss")
        assert [(m.step, m.value) for m in history] == [(i, float(i)) for i in range(41)]
        assert client(uri).get_run(run.id).info.status == "FINISHED"
    assert len(warnings) == 1


def test_what_waits_for_one_store_is_not_sent_to_another(store, tmp_path):
    away = "http://127.0.0.1:9"
    lost = Spool(spool_of(tmp_path, away), "0123456789abcdef")  # a run that the other store knows
    lost.append({"do": "metrics", "time_ms": 1, "step": 1, "values": {"loss": 1.0}})
    lost.close()
    warnings = []
    Tracker(store, spool=tmp_path, warn=warnings.append).start("t", experiment="kinoray").end(
        "FINISHED"
    )
    (left,) = leftovers(spool_of(tmp_path, away))
    assert [record["do"] for record in left.waiting()] == ["metrics"]
    left.close()
    assert warnings == []


def test_a_refusal_is_told_and_does_not_hold_up_the_rest(store, tmp_path):
    warnings = []
    tracker = Tracker(store, spool=tmp_path / "spool", warn=warnings.append)
    run = tracker.start("train", experiment="kinoray", params={"seed": 1})
    run.log_params({"no such name?": 2})
    run.log_artifact(tmp_path / "missing.html")
    run.log_metrics({"loss": 1.0}, 0)
    run.end("FINISHED")
    assert client(store).get_run(run.id).data.metrics["loss"] == 1.0
    assert client(store).get_run(run.id).data.params["seed"] == "1"
    assert len(warnings) == 2


def test_a_killed_driver_loses_nothing_that_was_said(store, tmp_path):
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from cluster.tracking import Tracker\n"
        "run = Tracker(sys.argv[1], spool=Path(sys.argv[2])).start('t', experiment='kinoray')\n"
        "print(run.id, flush=True)\n"
        "for step in range(300): run.log_metrics({'loss': float(step)}, step)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, store, str(tmp_path / "spool")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    run_id = done.stdout.strip()
    assert done.returncode == -9
    assert done.stderr == "", "MLflow talks"
    run = Tracker(store, spool=tmp_path / "spool").start("t", experiment="kinoray", run_id=run_id)
    run.end("FINISHED")
    history = client(store).get_metric_history(run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(i, float(i)) for i in range(300)]


def test_the_embedded_store_writes_nothing_into_the_current_folder(tmp_path, monkeypatch, store):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    run = Tracker(store, spool=tmp_path / "spool").start("t", experiment="kinoray")
    run.log_artifact(tmp_path / "x.txt")
    run.end("FINISHED")
    assert {path.name for path in tmp_path.iterdir()} == {"x.txt", "spool"}


def test_a_spool_belongs_to_one_writer_and_survives_a_torn_line(tmp_path):
    spool = Spool(tmp_path, "run")
    spool.append({"do": "tags", "values": {"a": "b"}})
    assert leftovers(tmp_path) == []
    spool.close()
    with (tmp_path / "run.jsonl").open("a") as file:
        file.write('{"do": "me')
    (found,) = leftovers(tmp_path)
    assert found.waiting() == [{"do": "tags", "values": {"a": "b"}}]
    found.append({"do": "end"})
    found.close()
    (found,) = leftovers(tmp_path)
    assert [record["do"] for record in found.waiting()] == ["tags", "end"]
    found.confirm(2)
    found.close()
    assert list(tmp_path.iterdir()) == []


def test_secrets_leave_uris_and_nothing_else_does():
    assert without_secrets("postgresql://me:pw@db/x") == "postgresql://db/x"
    assert without_secrets("s3://bucket/a@b") == "s3://bucket/a@b"
    assert without_secrets("http://u:p@ss@host/x y@z") == "http://host/x y@z"
    told = without_secrets('"https://h/x?token=abc&n=1&X-Amz-Signature=ff" https://h?api_key=k')
    assert told == '"https://h/x?token=...&n=1&X-Amz-Signature=..." https://h?api_key=...'
    assert without_secrets("https://h/x?monkey=1") == "https://h/x?monkey=1"


@given(st.dictionaries(st.text(min_size=1), st.integers() | st.booleans() | st.none()))
def test_flat_settings_keep_every_leaf(settings):
    told = flat({"outer": settings, "plain": 1})
    assert len(told) == len(settings) + 1
    assert all(name.startswith("outer.") or name == "plain" for name in told)


def test_batches_keep_within_what_the_store_takes():
    assert recording.RECORDS_A_PORTION <= tracking.METRICS_A_BATCH
