"""The openai captioner against a real server that misbehaves in every way."""

import base64
import json
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest

from ingest.caption import OpenAI
from ingest.conformance import check, made_clips
from ingest.stage import Failure, NotAStage, load, needs_of
from pipelines import post as posting
from pipelines.openai import Endpoint, EndpointRefused

KEY = "sk-very-secret-0123456789"


def completion(content="two dogs", **message):
    return json.dumps({"choices": [{"message": {"content": content, **message}}]}).encode()


class Server(ThreadingHTTPServer):
    """Answers with the steps of a script in turn, the last of them for ever."""

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
    stage = endpoint(server)
    assert check("captioner", stage) == ()
    assert needs_of(stage).max_workers == 1
    assert KEY not in json.dumps(dict(stage.settings()))
    assert "url" not in stage.settings()
    for wrong in (
        {"url": ""},
        {"url": "ftp://x/v1"},
        {"model": ""},
        {"url": "http://me:key@host/v1"},
    ):
        config = OpenAI(**{"url": server.url, "model": "m"} | wrong)
        with pytest.raises(NotAStage, match="url"):
            load("pipelines.openai:Endpoint", {"config": config}, "captioner")


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


def test_retry_after_is_honoured_by_all(server):
    ask(server, {"status": 429, "headers": {"Retry-After": "0.4"}}, {})
    first, second = server.at_s
    assert 0.4 <= second - first < 1.5
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    server.asked.clear()
    server.at_s.clear()
    ask(server, {"status": 503, "headers": {"Retry-After": soon}}, {})
    assert server.at_s[1] - server.at_s[0] > 0.5
    (answer,) = ask(server, {"status": 429, "headers": {"Retry-After": "999"}}, max_wait_s=1.0)
    assert "asks to wait 999 s" in answer.message
    assert len(server.asked) == 3


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
    with pytest.raises(EndpointRefused, match="LAB_KEY is not set"):
        ask(server)
    monkeypatch.setenv("LAB_KEY", "a\nb")
    with pytest.raises(EndpointRefused, match="no key has") as raised:
        ask(server)
    assert "a\nb" not in str(raised.value)
    assert server.asked == []
    assert ask(server, key_env="") == ["two dogs"]
    assert "Authorization" not in server.asked[0][1]


def test_bounded_and_paced(server):
    ask(server, {"pause_s": 0.05}, count=5, concurrency=2)
    assert server.most == 2
    server.at_s.clear()
    ask(server, count=4, concurrency=4, requests_a_minute=600)
    gaps = np.diff(sorted(server.at_s))
    assert gaps.min() > 0.08
