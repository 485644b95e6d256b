"""Ray's Jobs API as Kinoray uses it: submit under a name that is taken once, look, read along, stop. The only import of it.

What Ray leaves open is closed here: no request waits without end, no address of the environment overrides the one that was
named, and every failure is one line with its next step.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from cluster import head
from cluster.head import ClusterUnavailable, Head
from cluster.session import ENVIRONMENT, NO_GPU_UNASKED

ANSWER_TIMEOUT_S = 30.0
UPLOAD_TIMEOUT_S = 300.0
LOOK_EVERY_S = 5.0
AGAIN_EVERY_S = 2.0
# A dashboard that is started again is back by then; the job goes on meanwhile.
SILENT_S = 60.0
OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
ENDED = ("stopped", "succeeded", "failed")
TAKEN = "already exists"
# Each has a level of its own, so that no level above them silences them.
TALKERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


class NoSuchJob(Exception):
    """A cluster has no job of that name; the message names the next step."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A job as its cluster tells of it; times in UNIX seconds, 0 where there is none yet.

    `state` is pending, running, stopped, succeeded or failed; `exit` the driver's exit status, None before its end and when it
    was stopped. `message` is the first line of what Ray says.
    """

    id: str
    state: str
    exit: int | None
    message: str
    begun_s: float
    ended_s: float
    metadata: Mapping[str, str]

    @property
    def ended(self) -> bool:
        """Whether nothing happens to it any more."""
        return self.state in ENDED


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A job to submit: its name, the shell command of its driver, the folder of its code, and what it takes."""

    id: str
    entrypoint: str
    code: Path
    metadata: Mapping[str, str] = field(default_factory=dict)
    settings: head.Job = field(default_factory=head.Job)


class _Client(JobSubmissionClient):
    """Ray's client, which has no time limits of its own."""

    def __init__(self, address: str, headers: dict[str, Any]) -> None:
        super().__init__(address, headers=headers)
        self._ssl_context: Any = (
            True  # certificates are checked; Ray's None means that to old versions of aiohttp alone
        )

    def _do_request(self, method: str, endpoint: str, **settings: Any) -> requests.Response:
        limit_s = ANSWER_TIMEOUT_S if settings.get("data") is None else UPLOAD_TIMEOUT_S
        return super()._do_request(
            method, endpoint, timeout=(head.CONNECT_TIMEOUT_S, limit_s), **settings
        )


class Jobs:
    """The jobs of one cluster, of whose head head.reach told; every method raises ClusterUnavailable when it is gone."""

    def __init__(self, found: Head) -> None:
        for name in TALKERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.url = found.url
        with _without_overrides(), self._answering():
            self._client = _Client(found.url, headers=dict(found.headers))

    def submit(self, asked: Asked) -> bool:
        """Start a job and return True, or False when there is one of that name: whoever was first has started it."""
        settings = asked.settings
        variables = {
            # read by the job's supervisor when it stops the driver: Ray's own 3 s are too short to commit anything
            "RAY_JOB_STOP_WAIT_TIME_S": str(settings.stop_s),
            NO_GPU_UNASKED: ENVIRONMENT[NO_GPU_UNASKED],
        }
        try:
            with self._answering():
                self._client.submit_job(
                    entrypoint=asked.entrypoint,
                    submission_id=asked.id,
                    runtime_env={"working_dir": str(asked.code), "env_vars": variables},
                    metadata=dict(asked.metadata),
                    entrypoint_num_cpus=settings.cpus or None,
                    entrypoint_num_gpus=settings.gpus or None,
                    entrypoint_resources=settings.resources or None,
                )
        except ClusterUnavailable:
            raise
        except RuntimeError as error:
            if TAKEN in str(error):
                return False
            raise ClusterUnavailable(_short(self.url, error)) from None
        return True

    def all(self) -> list[Seen]:
        """Return all submitted jobs, the newest first."""
        with self._answering():
            details = self._client.list_jobs()
        found = [_seen(one) for one in details if one.submission_id]
        return sorted(found, key=lambda job: -job.begun_s)

    def job(self, id: str) -> Seen:  # noqa: A002  Ray's word and ours
        """Return one job; raises NoSuchJob."""
        with self._answering(), self._named(id):
            return _seen(self._client.get_job_info(id))

    def logs(self, id: str) -> str:  # noqa: A002
        """Return what a job has written so far; raises NoSuchJob."""
        with self._answering(), self._named(id):
            return self._client.get_job_logs(id)

    def stop(self, id: str) -> bool:  # noqa: A002
        """Ask a job to stop, and return whether it was there to be asked; raises NoSuchJob."""
        with self._answering(), self._named(id):
            return self._client.stop_job(id)

    def follow(self, id: str) -> Iterator[str]:  # noqa: A002
        """Yield what a job writes, from its first line to its end, as it writes it; "" now and then when it writes nothing.

        A connection that breaks is made again, and nothing is told twice; raises ClusterUnavailable when the head does not
        answer for SILENT_S.
        """
        told, answered_s = 0, time.monotonic()
        while True:
            passed = 0
            try:
                for text in _tailed(self._client, id):
                    answered_s = time.monotonic()
                    new = text[max(0, told - passed) :]
                    passed += len(text)
                    told = max(told, passed)
                    yield new
                if self.job(id).ended:
                    return
            except (aiohttp.ClientError, RuntimeError, OSError) as error:
                if time.monotonic() - answered_s > SILENT_S:
                    raise ClusterUnavailable(_short(self.url, error)) from None
            time.sleep(AGAIN_EVERY_S)

    def lacking(self, needs: Mapping[str, float]) -> str:
        """Return what no node of the cluster has for a driver, or "" when one has all of it, in use or not."""
        if not needs:
            return ""
        with self._answering():
            answer = self._client._do_request("GET", "/api/v0/nodes?limit=10000")  # noqa: SLF001
        nodes = ((answer.json().get("data") or {}).get("result") or {}).get("result") or []
        have = [node["resources_total"] for node in nodes if node.get("state") == "ALIVE"]
        if not have or any(all(one.get(k, 0) >= v for k, v in needs.items()) for one in have):
            return ""
        most = {name: max(one.get(name, 0) for one in have) for name in needs}
        asked = ", ".join(f"{v:g} {k}" for k, v in needs.items())
        there = ", ".join(f"{v:g} {k}" for k, v in most.items())
        return f"no node has {asked} for the driver (the most on one node: {there})"

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            status = 401 if "required" in str(error) else 403
            raise ClusterUnavailable(head.refusal(self.url, status)) from None
        except (requests.RequestException, ConnectionError) as error:
            raise ClusterUnavailable(_short(self.url, error)) from None

    @contextlib.contextmanager
    def _named(self, id: str) -> Iterator[None]:  # noqa: A002
        try:
            yield
        except RuntimeError as error:
            if "404" in str(error):
                raise NoSuchJob(
                    f"{id}: no such job at {self.url}; next: kinoray list --address {self.url}"
                ) from None
            raise ClusterUnavailable(_short(self.url, error)) from None


def _tailed(client: JobSubmissionClient, id: str) -> Iterator[str]:  # noqa: A002
    """Yield what arrives, and "" every LOOK_EVERY_S in which nothing did and the head still answers.

    A log that stays open is left when its job had ended and nothing came for LOOK_EVERY_S after.
    """
    loop = asyncio.new_event_loop()
    lines = client.tail_job_logs(id)
    try:
        while True:
            arriving, over = asyncio.ensure_future(anext(lines), loop=loop), False
            while not loop.run_until_complete(asyncio.wait([arriving], timeout=LOOK_EVERY_S))[0]:
                if over:
                    return
                over = client.get_job_info(id).status.is_terminal()
                yield ""
            try:
                yield arriving.result()
            except StopAsyncIteration:
                return
    finally:
        _closed(loop, lines)


def _closed(loop: asyncio.AbstractEventLoop, lines: Any) -> None:
    with contextlib.suppress(Exception):
        waiting = asyncio.all_tasks(loop)
        for task in waiting:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*waiting, return_exceptions=True))
        loop.run_until_complete(lines.aclose())
        loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


@contextlib.contextmanager
def _without_overrides() -> Iterator[None]:
    """Hide the addresses in the environment: to Ray's client they count more than the one that it is given."""
    hidden = {name: os.environ.pop(name) for name in OVERRIDES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _seen(details: Any) -> Seen:
    lines = (details.message or "").strip().splitlines()
    return Seen(
        id=details.submission_id,
        state=str(details.status.value).lower(),
        exit=details.driver_exit_code,
        message=lines[0] if lines else "",
        begun_s=(details.start_time or 0) / 1000,
        ended_s=(details.end_time or 0) / 1000,
        metadata=dict(details.metadata or {}),
    )


def _short(url: str, error: Exception) -> str:
    """Return an error of Ray's client in one line: of a traceback from the head, what was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    why = lines[-1] if "Traceback" in str(error) else lines[0] if lines else type(error).__name__
    if isinstance(error, (requests.RequestException, OSError, aiohttp.ClientError)):
        why = type(error).__name__
    return f"{url} did not do what it was asked ({why[:200]}); next: check that the head runs, then the same command again"
