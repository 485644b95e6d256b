"""Who answers at the address of a cluster's dashboard: its versions, and whether it takes our token.

Asked with the standard library before anything of Ray is loaded: Ray itself waits without end for a head that is gone, and
takes its address from RAY_ADDRESS whatever it is told. The token goes into a header and nowhere else.
"""

import http.client
import importlib.metadata
import json
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONNECT_TIMEOUT_S = 5.0
DEADLINE_S = 8.0
DEFAULT_TOKEN = Path(".ray") / "auth_token"
PYTHONS = ((3, 11), (3, 14))  # from the first up to, but without, the second
MAX_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a Ray job of ours takes for its driver, and where it works.

    `folder` is its current folder, "" the one it is submitted from: relative paths of the recipe are looked up there, so that
    it lies on storage that every node has. With `cpus`, `gpus` and `resources` of 0 the driver sits on the head node.
    `stop_s` are the seconds that it has to commit what is in flight when it is stopped; Ray kills it then.
    """

    cpus: float = 0.0
    gpus: float = 0.0
    resources: dict[str, float] = field(default_factory=dict)
    folder: str = ""
    stop_s: int = 120

    def __post_init__(self) -> None:
        """Refuse what Ray would not take."""
        if min(self.cpus, self.gpus, *self.resources.values()) < 0:
            raise ValueError("job: cpus, gpus and resources are 0 or more")
        if self.folder and not self.folder.startswith("/"):
            raise ValueError("job.folder: an absolute path, on storage that every node has")
        if self.stop_s < 1:
            raise ValueError("job.stop_s: at least 1")

    @property
    def needs(self) -> dict[str, float]:
        """Return what one node must have free for the driver, by Ray's names."""
        named = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return {name: amount for name, amount in named.items() if amount}


class ClusterUnavailable(ConnectionError):
    """Ray could not be started or reached; the message names the next step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """A dashboard that answered: its URL, the header that it takes our token in ({} for none), its versions."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    ray: str
    python: str


def reach(address: str) -> Head:
    """Return who answers at `address` (http://HOST:PORT) within DEADLINE_S; raises ClusterUnavailable with the next step."""
    url = _url(address)
    token, source = token_of(os.environ)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    head = _within(DEADLINE_S, lambda: _asked(url, headers, source), url)
    if told := mismatch(ray=head.ray, python=head.python):
        raise ClusterUnavailable(f"{url}: {told}")
    return head


def token_of(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the token that Ray's clients would take, and where it is from; ("", "") for none."""
    if token := environment.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    if named := environment.get("RAY_AUTH_TOKEN_PATH", ""):
        return _read(Path(named), "RAY_AUTH_TOKEN_PATH"), f"RAY_AUTH_TOKEN_PATH ({named})"
    path = Path.home() / DEFAULT_TOKEN
    return (_read(path, str(path)), str(path)) if path.exists() else ("", "")


def mismatch(*, ray: str, python: str) -> str:
    """Return why this code cannot run on a cluster with these versions, with the next step; "" when it can."""
    ours = importlib.metadata.version("ray")
    if ray.split(".")[:2] != ours.split(".")[:2]:
        return (
            f"the cluster runs Ray {ray}, this is Ray {ours}; next: start the cluster with Ray {ours}, "
            "or submit from a checkout that fits it"
        )
    known = tuple(int(part) for part in python.split(".")[:2] if part.isdigit())
    if known and not PYTHONS[0] <= known < PYTHONS[1]:
        first, last = (".".join(map(str, (major, minor))) for major, minor in PYTHONS)
        return (
            f"the cluster runs Python {python}, Kinoray needs {first} or newer and below {last}; "
            f"next: start the cluster with Python {first}"
        )
    return ""


def _url(address: str) -> str:
    url = address if "://" in address else f"http://{address}"
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ClusterUnavailable(
            f"{_without_user(address)}: is no address of a dashboard; "
            "next: --address http://HOST:8265, as `ray start` prints it"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _without_user(address: str) -> str:
    return address.rpartition("@")[2]


def _read(path: Path, named: str) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterUnavailable(
            f"{named}: the token file {path} cannot be read ({getattr(error, 'strerror', 'not text')}); "
            "next: name the cluster's token file in RAY_AUTH_TOKEN_PATH"
        ) from None
    if not token:
        raise ClusterUnavailable(
            f"{named}: the token file {path} is empty; next: copy the cluster's token into it"
        )
    return token


def _within(seconds: float, ask: Callable[[], Head], url: str) -> Head:
    """Return what `ask` finds; a name server or a head that drips its answer is not waited for."""
    found: list[Head | Exception] = []

    def work() -> None:
        try:
            found.append(ask())
        except Exception as error:  # noqa: BLE001  raised again where it is waited for
            found.append(error)

    thread = threading.Thread(target=work, name="head", daemon=True)
    thread.start()
    thread.join(seconds)
    ended = found[0] if found else ClusterUnavailable(_silent(url, f"within {seconds:.0f} s"))
    if isinstance(ended, Exception):
        raise ended
    return ended


def _asked(url: str, headers: Mapping[str, str], source: str) -> Head:
    told = _get(f"{url}/api/version", headers, source, url)
    if not isinstance(told.get("ray_version"), str):
        raise ClusterUnavailable(_foreign(url))
    versions = _get(f"{url}/api/v0/cluster_metadata", headers, source, url).get("data") or {}
    python = str(versions.get("pythonVersion", ""))
    return Head(url=url, headers=headers, ray=told["ray_version"], python=python)


def _get(what: str, headers: Mapping[str, str], source: str, url: str) -> dict[str, Any]:
    request = urllib.request.Request(what, headers=dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S) as answer:
            told = json.loads(answer.read(MAX_ANSWER_BYTES))
    except urllib.error.HTTPError as error:
        error.close()
        raise ClusterUnavailable(refusal(url, error.code, source)) from None
    except urllib.error.URLError as error:
        raise ClusterUnavailable(_silent(url, str(error.reason))) from None
    except TimeoutError:
        raise ClusterUnavailable(_silent(url, f"within {CONNECT_TIMEOUT_S:.0f} s")) from None
    except OSError as error:
        raise ClusterUnavailable(_silent(url, str(error))) from None
    except (http.client.HTTPException, ValueError):  # no HTTP, or no JSON
        raise ClusterUnavailable(_foreign(url)) from None
    return told if isinstance(told, dict) else {}


def refusal(url: str, status: int, source: str = "") -> str:
    """Return in one line what an HTTP status of a dashboard means, with the next step."""
    if status == 401:
        return (
            f"{url} wants a token and there is none here; next: RAY_AUTH_TOKEN_PATH=FILE "
            "with the cluster's token file, or put it at ~/.ray/auth_token"
        )
    if status == 403:
        told = f" from {source}" if source else ""
        return (
            f"{url} does not take the token{told}; next: RAY_AUTH_TOKEN_PATH=FILE "
            "with the token file of this cluster"
        )
    return _foreign(url) if status in (404, 405) else _silent(url, f"HTTP status {status}")


def _silent(url: str, why: str) -> str:
    return (
        f"no Ray dashboard answers at {url} ({why}); next: check that the head runs, "
        "and that --address names its dashboard (port 8265 unless it was told another)"
    )


def _foreign(url: str) -> str:
    return (
        f"what answers at {url} is no Ray dashboard; next: --address http://HOST:8265, "
        "the dashboard's port, not the one that nodes connect to"
    )
