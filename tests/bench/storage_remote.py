"""What a random clip costs over a network: requests and bytes, counted between us and a local S3 server."""

import http.client
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from ingest.objects import Root
from ingest.shards import Location, read_payload, write_shard
from tests.bench.storage_corpus import Corpus
from tests.bench.storage_rows import payload_row

BUCKET = "bench"
# Its own process, so that it and its client do not wait for one interpreter.
SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@dataclass
class Counted:
    """What went through the proxy: requests, and bytes of the bodies that came back."""

    requests: int = 0
    bytes: int = 0
    methods: list[str] = field(default_factory=list)

    def clear(self) -> None:
        self.requests = self.bytes = 0
        self.methods.clear()


class _Proxy(BaseHTTPRequestHandler):
    """Passes every request on to the store, and counts."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    upstream = ""
    counted = Counted()
    lock = threading.Lock()

    def _pass(self) -> None:
        body = self._body()
        store = http.client.HTTPConnection(self.upstream, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
        store.request(self.command, self.path, body=body, headers=headers)
        answer = store.getresponse()
        data = answer.read()
        with self.lock:
            self.counted.requests += 1
            self.counted.bytes += len(data)
            self.counted.methods.append(self.command)
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        # Of a HEAD the length is that of the body it did not send.
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(data)
        store.close()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass  # noqa: N815  names of the standard library

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def log_message(self, *_words: object) -> None:
        """Say nothing."""


@contextmanager
def counting_proxy(upstream: str) -> Iterator[tuple[str, Counted]]:
    """Pass requests on to `upstream` (an http URL); give the proxy's own URL and what it counted."""
    counted = Counted()
    kind = type("Proxy", (_Proxy,), {"upstream": urlsplit(upstream).netloc, "counted": counted})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", counted
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def store() -> Iterator[str]:
    """Start a local S3 server with an empty bucket; give its URL."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", SERVER], text=True, **pipes) as server:
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        connection.request("PUT", f"/{BUCKET}")
        connection.getresponse().read()
        connection.close()
        yield url
        server.terminate()


@contextmanager
def environment(url: str) -> Iterator[None]:
    """Point object stores at a URL, with credentials that mean nothing."""
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def random_reads(url: str, bucket: str, payloads: list[bytes], num_reads: int) -> dict[str, float]:
    """Return requests and bytes a payload byte of verified reads in random order, one clip at a time."""
    with counting_proxy(url) as (proxy, counted), environment(proxy):
        root = Root.of(f"s3://{bucket}/{os.urandom(8).hex()}")
        places: list[Location] = write_shard(map(payload_row, payloads), root)
        order = random.Random(0).choices(range(len(payloads)), k=num_reads)
        counted.clear()
        for i in order:
            place = places[i]
            name = (place.shard, place.offset, place.length, place.crc32)
            if read_payload(root, *name) != payloads[i]:
                raise SystemExit("the store gave other bytes than were written")
        return {
            "reads": num_reads,
            "requests": counted.requests / num_reads,
            "bytes": counted.bytes / sum(len(payloads[i]) for i in order),
        }


def measure(corpus: Corpus, num_clips: int = 150, num_reads: int = 200) -> dict[str, float]:
    """Read random clips of the corpus' first from one shard in a local S3 server."""
    with store() as url:
        return random_reads(url, BUCKET, corpus.payloads[:num_clips], num_reads)
