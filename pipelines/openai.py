"""The `openai` captioner: frames of a clip to a vision endpoint that speaks OpenAI's chat completions.

The endpoint is not trusted: it may be slow, silent, wrong or down. A key is read from the worker's environment for each
request, sent to the named host only (redirects are not followed), and taken out of every message.

One that falls silent is told dead once two clips in a row were given up while nobody got a reply, each after two requests that
took `timeout_s` or after `attempts` refused connections. What was under way when the last reply came is given up before them,
and what is under way then has its `timeout_s` left: 5 times `timeout_s` and some pauses in all, 10 minutes by default.
"""

import base64
import json
import os
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from http.client import HTTPException
from math import isfinite
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np

from ingest.caption import OpenAI
from ingest.ledger import printable
from ingest.stage import Failure, Needs, Seen
from pipelines.line import Line
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
TIMEOUTS = 2  # so often a request is sent that gets no reply in time
SILENT_CLIPS = 2


class EndpointRefused(RuntimeError):
    """The endpoint will answer no clip: a wrong key or address, or it is down."""

    retryable = False
    fatal = True


class _Again(Exception):
    """A request that may work the next time; `wait_s` is what the endpoint asked for, if it did.

    `late` is 1 where no reply came in time, else 0.
    """

    def __init__(self, reason: str, wait_s: float | None = None, late: int = 0) -> None:
        super().__init__(reason, wait_s, late)
        self.reason, self.wait_s, self.late = reason, wait_s, late


class Endpoint:
    """An endpoint as a captioner: `concurrency` requests at once, retried with growing pauses."""

    name, version = "openai", "v1"

    def __init__(self, config: OpenAI) -> None:
        where = urlsplit(config.url)
        try:
            port = where.port
        except ValueError:  # whose words repeat the text
            port = 0
        if port == 0:
            raise ValueError("openai: url has a port that is no number of 1 to 65535")
        if where.scheme not in ("http", "https") or not where.hostname or not config.model:
            raise ValueError("openai: needs url (http://host/v1 or https://host/v1) and model")
        self._config = config
        self._dead: EndpointRefused | None = None
        self.needs = Needs(
            frames=config.frames,
            batch_clips=config.concurrency,  # what a kill loses has been paid for
            costly=True,
            max_workers=1,
            call_timeout_s=_longest_s(config),
        )
        self._line: Line | None = None  # made in the worker, for a lock does not travel there

    def settings(self) -> Mapping[str, Any]:
        """Return what decides a caption: the model and what it is asked, not where it is served."""
        names = "model prompt frames frame_px jpeg_quality max_tokens temperature"
        return {name: getattr(self._config, name) for name in names.split()}

    def __call__(self, clips: Sequence[Seen]) -> list[str | Failure]:
        """Ask for each clip; raises EndpointRefused when no clip will be answered."""
        if self._dead is not None:
            raise self._dead
        rate = self._config.requests_a_minute
        line = self._line = self._line or Line(60 / rate if rate else 0.0)
        with ThreadPoolExecutor(self._config.concurrency) as pool:
            answers = list(pool.map(partial(self._caption, line=line), clips))
        # What was answered has been paid for: it is handed over first, and the end comes with the next batch.
        if self._dead is not None and not any(isinstance(answer, str) for answer in answers):
            raise self._dead
        return answers

    def _caption(self, clip: Seen, *, line: Line) -> str | Failure:
        try:
            answer = None if self._dead else self._asked(self._body(clip.frames_THWC), line)
        except EndpointRefused as error:
            self._dead = self._dead or error
            line.end()
            answer = None
        return answer or Failure(error_class="EndpointRefused", message=str(self._dead))

    def _asked(self, body: bytes, line: Line) -> str | Failure:
        """Return the answer for one clip, asked for until there is one; raises EndpointRefused."""
        reason, late, since = "", 0, line.replies
        for attempt in range(self._config.attempts):
            line.wait()
            if self._dead is not None:
                raise self._dead
            try:
                answer = self._answer(self._sent(body, line))
            except _Again as again:
                reason, wait_s, late = again.reason, again.wait_s, late + again.late
            else:
                line.answered()
                return answer
            if late >= TIMEOUTS:
                break
            if wait_s is not None and wait_s > self._config.max_wait_s:
                reason += f"; it asks to wait {wait_s:.0f} s, more than max_wait_s"
                break
            self._rest(attempt, wait_s, line)
        return self._given_up(reason, *line.missed(since))

    def _rest(self, attempt: int, wait_s: float | None, line: Line) -> None:
        """Wait between two attempts: as long as the endpoint asks everybody to, or longer each time."""
        if wait_s is None:
            longest_s = min(self._config.max_wait_s, FIRST_WAIT_S * 2**attempt)
            wait_s = random.uniform(longest_s / 2, longest_s)
        else:
            line.hold(wait_s)
        if attempt + 1 < self._config.attempts:
            line.pause(wait_s)

    def _given_up(self, reason: str, missed: int, in_silence: int) -> Failure:
        """Return the failure of one clip; raises EndpointRefused when it is one too many."""
        most = self._config.give_up_after
        if missed >= most or in_silence >= min(most, SILENT_CLIPS):
            words = f"{missed} clips in a row were not answered, the last: {reason}"
            raise EndpointRefused(f"{self._config.url}: {words}; next: check that it is up")
        return Failure(error_class="Unanswered", message=reason)

    def _sent(self, body: bytes, line: Line) -> Reply:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        headers |= {"Authorization": f"Bearer {self._key()}"} if self._config.key_env else {}
        url = self._config.url.rstrip("/") + PATH
        try:
            reply = post(url, body, headers, timeout_s=self._config.timeout_s)
        except (OSError, HTTPException) as error:
            words = self._told(f"{type(error).__name__}: {error}")
            raise _Again(words, late=int(isinstance(error, TimeoutError))) from None
        line.heard()
        return reply

    def _key(self) -> str:
        # Its name is not repeated: it may be a key that was put in the wrong place.
        key = os.environ.get(self._config.key_env, "").strip()
        if not key:
            raise EndpointRefused(
                "openai: the environment variable that key_env names is not set where the worker "
                'runs; set it there, or key_env = "" for an endpoint without keys'
            )
        if not key.isascii() or not key.isprintable():
            raise EndpointRefused(
                "openai: the key in the environment holds characters that no key has"
            )
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
