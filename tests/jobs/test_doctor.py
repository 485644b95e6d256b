"""What doctor says of a cluster that is asked without a token."""

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from jobs import doctor


@contextmanager
def answering(status: int) -> Iterator[str]:
    """Give the address of a server that answers everything with one status."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "found"), [(401, "ok"), (200, "failed"), (404, "failed"), (500, "failed")]
)
def test_only_a_refusal_is_right(status, found):
    with answering(status) as address:
        told = doctor._token(address)
    assert told.status == found
    if status == 200:
        assert "whoever reaches it can run code there" in told.text
        assert "RAY_AUTH_MODE=token" in told.following


def test_nobody_there_is_said():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    told = doctor._token(f"http://127.0.0.1:{port}")
    assert (told.status, told.following) == (
        "failed",
        "the address of a dashboard, http://HOST:8265",
    )
