"""The openai captioner against a real server that misbehaves in every way."""

import base64
import json
import random
import re
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from ingest.caption import OpenAI
from ingest.conformance import check, made_clips
from ingest.stage import Failure, NotAStage, load, needs_of
from jobs.__main__ import _guarded
from pipelines import post as posting
from pipelines.openai import Endpoint, EndpointRefused

RECIPES = Path(__file__).resolve().parents[2] / "jobs" / "recipes"
KEY = "sk-very-secret-0123456789"


def completion(content="two dogs", **message):
    return json.dumps({"choices": [{"message": {"content": content, **message}}]}).encode()


def colour(body):
    """Return the mean colour of the pictures of a request."""
    _text, *pictures = body["messages"][0]["content"]
    data = [picture["image_url"]["url"].partition(",")[2] for picture in pictures]
    seen = [cv2.imdecode(np.frombuffer(base64.b64decode(d), np.uint8), 1) for d in data]
    return np.mean([picture.mean(axis=(0, 1))[::-1] for picture in seen], axis=0)


def looks(body):
    """A step that says what it sees."""
    return {"body": completion(f"colour {colour(body).round().astype(int).tolist()}")}


class Server(ThreadingHTTPServer):
    """Answers with the steps of a script in turn, the last of them for ever; a step may be a function of what is asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.steps, self.asked, self.at_s = [{}], [], []
        self.busy = self.most = 0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_):
        pass  # the other side went away, as it should

    @classmethod
    @contextmanager
    def serving(cls):
        with cls() as made:
            run = partial(made.serve_forever, poll_interval=0.01)
            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            try:
                yield made
            finally:
                made.shutdown()
                thread.join()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            step = server.steps[min(len(server.asked), len(server.steps) - 1)]
            step = step(body) if callable(step) else step
            server.asked.append((self.path, dict(self.headers), body))
            server.at_s.append(time.monotonic())
            server.busy += 1
            server.most = max(server.most, server.busy)
        time.sleep(step.get("pause_s", 0))
        with server.lock:
            server.busy -= 1
        if step.get("vanish"):
            self.connection.close()
            return
        data = step.get("body", completion())
        if step.get("echo"):
            data = json.dumps({"error": self.headers["Authorization"]}).encode()
        self.send_response(step.get("status", 200))
        self.send_header("Content-Length", str(len(data) + step.get("short", 0)))
        for name, value in step.get("headers", {}).items():
            self.send_header(name, value)
        self.end_headers()
        for byte in range(0, len(data), step.get("drip") or len(data)):
            self.wfile.write(data[byte : byte + (step.get("drip") or len(data))])
            self.wfile.flush()
            time.sleep(0.02 if step.get("drip") else 0)

    do_GET = do_POST  # noqa: N815


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("LAB_KEY", KEY)
    monkeypatch.setattr("pipelines.openai.FIRST_WAIT_S", 0.02)
    with Server.serving() as made:
        yield made


def endpoint(server, **settings):
    known = {
        "url": server.url,
        "model": "eyes-1",
        "key_env": "LAB_KEY",
        "timeout_s": 0.5,
        "attempts": 3,
    }
    return Endpoint(OpenAI(**known | settings))


def clips(stage, count=1):
    return made_clips(stage)[:count]


def ask(server, *steps, count=1, **settings):
    server.steps = list(steps) or [{}]
    stage = endpoint(server, **settings)
    answers = stage(clips(stage, count))
    assert all(KEY not in str(answer) for answer in answers)
    return answers


def test_what_is_asked(server):
    assert ask(server, frames=3, frame_px=32, prompt="What is it?") == ["two dogs"]
    ((path, headers, body),) = server.asked
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("eyes-1", 0.0, 200)
    text, *pictures = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is it?"}
    stage = endpoint(server, frames=3)
    for picture, frame in zip(pictures, clips(stage)[0].frames_THWC, strict=True):
        kind, _, data = picture["image_url"]["url"].partition(",")
        assert kind == "data:image/jpeg;base64"
        seen = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR_RGB)
        assert seen.shape == (24, 32, 3)
        assert abs(seen.mean(axis=(0, 1)) - frame.mean(axis=(0, 1))).max() < 12  # colours in order


def test_conforms_and_is_named_in_a_recipe(server):
    server.steps = [looks]  # its answers differ, so that one in another's place shows
    stage = endpoint(server)
    assert len(set(stage(clips(stage, 5)))) == 5
    assert check("captioner", endpoint(server)) == ()
    assert needs_of(stage).max_workers == 1
    assert KEY not in json.dumps(dict(stage.settings()))
    assert "url" not in stage.settings()
    for wrong in (
        {"url": ""},
        {"url": "ftp://x/v1"},
        {"model": ""},
        {"url": "http://host:80o0/v1"},
        {"url": "http://host:0/v1"},
        {"url": "http://host:99999/v1"},
    ):
        config = OpenAI(**{"url": server.url, "model": "m"} | wrong)
        with pytest.raises(NotAStage, match="url") as raised:
            load("pipelines.openai:Endpoint", {"config": config}, "captioner")
        assert "80o0" not in str(raised.value)


@pytest.mark.parametrize(
    "bad",
    [
        {"status": 500},
        {"status": 503, "body": b"\xff\xfe"},
        {"status": 429},
        {"status": 429, "headers": {"Retry-After": "nan"}},
        {"status": 429, "headers": {"Retry-After": "soon"}},
        {"vanish": True},
        {"body": b"{broken"},
        {"body": b"[" * 100_000},
        {"body": b"{}"},
        {"body": b'{"choices": []}'},
        {"body": b'{"choices": [null]}'},
        {"body": completion(None)},
        {"body": completion(" \n")},
        {"body": completion(7)},
        {"short": 50},
        {"pause_s": 0.7},
        {"drip": 1, "body": completion("x" * 400)},
        {"body": completion("x" * (posting.MAX_REPLY_BYTES + 1))},
    ],
    ids=lambda step: str(step)[:30],
)  # fmt: skip
def test_what_may_work_the_next_time_is_tried_again(server, bad):
    assert ask(server, bad, {}) == ["two dogs"]
    assert len(server.asked) == 2


def test_in_the_end_it_is_the_clips_failure(server):
    begun = time.monotonic()
    (answer,) = ask(server, {"status": 500, "body": b"out of\nmemory"})
    assert answer == Failure(error_class="Unanswered", message="HTTP 500: out of memory")
    assert len(server.asked) == 3
    (answer,) = ask(server, {"drip": 1, "body": b" " * 4000}, attempts=1)
    assert "TimeoutError: no whole reply within 0.5 s" in answer.message
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("limits", [{"concurrency": 2}, {"requests_a_minute": 300}])
def test_retry_after_is_honoured_by_all(server, limits):
    """By those that have not begun, and by those that wait for their turn of so many a minute."""
    refused = {"status": 429, "headers": {"Retry-After": "0.6"}, "pause_s": 0.1}
    answers = ask(server, refused, {"pause_s": 0.2}, count=4, timeout_s=5, **limits)
    assert answers == ["two dogs"] * 4
    first, *others = sorted(server.at_s)
    begun = [at_s - first for at_s in others]
    at_once = [at_s for at_s in begun if at_s < 0.09]  # before anybody was told to wait
    assert len(at_once) == (1 if "concurrency" in limits else 0)
    assert min(begun[len(at_once) :]) >= 0.6


def test_retry_after_is_a_time_too_and_has_a_limit(server):
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    ask(server, {"status": 503, "headers": {"Retry-After": soon}}, {})
    assert server.at_s[1] - server.at_s[0] > 0.5
    (answer,) = ask(server, {"status": 429, "headers": {"Retry-After": "999"}}, max_wait_s=1.0)
    assert "asks to wait 999 s" in answer.message
    assert len(server.asked) == 3


def test_captions_stay_with_their_clips(server):
    """Answers come back in any order."""

    def later(body):
        return looks(body) | {"pause_s": random.uniform(0, 0.2)}

    colours = [
        (250, 20, 20),
        (20, 250, 20),
        (20, 20, 250),
        (240, 240, 20),
        (20, 240, 240),
        (9, 9, 9),
    ]
    stage = endpoint(server, frames=2, concurrency=4, timeout_s=5)
    shown = [
        replace(clip, frames_THWC=np.full((2, 48, 64, 3), colour, np.uint8))
        for clip, colour in zip([*clips(stage, 5), *clips(stage)], colours, strict=True)
    ]
    server.steps = [later]
    for _ in range(2):
        for answer, colour in zip(stage(shown), colours, strict=True):
            said = [int(word) for word in re.findall(r"\d+", answer)]
            assert np.abs(np.subtract(said, colour)).max() < 8


HUNG = [{"pause_s": 5}, {"drip": 1, "body": b" " * 4000}]


@pytest.mark.parametrize("hung", HUNG, ids=["silent", "trickling"])
def test_an_endpoint_that_hangs_is_given_up_soon(server, hung):
    server.steps = [{}, {}, hung]
    stage = endpoint(server, concurrency=2, timeout_s=0.3, attempts=6)
    assert stage(clips(stage, 2)) == ["two dogs"] * 2
    begun_s = time.monotonic()
    with pytest.raises(EndpointRefused, match="2 clips in a row were not answered, the last: Time"):
        stage(clips(stage, 5))
    assert time.monotonic() - begun_s < 3 * 0.3 + 1
    assert len(server.asked) <= 2 + 2 * 2 + 1  # one had begun


def test_what_was_answered_before_it_hung_is_kept(server):
    server.steps = [{}, {}, {"pause_s": 5}]
    stage = endpoint(server, concurrency=1, timeout_s=0.3)
    answers = stage(clips(stage, 5))
    assert answers[:2] == ["two dogs"] * 2
    classes = [answer.error_class for answer in answers[2:]]
    assert classes == ["Unanswered", "EndpointRefused", "EndpointRefused"]
    with pytest.raises(EndpointRefused, match="2 clips in a row"):
        stage(clips(stage))
    assert len(server.asked) == 2 + 2 * 2


def test_nobody_listens(server):
    stage = endpoint(server, url="http://127.0.0.1:9/v1", concurrency=1)
    with pytest.raises(EndpointRefused, match=r"2 clips in a row .*ConnectionRefusedError"):
        stage(clips(stage, 5))


@pytest.mark.parametrize("concurrency", [1, 3])
def test_clips_that_make_it_hang_are_those_clips_failures(server, concurrency):
    """While the others are answered, the endpoint is not dead."""
    stage = endpoint(server, concurrency=concurrency, timeout_s=0.3)
    shown = clips(stage, 5)
    for number in (1, 3):
        white_THWC = np.full_like(shown[number].frames_THWC, 255)
        shown[number] = replace(shown[number], frames_THWC=white_THWC)
    server.steps = [lambda body: {"pause_s": 5} if colour(body).min() > 250 else {}]
    answers = stage(shown)
    assert [isinstance(answer, str) for answer in answers] == [True, False, True, False, True]
    assert {answers[number].error_class for number in (1, 3)} == {"Unanswered"}
    assert stage(clips(stage, 2)) == ["two dogs"] * 2


def test_a_handshake_that_trickles_has_no_more_time():
    def trickle(listening):
        with suppress(OSError):
            opened = listening.accept()[0]
            with opened:
                opened.sendall(b"\x16\x03\x03\x40\x00")  # a record of 16 KiB begins
                while True:
                    time.sleep(0.02)
                    opened.sendall(b"\x02")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=trickle, args=(listening,), daemon=True)
        thread.start()
        begun_s = time.monotonic()
        url = f"https://127.0.0.1:{listening.getsockname()[1]}/v1"
        with pytest.raises(TimeoutError, match=r"within 0\.4 s"):
            posting.post(url, b"{}", {}, timeout_s=0.4)
        assert time.monotonic() - begun_s < 1.5
        thread.join(5)  # the other side is told: nothing is left behind
        assert not thread.is_alive()


@pytest.mark.parametrize("status", [401, 403, 404, 307, 302])
def test_what_will_never_work_ends_the_run(server, status):
    with Server.serving() as elsewhere:
        headers = {"Location": elsewhere.url}
        with pytest.raises(EndpointRefused, match=f"HTTP {status}") as raised:
            ask(server, {"status": status, "headers": headers, "echo": True})
    assert KEY not in str(raised.value)
    assert (len(server.asked), elsewhere.asked) == (1, [])
    assert raised.value.fatal


def test_one_clips_own_trouble(server):
    (answer,) = ask(server, {"status": 400, "echo": True})
    assert (answer.error_class, answer.final) == ("Refused", False)
    assert "Bearer ***" in answer.message
    (answer,) = ask(server, {}, {"body": completion(None, refusal="I cannot look at this")})
    assert (answer.error_class, answer.final) == ("Refused", True)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "dog"}, 3]
    server.asked.clear()
    assert ask(server, {"body": completion(parts)}) == ["a dog"]
    server.asked.clear()
    assert ask(server, {"body": completion(f"your key is {KEY}")}) == ["your key is ***"]


def test_an_endpoint_that_is_down_ends_the_run_after_what_was_paid(server):
    server.steps = [{}, {}, {"status": 500}]
    stage = endpoint(server, attempts=1, concurrency=1, give_up_after=2)
    answers = stage(clips(stage, 5))
    assert [isinstance(answer, str) for answer in answers] == [True, True, False, False, False]
    assert len(server.asked) == 4
    with pytest.raises(EndpointRefused, match="2 clips in a row"):
        stage(clips(stage, 1))
    gone = endpoint(server, url="http://127.0.0.1:9/v1", attempts=1, give_up_after=1)
    with pytest.raises(EndpointRefused, match="ConnectionRefusedError"):
        gone(clips(gone))


def test_a_missing_key_is_one_clear_error(server, monkeypatch):
    monkeypatch.delenv("LAB_KEY")
    with pytest.raises(EndpointRefused, match="that key_env names is not set") as raised:
        ask(server)
    assert "LAB_KEY" not in str(raised.value)
    monkeypatch.setenv("LAB_KEY", "a\nb")
    with pytest.raises(EndpointRefused, match="no key has") as raised:
        ask(server)
    assert "a\nb" not in str(raised.value)
    assert server.asked == []
    assert ask(server, key_env="") == ["two dogs"]
    assert "Authorization" not in server.asked[0][1]


CHAIN = """
name = "chain"
[steps.curate]
verb = "curate"
source = ["."]
captions = {{captioners = [{{use = "tests.ingest.stages_made:Shades", {mistake}}}]}}
"""


@pytest.mark.parametrize("mistake", ['prompt = "KEY"', 'api_key = "KEY"'])
def test_a_key_in_a_recipe_is_written_nowhere(mistake, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").touch()
    words = ["curate", str(RECIPES / "curate.toml"), "source=a.mp4", "out=mine"]
    assert _guarded([*words, "captions.captioners=openai", f"captions.openai.key_env={KEY}"]) == 2
    assert _guarded([*words, f"captions.openai.key_env={KEY}", "--dry-run"]) == 2
    (tmp_path / "chain.toml").write_text(CHAIN.format(mistake=mistake.replace("KEY", KEY)))
    assert _guarded(["run", "chain.toml", "out=chained"]) == 2
    out, err = capfd.readouterr()
    assert err.count("keys belong in the environment") == 3
    assert KEY not in out + err
    (tmp_path / "chain.toml").unlink()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.mp4"]


def test_bounded_and_paced(server):
    ask(server, {"pause_s": 0.05}, count=5, concurrency=2)
    assert server.most == 2
    server.at_s.clear()
    ask(server, count=4, concurrency=4, requests_a_minute=600)
    gaps = np.diff(sorted(server.at_s))
    assert gaps.min() > 0.08
