"""`kinoray submit` and what follows it, at a real head; and what is told where there is none."""

import json
import os
import shlex
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.eventlog import read_events
from ingest.encode import encode_video
from jobs import doctor, submit
from jobs.__main__ import _guarded
from pipelines.identity import CODE_NOTE
from tests.cluster.served import free_port
from tests.conftest import moving_square

CHECKOUT = Path(__file__).resolve().parents[2]
RECIPE = """
verb = "curate"
source = ["videos"]
out = "dataset"
max_failed_share = 0.0

[prep]
payload_short_side_px = 64
"""
RECIPES = CHECKOUT / "jobs" / "recipes"
SOON_S = 10.0
VIDEOS = 24


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    place = tmp_path / "a place's"  # a shell must not stumble over it
    place.mkdir()
    monkeypatch.chdir(place)
    Path("curate.toml").write_text(RECIPE)


@pytest.fixture
def at(ray_head, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(ray_head.token_path))
    return ("--address", ray_head.url)


def guarded(*words):
    try:
        return _guarded(list(words))
    except SystemExit as end:
        return end.code


@pytest.fixture
def told(capsys):
    def ask(*words, code=0):
        capsys.readouterr()
        found = guarded(*words, "--json")
        streams = capsys.readouterr()
        assert found == code, streams
        return json.loads(streams.out.splitlines()[-1]) | {"heard": streams.err}

    return ask


def videos(count):
    """Write videos of one picture and different bytes: that is decoded as often, and encoded once."""
    Path("videos").mkdir()
    payload = encode_video(moving_square(0, px=192), 16, lossless=False)
    for number in range(count):
        free = struct.pack(">I4sI", 12, b"free", number)
        Path(f"videos/{number}.mp4").write_bytes(payload + free)


def typed(*words):
    """Start a command as a person does, in a process of its own."""
    command = [sys.executable, "-m", "jobs", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, text=True, **pipes
    )


@pytest.mark.ray
def test_a_job_is_submitted_by_two_stopped_and_gone_on_with(at, told, ray_head, capsys):
    videos(VIDEOS)
    Path("videos/broken.mp4").write_bytes(b"no video at all" * 100)
    both = [typed("submit", "curate", "curate.toml", *at, "--json") for _ in range(2)]
    ends = [one.communicate(timeout=120) for one in both]
    assert [one.returncode for one in both] == [0, 0], ends
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in ends)
    name = first["job"]
    assert name == second["job"]
    assert sorted((first["started"], second["started"])) == [False, True]

    wait(lambda: counted() > 0, "the run folder tells of a video that is done")
    here = told("status", "dataset")
    assert (here["verb"], here["state"], here["job"]) == ("curate", "running", name)
    assert guarded("stop", "dataset") == 2
    assert f"next: kinoray stop {name} --address" in capsys.readouterr().err
    there = told("status", name, *at)
    assert (there["state"], there["recipe"], there["folder"]) == (
        "running",
        "curate.toml",
        str(Path.cwd()),
    )
    stopped = told("stop", name, *at)
    assert (stopped["state"], stopped["exit"]) == ("stopped", 130)
    assert told("status", "dataset")["state"] == "interrupted"
    assert 0 < counted() < VIDEOS

    again = told("submit", "curate", "curate.toml", *at, "--follow", code=3)
    assert (again["job"], again["attempt"], again["state"]) == (f"{name}-2", 2, "failed")
    assert "broken.mp4" in again["heard"]
    assert "dataset" in again["heard"]
    assert told("status", "dataset")["exit"] == 3
    info = told("dataset", "info", "dataset")
    assert (info["sources"], info["failed"]) == (VIDEOS + 1, 1)
    assert {job["job"] for job in told("list", *at)["jobs"]} >= {name, f"{name}-2"}
    run = next(Path("dataset").glob("runs/*/recipe.json"))
    assert json.loads(run.read_text())["code"] == again["code"]
    for path in ("/api/jobs/", f"/api/jobs/{name}-2/logs"):
        assert ray_head.token not in ray_head.raw(path)


def counted():
    """Return how many videos the run folder tells of as done."""
    logs = Path("dataset").glob("runs/*/events.jsonl")
    events = [event for log in logs for event in read_events(log)]
    return max((e["done"] for e in events if e.get("stage") == "curate"), default=0)


def wait(done, what, within_s=120.0):
    deadline_s = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.1)


@pytest.mark.ray
def test_what_is_done_is_done_and_what_is_wrong_says_so(at, told, capsys):
    videos(1)
    words = ("submit", "curate", "curate.toml", "cluster.job.cpus=0.5", *at)
    assert guarded(*words, "--follow") == 0
    streams = capsys.readouterr()
    assert "clips_kept" in streams.out
    assert "next: kinoray" in streams.err
    # how it is carried out makes no other job of it
    again = told("submit", "curate", "curate.toml", *at, "--follow")
    assert (again["state"], again["started"], again["attempt"]) == ("succeeded", False, 1)
    assert told("logs", again["job"], *at)["logs"] in streams.out
    wrong = told("submit", "curate", "curate.toml", "source=nowhere", *at, "--follow", code=2)
    assert wrong["job"] != again["job"]
    assert "nowhere" in wrong["heard"]


@pytest.mark.ray
def test_ctrl_c_leaves_the_job_and_a_driver_without_a_place_says_what_lacks(at, told):
    videos(1)
    words = ("submit", "curate", "curate.toml", "cluster.job.gpus=1", *at, "--follow")
    following = typed(*words)
    heard = following.stderr.readline()
    name = heard.split()[1]
    while "no node has 1 GPU for the driver" not in heard:
        heard = following.stderr.readline()
        assert heard
    assert "; next: cluster.job.cpus" in heard
    following.send_signal(signal.SIGINT)
    out, err = following.communicate(timeout=60)
    assert following.returncode == 130
    assert f"{name} goes on; next: kinoray logs {name} --follow --address" in err, out
    assert "Traceback" not in err
    pending = told("status", name, *at)
    assert pending["state"] == "pending"
    assert "no node has 1 GPU" in pending["waits"]
    assert "has not begun" in told("stop", name, *at)["heard"]


@pytest.mark.ray
def test_a_folder_that_the_nodes_have_not_is_named(at, told):
    words = ("submit", "curate", "curate.toml", "cluster.job.folder=/no/such/folder", *at)
    wrong = told(*words, "--follow", code=2)
    assert "/no/such/folder is not on the node of the driver; next: " in wrong["heard"]


@pytest.mark.ray
def test_tokens_and_names_that_are_wrong(at, monkeypatch, capsys):
    def refused(*words, code=1):
        begun_s = time.monotonic()
        assert guarded(*words) == code
        assert time.monotonic() - begun_s < SOON_S
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "; next: " in err
        return err

    assert "no such job at" in refused("status", "train-none", *at, code=2)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    for words in (["list"], ["submit", "curate", "curate.toml"], ["stop", "x"], ["logs", "x"]):
        assert "wants a token" in refused(*words, *at)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    assert "does not take the token" in refused("list", *at)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["list", "--address", "http://127.0.0.1:{free}"], 1, "no Ray dashboard answers"),
        (["submit", "curate", "curate.toml"], 2, "--address: which cluster?"),
        (["submit", "curate", "none.toml", "--address", "x"], 2, "none.toml: no such recipe"),
        (["submit", "curate", str(RECIPES / "base.toml"), "--dry-run"], 2, "is a recipe for train"),
        (["submit", "curate", "curate.toml", "out=", "sorce=x", "--dry-run"], 2, "source"),
        (["stop"], 2, "stop: of which?"),
        (["status", "nowhere"], 2, "nowhere: no run in it"),
        (
            [
                "submit",
                "curate",
                "curate.toml",
                "tracking_uri=http://me:hidden@tracker:5000",
                "--dry-run",
            ],
            2,
            "holds a password or key",
        ),
    ],
)
def test_mistakes_are_one_line_and_a_code(words, code, said, capsys):
    begun_s = time.monotonic()
    assert guarded(*(word.format(free=free_port()) for word in words)) == code
    assert time.monotonic() - begun_s < SOON_S
    streams = capsys.readouterr()
    assert said in streams.err
    assert "Traceback" not in streams.err
    assert "hidden" not in streams.err


def test_a_key_in_a_comment_of_the_recipe_stays_here(capsys):
    Path("curate.toml").write_text(RECIPE + "\n# s3://a?api_key=hidden\n")
    assert guarded("submit", "curate", "curate.toml", "--dry-run") == 2
    assert "hidden" not in capsys.readouterr().err


def test_the_same_work_in_the_same_place_is_the_same_job(tmp_path, monkeypatch):
    def name(*overrides):
        return submit.order("curate", Path("curate.toml"), overrides, resume=True).name

    same = name()
    assert same.startswith("curate-")
    assert name("cluster.job.cpus=2", "max_attempts=5", "tracking_uri=http://tracker") == same
    assert name("out=elsewhere") != same
    assert name("keep.min_motion=0.2") != same
    assert name("cluster.job.folder=/mnt/lab") != same
    monkeypatch.chdir(tmp_path)
    (tmp_path / "curate.toml").write_text(RECIPE)
    assert name() != same


def test_the_name_of_a_chain_is_its_steps_work(monkeypatch):
    monkeypatch.setenv("HOME", "/")
    demo = RECIPES / "demo.toml"

    def name(*overrides):
        return submit.order("run", demo, overrides, resume=True).name

    assert name() == name("cluster.num_cpus=3", "steps.base.num_workers=1")
    assert name() != name("steps.base.steps=401")
    assert name() != name("steps.sample.num_seeds=9")


def test_nothing_of_an_override_is_the_shells(tmp_path):
    nasty = ["out=a b; touch pwned", "source=$(touch pwned)", "keep.own=[{use='x:Y'}]"]
    asked = submit.order("curate", Path("curate.toml"), nasty[:2], resume=False)
    command = asked.entrypoint.rpartition("exec ")[2]
    assert shlex.split(command)[:5] == ["python", "-P", "-m", "jobs", "curate"]
    assert shlex.split(command)[6:] == [*nasty[:2], "--address", "auto", "--no-resume"]
    # a python that says what it was told, where and from where
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\npwd\nfor word in "$@"; do echo "$word"; done\n')
    python.chmod(0o755)
    path = f"{python.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", asked.entrypoint],
        cwd=tmp_path,
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    here, *words = done.stdout.splitlines()
    assert (here, words[3:5]) == (str(Path.cwd()), ["curate", f"{tmp_path}/recipe/curate.toml"])
    assert words[5:7] == nasty[:2]
    assert not list(tmp_path.rglob("pwned"))


def test_the_package_is_code_and_the_recipe(tmp_path):
    stray = CHECKOUT / "jobs" / "stray.mp4"
    stray.write_bytes(b"a video")
    try:
        size = submit.pack(tmp_path / "one", Path("curate.toml"))
        submit.pack(tmp_path / "two", Path("curate.toml"))
    finally:
        stray.unlink()
    names = {str(p.relative_to(tmp_path / "one")) for p in (tmp_path / "one").rglob("*")}
    assert {"jobs/cli.py", "jobs/recipes/demo.toml", "recipe/curate.toml", CODE_NOTE} <= names
    assert {name.split("/")[0] for name in names} == {*submit.PACKAGES, "recipe", CODE_NOTE}
    assert not [name for name in names if name.endswith((".mp4", ".pyc"))]
    assert size < 8 << 20
    for name in names:
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        assert one.is_dir() or one.read_bytes() == two.read_bytes()


def test_looking_loads_nothing_heavy():
    heavy = ("torch", "ray", "mlflow", "open_clip", "pyarrow")
    words = [["status", "nowhere"], ["logs", "nowhere"], ["stop", "nowhere"], ["list", "."]]
    code = f"import sys; from jobs.__main__ import _guarded; [_guarded(w) for w in {words}]; "
    code += "_guarded(['list', '--address', 'http://127.0.0.1:1']); "
    code += f"print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.ray
def test_doctor_finds_a_head_with_a_token_well(ray_head):
    assert doctor._token(ray_head.url).status == "ok"
