"""The `openai` captioner: frames of a clip to a vision endpoint that speaks OpenAI's chat completions.

The endpoint is not trusted: it may be slow, silent, wrong or down. A key is read from the worker's environment for each
request, sent to the named host only (redirects are not followed), and taken out of every message.
"""

import base64
import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from math import isfinite
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np

from ingest.caption import OpenAI
from ingest.ledger import printable
from ingest.stage import Failure, Needs, Seen
from pipelines.post import Reply, post

PATH = "/chat/completions"
AGAIN = frozenset({408, 409, 425, 429})  # and everything from 500
HOPELESS = {
    401: "the key is refused",
    403: "the key may not do this",
    404: "no such model or path",
}
FIRST_WAIT_S = 0.5
SAID_CHARS = 300


class EndpointRefused(RuntimeError):
    """The endpoint will answer no clip: a wrong key or address, or it is down."""

    retryable = False
    fatal = True


class _Again(Exception):
    """A request that may work the next time; `wait_s` is what the endpoint asked for, if it did."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason, wait_s)
        self.reason, self.wait_s = reason, wait_s


@dataclass(slots=True)
class _Pace:
    """When the next request may begin: so many a minute, and not while the endpoint asked to wait."""

    interval_s: float
    lock: Lock
    next_s: float = 0.0

    def wait(self) -> None:
        """Sleep until it is this request's turn."""
        with self.lock:
            begin_s = max(time.monotonic(), self.next_s)
            self.next_s = begin_s + self.interval_s
        time.sleep(max(0.0, begin_s - time.monotonic()))

    def hold(self, wait_s: float) -> None:
        """Let nobody begin for so long."""
        with self.lock:
            self.next_s = max(self.next_s, time.monotonic() + wait_s)


class Endpoint:
    """An endpoint as a captioner: `concurrency` requests at once, retried with growing pauses."""

    name, version = "openai", "v1"

    def __init__(self, config: OpenAI) -> None:
        where = urlsplit(config.url)
        if where.scheme not in ("http", "https") or not where.hostname or not config.model:
            raise ValueError("openai: needs url (http://host/v1 or https://host/v1) and model")
        if where.username or where.password or where.query:
            raise ValueError("openai: url holds a key; name an environment variable with key_env")
        self._config = config
        self._dead: EndpointRefused | None = None
        self._misses = 0
        self.needs = Needs(
            frames=config.frames,
            batch_clips=config.concurrency,  # what a kill loses has been paid for
            costly=True,
            max_workers=1,
            call_timeout_s=_longest_s(config),
        )
        self._pace: _Pace | None = None

    def settings(self) -> Mapping[str, Any]:
        """Return what decides a caption: the model and what it is asked, not where it is served."""
        names = "model prompt frames frame_px jpeg_quality max_tokens temperature"
        return {name: getattr(self._config, name) for name in names.split()}

    def __call__(self, clips: Sequence[Seen]) -> list[str | Failure]:
        """Ask for each clip; raises EndpointRefused when no clip will be answered."""
        if self._dead is not None:
            raise self._dead
        if self._pace is None:  # here, for a lock does not travel to a worker
            rate = self._config.requests_a_minute
            self._pace = _Pace(60 / rate if rate else 0.0, Lock())
        with ThreadPoolExecutor(self._config.concurrency) as pool:
            answers = list(pool.map(self._caption, clips))
        # What was answered has been paid for: it is handed over first, and the end comes with the next batch.
        if self._dead is not None and not any(isinstance(answer, str) for answer in answers):
            raise self._dead
        return answers

    def _caption(self, clip: Seen) -> str | Failure:
        if self._dead is not None:
            return Failure(error_class="EndpointRefused", message=str(self._dead))
        try:
            body = self._body(clip.frames_THWC)
            answer = self._asked(body)
        except EndpointRefused as error:
            self._dead = error
            return Failure(error_class="EndpointRefused", message=str(error))
        missed = isinstance(answer, Failure) and answer.error_class == "Unanswered"
        self._misses = self._misses + 1 if missed else 0
        if self._misses >= self._config.give_up_after and isinstance(answer, Failure):
            words = f"{self._misses} clips in a row were not answered, the last: {answer.message}"
            self._dead = EndpointRefused(f"{self._config.url}: {words}; next: check that it is up")
        return answer

    def _asked(self, body: bytes) -> str | Failure:
        reason = ""
        for attempt in range(self._config.attempts):
            try:
                return self._answer(self._sent(body))
            except _Again as again:
                reason = again.reason
                wait_s = again.wait_s
            if wait_s is None:
                longest_s = min(self._config.max_wait_s, FIRST_WAIT_S * 2**attempt)
                wait_s = random.uniform(longest_s / 2, longest_s)
            elif wait_s > self._config.max_wait_s:
                reason += f"; it asks to wait {wait_s:.0f} s, more than max_wait_s"
                break
            elif self._pace is not None:
                self._pace.hold(wait_s)
            if attempt + 1 < self._config.attempts:
                time.sleep(wait_s)
        return Failure(error_class="Unanswered", message=reason)

    def _sent(self, body: bytes) -> Reply:
        if self._pace is not None:
            self._pace.wait()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        headers |= {"Authorization": f"Bearer {self._key()}"} if self._config.key_env else {}
        url = self._config.url.rstrip("/") + PATH
        try:
            return post(url, body, headers, timeout_s=self._config.timeout_s)
        except (OSError, HTTPException) as error:
            raise _Again(self._told(f"{type(error).__name__}: {error}")) from None

    def _key(self) -> str:
        name = self._config.key_env
        key = os.environ.get(name, "").strip()
        if not key:
            raise EndpointRefused(
                f"openai: the environment variable {name} is not set where the worker runs; "
                'set it there, or key_env = "" for an endpoint without keys'
            )
        if not key.isascii() or not key.isprintable():
            raise EndpointRefused(f"openai: {name} holds characters that no key has")
        return key

    def _answer(self, reply: Reply) -> str | Failure:
        """Return the words of a reply; raises _Again, EndpointRefused."""
        status = reply.status
        if status in AGAIN or status >= 500:
            wait_s = _seconds(reply.retry_after)
            raise _Again(self._told(f"HTTP {status}: {reply.text}"), wait_s)
        if status in HOPELESS or 300 <= status < 400:
            why = HOPELESS.get(status, "a redirect, which is not followed; name the new address")
            said = self._told(f"{self._config.url}: HTTP {status}, {why}: {reply.text}")
            raise EndpointRefused(said)
        if status != 200:
            return Failure(
                error_class="Refused", message=self._told(f"HTTP {status}: {reply.text}")
            )
        try:
            message = json.loads(reply.body)["choices"][0]["message"]
            refusal, content = message.get("refusal"), message.get("content")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _Again(self._told(f"no chat completion: {reply.text}")) from None
        if refusal:
            return Failure(error_class="Refused", message=self._told(str(refusal)), final=True)
        text = _text(content)
        if not text.strip():
            raise _Again("the answer is empty")
        return self._without_key(text)

    def _told(self, text: str) -> str:
        return printable(self._without_key(text))[:SAID_CHARS]

    def _without_key(self, text: str) -> str:
        key = os.environ.get(self._config.key_env, "").strip() if self._config.key_env else ""
        return text.replace(key, "***") if key else text

    def _body(self, frames_THWC: np.ndarray) -> bytes:
        config = self._config
        pictures = [
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{picture}"}}
            for picture in (_jpeg(f, config.frame_px, config.jpeg_quality) for f in frames_THWC)
        ]
        asked = {
            "model": config.model,
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": config.prompt}, *pictures]}
            ],
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
        }
        return json.dumps(asked).encode()


def _longest_s(config: OpenAI) -> float:
    """Return how long one call may take: each clip with all its attempts and pauses, and each in its turn."""
    each_s = config.attempts * (config.timeout_s + 2 * config.max_wait_s)
    rate = config.requests_a_minute
    turns_s = config.attempts * config.concurrency * 60 / rate if rate else 0.0
    return 60 + each_s + turns_s


def _jpeg(frame_HWC: np.ndarray, longest_px: int, quality: int) -> str:
    height, width = frame_HWC.shape[:2]
    scale = min(1.0, longest_px / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small_HWC = cv2.resize(frame_HWC, size, interpolation=cv2.INTER_AREA)
    bgr_HWC = cv2.cvtColor(small_HWC, cv2.COLOR_RGB2BGR)
    _done, data = cv2.imencode(".jpg", bgr_HWC, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return base64.b64encode(data.tobytes()).decode()


def _text(content: Any) -> str:
    """Return the text of a message's content: a text, or a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return " ".join(text for text in texts if isinstance(text, str))


def _seconds(retry_after: str) -> float | None:
    """Return the seconds of a Retry-After header, which is a number or a date; None where it is neither."""
    with suppress(ValueError):
        wait_s = float(retry_after)
        return max(0.0, wait_s) if isfinite(wait_s) else None
    try:
        moment = parsedate_to_datetime(retry_after)
    except (ValueError, TypeError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
