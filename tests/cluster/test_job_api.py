"""Ray's Jobs API at a real head, and what is said where none is."""

import http.server
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from ray.job_submission import JobSubmissionClient

from cluster import head, job_api
from cluster.head import ClusterUnavailable, Job, mismatch, reach, token_of
from cluster.job_api import Asked, Jobs, NoSuchJob
from tests.cluster.served import free_port

SOON_S = 10.0


@pytest.fixture(autouse=True)
def _no_token(monkeypatch, tmp_path):
    for name in (*job_api.OVERRIDES, "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def refused(address):
    begun_s = time.monotonic()
    with pytest.raises(ClusterUnavailable) as error:
        reach(address)
    assert time.monotonic() - begun_s < SOON_S
    told = str(error.value)
    assert "\n" not in told
    assert "; next: " in told
    return told


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:{free}", "no Ray dashboard answers at http://127.0.0.1:"),
        ("127.0.0.1:{free}", "no Ray dashboard answers at http://127.0.0.1:"),
        ("http://nowhere.invalid:8265", "no Ray dashboard answers at http://nowhere.invalid:8265"),
        ("ray://127.0.0.1:10001", "is no address of a dashboard"),
        ("http://", "is no address of a dashboard"),
        ("http://me:hidden@127.0.0.1:8265", "is no address of a dashboard"),
    ],
)
def test_an_address_where_nobody_is(address, said):
    told = refused(address.format(free=free_port()))
    assert said in told
    assert "hidden" not in told


def test_a_head_that_hangs_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(head, "CONNECT_TIMEOUT_S", 1.0)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        assert "no Ray dashboard answers" in refused(f"127.0.0.1:{deaf.getsockname()[1]}")


def test_a_head_that_drips_its_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(head, "DEADLINE_S", 1.5)

    def drip(listening):
        connection, _ = listening.accept()
        with connection:
            for _ in range(25):
                connection.sendall(b"H")
                time.sleep(0.1)

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        thread = threading.Thread(target=drip, args=(listening,), daemon=True)
        thread.start()
        assert "within 2 s" in refused(f"127.0.0.1:{listening.getsockname()[1]}")
        thread.join()


def test_what_is_no_dashboard_is_named():
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        told = refused(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()
    assert "is no Ray dashboard" in told


def test_the_token_is_looked_for_where_ray_looks(tmp_path):
    (tmp_path / "file").write_text("two\n")
    named = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "file")}
    assert token_of({}) == ("", "")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("three")
    assert token_of({})[0] == "three"
    assert token_of(named)[0] == "two"
    assert token_of({**named, "RAY_AUTH_TOKEN": "one"}) == ("one", "RAY_AUTH_TOKEN")
    for path, why in ((tmp_path / "none", "cannot be read"), (tmp_path / "empty", "is empty")):
        (tmp_path / "empty").touch()
        with pytest.raises(ClusterUnavailable, match=why):
            token_of({"RAY_AUTH_TOKEN_PATH": str(path)})


@pytest.mark.parametrize(
    ("ray", "python", "said"),
    [
        ("2.60.0", "3.11.7", ""),
        ("2.60.9", "3.13.1", ""),
        ("2.60.0", "", ""),
        ("2.9.3", "3.11.7", "the cluster runs Ray 2.9.3, this is Ray 2.60"),
        ("2.61.0", "3.11.7", "the cluster runs Ray 2.61.0"),
        ("2.60.0", "3.10.2", "the cluster runs Python 3.10.2, Kinoray needs 3.11"),
        ("2.60.0", "3.14.0", "below 3.14"),
    ],
)
def test_versions_that_do_not_fit_are_named(ray, python, said):
    told = mismatch(ray=ray, python=python)
    assert said in told
    assert bool(told) == bool(said)
    assert not told or "; next: " in told


def test_needs_of_a_driver():
    assert Job(cpus=1, resources={"nvme": 2}).needs == {"CPU": 1, "nvme": 2}
    assert Job().needs == {}
    with pytest.raises(ValueError, match="0 or more"):
        Job(gpus=-1)
    with pytest.raises(ValueError, match="absolute"):
        Job(folder="runs")


@pytest.fixture
def jobs(ray_head, monkeypatch):
    """The head's jobs, asked for while the environment names other clusters."""
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(ray_head.token_path))
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    return Jobs(reach(ray_head.url))


@pytest.fixture
def code(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "word.txt").write_text("word")
    return tmp_path / "code"


def ended(jobs, name, within_s=90.0):
    deadline_s = time.monotonic() + within_s
    while not (job := jobs.job(name)).ended:
        assert time.monotonic() < deadline_s, job
        time.sleep(0.2)
    return job


@pytest.mark.ray
def test_a_head_wants_its_token(ray_head, monkeypatch):
    assert "wants a token and there is none here" in refused(ray_head.url)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    told = refused(ray_head.url)
    assert "does not take the token from RAY_AUTH_TOKEN;" in told
    assert "another" not in told
    monkeypatch.setenv("RAY_AUTH_TOKEN", ray_head.token)
    found = reach(ray_head.url + "/")
    assert (found.ray.split(".")[0], found.url) == ("2", ray_head.url)
    assert ray_head.token not in repr(found)


@pytest.mark.ray
def test_of_many_at_one_moment_one_starts_the_job_and_all_read_it(jobs, code, ray_head):
    asked = Asked(
        id="many",
        entrypoint="cat word.txt; for i in 1 2 3 4 5 6; do echo line $i; sleep 0.7; done; exit 3",
        code=code,
        metadata={"kinoray.verb": "none"},
        settings=Job(cpus=0.5),
    )
    with ThreadPoolExecutor(4) as pool:
        started = list(pool.map(lambda _: jobs.submit(asked), range(4)))
    assert sorted(started) == [False, False, False, True]
    assert [job.id for job in jobs.all() if job.id == "many"] == ["many"]

    heard = [(time.time(), text) for text in jobs.follow("many") if text]
    text = "".join(part for _, part in heard)
    assert [text.count(f"line {i}\n") for i in range(1, 7)] == [1] * 6
    assert "wordline 1" in text
    first_s = next(at for at, part in heard if "line 1" in part)
    job = jobs.job("many")
    assert first_s < job.ended_s - 1.0
    assert (job.state, job.exit, job.metadata["kinoray.verb"]) == ("failed", 3, "none")
    assert jobs.logs("many") == text
    for path in ("/api/jobs/", "/api/jobs/many", "/api/jobs/many/logs"):
        assert ray_head.token not in ray_head.raw(path)


@pytest.mark.ray
def test_what_is_stopped_has_its_time_to_commit(jobs, code):
    script = (
        "trap 'sleep 5; echo committed; exit 0' TERM; echo at work; while :; do sleep 0.2; done"
    )
    assert jobs.submit(Asked(id="stopped", entrypoint=script, code=code))
    following = jobs.follow("stopped")
    text = ""
    while "at work" not in text.rsplit("Running entrypoint", maxsplit=1)[-1].partition("\n")[2]:
        text += next(following)
    assert jobs.stop("stopped")
    text += "".join(following)
    assert text.endswith("committed\n")
    job = jobs.job("stopped")
    assert (job.state, job.exit) == ("stopped", None)
    assert not jobs.stop("stopped")


@pytest.mark.ray
def test_what_no_node_has_is_named(jobs):
    assert jobs.lacking({"CPU": 4}) == ""
    assert jobs.lacking({}) == ""
    told = jobs.lacking({"CPU": 1, "GPU": 2})
    assert told == "no node has 1 CPU, 2 GPU for the driver (the most on one node: 4 CPU, 0 GPU)"


@pytest.mark.ray
def test_a_job_that_is_not_there(jobs):
    for ask in (jobs.job, jobs.logs, jobs.stop):
        with pytest.raises(NoSuchJob, match=r"no-such: no such job at .*; next: kinoray list"):
            ask("no-such")


@pytest.mark.ray
def test_rays_own_client_would_have_gone_elsewhere(jobs, ray_head):
    """What makes us hide the addresses in the environment: when this fails, Ray has learned better."""
    assert os.environ["RAY_ADDRESS"]
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9"):
        JobSubmissionClient(ray_head.url)
    assert jobs.all() is not None
