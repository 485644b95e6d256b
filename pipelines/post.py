"""One HTTP POST with a limit on its whole time and on the size of the reply; no redirect is followed."""

import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection, IncompleteRead
from threading import Timer
from urllib.parse import urlsplit

MAX_REPLY_BYTES = 4 << 20
TEXT_CHARS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What came back: status, body, and how long to wait where it says so."""

    status: int
    body: bytes
    retry_after: str = ""

    @property
    def text(self) -> str:
        """The beginning of the body as text, for messages."""
        return self.body[:TEXT_CHARS].decode("utf-8", "replace")


def post(url: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float) -> Reply:
    """Send and return the reply; raises TimeoutError, OSError, http.client.HTTPException.

    The time is for all of it: a server that sends a byte now and then gets no more.
    """
    where = urlsplit(url)
    if where.scheme == "https":
        context = ssl.create_default_context()
        connection = HTTPSConnection(
            where.hostname or "", where.port, timeout=timeout_s, context=context
        )
    else:
        connection = HTTPConnection(where.hostname or "", where.port, timeout=timeout_s)
    begun_s = time.monotonic()
    connection.connect()
    opened = connection.sock
    left_s = max(0.001, timeout_s - (time.monotonic() - begun_s))
    # The socket's own timeout is for each read; this is for all of them.
    watch = Timer(left_s, _cut, [opened])
    watch.daemon = True
    watch.start()
    try:
        connection.request("POST", where.path, body=body, headers=dict(headers))
        answer = connection.getresponse()
        data = answer.read(MAX_REPLY_BYTES + 1)
        retry_after = answer.headers.get("Retry-After", "")
    except (OSError, HTTPException, ValueError) as error:
        if time.monotonic() - begun_s >= timeout_s:
            raise TimeoutError(f"no whole reply within {timeout_s:g} s") from error
        if isinstance(error, ValueError):
            raise HTTPException(str(error)[:200]) from error
        raise
    finally:
        watch.cancel()
        connection.close()
    if time.monotonic() - begun_s >= timeout_s:  # the cut looks like the end of a body
        raise TimeoutError(f"no whole reply within {timeout_s:g} s")
    if len(data) > MAX_REPLY_BYTES:
        raise HTTPException(f"a reply of more than {MAX_REPLY_BYTES} bytes")
    if answer.length:  # of the length that it promised
        raise IncompleteRead(data, answer.length)
    return Reply(status=answer.status, body=data, retry_after=retry_after)


def _cut(opened: socket.socket) -> None:
    with suppress(OSError):
        opened.shutdown(socket.SHUT_RDWR)
