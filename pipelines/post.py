"""One HTTP POST with a limit on its whole time and on the size of the reply; no redirect is followed."""

import socket
import ssl
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPResponse,
    HTTPSConnection,
    IncompleteRead,
)
from threading import Thread
from typing import Any
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

    The time is for all of it, from the look-up of the host's name to the last byte.
    """
    where = urlsplit(url)
    made = _Tls if where.scheme == "https" else HTTPConnection
    connection = made(where.hostname or "", where.port, timeout=timeout_s)
    told: Future[Reply] = Future()
    # A thread, for nothing else ends a look-up, or a handshake of which a byte comes now and then.
    work = Thread(
        target=_exchange, args=(told, connection, where.path, body, dict(headers)), daemon=True
    )
    work.start()
    try:
        return told.result(timeout_s)
    except TimeoutError as error:
        raise TimeoutError(f"no whole reply within {timeout_s:g} s") from error
    finally:
        told.cancel()  # so that what connects too late sends nothing
        _cut(connection)


class _Tls(HTTPSConnection):
    """HTTPS whose socket is known, and can be cut, while it is still shaking hands."""

    def connect(self) -> None:
        """Connect and shake hands."""
        HTTPConnection.connect(self)
        opened = ssl.create_default_context().wrap_socket(
            self.sock, server_hostname=self.host, do_handshake_on_connect=False
        )
        self.sock = opened
        opened.do_handshake()


def _exchange(
    told: "Future[Reply]", connection: HTTPConnection, path: str, body: bytes, headers: Any
) -> None:
    try:
        connection.connect()
        if not told.cancelled():
            connection.request("POST", path, body=body, headers=headers)
            with connection.getresponse() as answer:
                _tell(told.set_result, _reply(answer))
    except (OSError, HTTPException) as error:
        _tell(told.set_exception, error)
    except Exception as error:  # noqa: BLE001  whatever it is, the asker waits for it
        _tell(told.set_exception, HTTPException(f"{type(error).__name__}: {error}"[:200]))
    finally:
        connection.close()


def _tell(how: Callable[[Any], None], what: Reply | Exception) -> None:
    with suppress(InvalidStateError):  # nobody waits any more
        how(what)


def _reply(answer: HTTPResponse) -> Reply:
    data = answer.read(MAX_REPLY_BYTES + 1)
    if len(data) > MAX_REPLY_BYTES:
        raise HTTPException(f"a reply of more than {MAX_REPLY_BYTES} bytes")
    if answer.length:  # of the length that it promised
        raise IncompleteRead(data, answer.length)
    return Reply(status=answer.status, body=data, retry_after=answer.headers.get("Retry-After", ""))


def _cut(connection: HTTPConnection) -> None:
    """End whatever the connection's thread waits for; nothing where it is closed."""
    opened = connection.sock
    with suppress(OSError):
        if opened is not None:
            socket.socket.shutdown(
                opened, socket.SHUT_RDWR
            )  # TLS's own forgets its keys in mid-read
