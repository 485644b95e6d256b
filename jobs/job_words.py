"""A job in words and numbers for people and for --json: its state, its exit status, and the command that comes next."""

import time
from typing import TYPE_CHECKING, Any

from jobs import submit

if TYPE_CHECKING:
    from cluster.job_api import Seen

DONE, FAILED, INTERRUPTED = 0, 1, 130
# What a verb's own exit status says; every other is a driver that did not come to its end.
CODES = (0, 1, 2, 3, 130)


def code_of(job: "Seen") -> int:
    """Return the exit status that a job's end stands for."""
    if job.state == "succeeded":
        return DONE
    if job.state == "stopped":
        return INTERRUPTED
    return job.exit if job.exit in CODES and job.exit else FAILED


def facts(job: "Seen") -> dict[str, Any]:
    """Return what a listing, a table or a JSON line tells of a job."""
    ours = {key.removeprefix("kinoray."): value for key, value in job.metadata.items()}
    return {
        "job": job.id,
        "state": job.state,
        "exit": code_of(job) if job.ended else None,
        "verb": ours.get("verb", ""),
        "recipe": ours.get("recipe", ""),
        "digest": ours.get("digest", ""),
        "code": ours.get("code", ""),
        "folder": ours.get("folder", ""),
        "begun": clock(job.begun_s),
        "took": took(job),
        "why": ending(job) if job.ended and job.state != "succeeded" else "",
    }


def ending(job: "Seen") -> str:
    """Return in words how a job ended."""
    if job.state == "succeeded":
        return f"is done, {took(job)}"
    if job.state == "stopped":
        return "was stopped; what was finished is kept"
    if job.exit == 127:
        return "found no `python` on its node: Ray was started there outside of an environment with Kinoray's packages"
    words = {
        1: "failed; the reason is in its log",
        2: "was refused: wrong recipe or inputs, as its log says",
        3: "finished but is incomplete; the reasons are in its log and in the ledger",
        130: "was interrupted; what was finished is kept",
    }
    if job.exit in words:
        return words[job.exit]
    if job.exit is None:
        return f"failed without a word of its driver ({job.message[:200]})"
    return f"was killed (exit status {job.exit}): out of memory, or by hand"


def following(job: "Seen", url: str) -> str:
    """Return the command that comes next."""
    if not job.ended:
        return f"{logs_of(job.id, url)}, or {stop_of(job.id, url)}"
    if job.state == "succeeded":
        return f"kinoray list --address {url}"
    look = f"kinoray logs {job.id} --address {url}"
    fix = "the recipe corrected, then " if job.exit == 2 else ""
    return f"{look}; {fix}the same submit again is the next attempt, which continues"


def logs_of(name: str, url: str) -> str:
    """Return the command that reads along."""
    return f"kinoray logs {name} --follow --address {url}"


def stop_of(name: str, url: str) -> str:
    """Return the command that stops a job."""
    return f"kinoray stop {name} --address {url}"


def unplaced(lacking: str) -> str:
    """Return that a driver waits for what no node has, with the next step."""
    return (
        f"the job waits: {lacking}; next: cluster.job.cpus, .gpus or .resources that fit a node, or a node that has them "
        "(a cluster that scales may be starting one)"
    )


def needs(job: "Seen") -> dict[str, float]:
    """Return what a job asked for its driver, by Ray's names."""
    words = (word.partition("=") for word in job.metadata.get("kinoray.needs", "").split())
    return {name: float(amount) for name, _, amount in words}


def in_words(needs: dict[str, float]) -> str:
    """Return amounts by name as words."""
    return ", ".join(f"{amount:g} {name}" for name, amount in needs.items())


def clock(time_s: float) -> str:
    """Return UNIX seconds as local time, "" for 0."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_s)) if time_s else ""


def took(job: "Seen") -> str:
    """Return how long a job took, or has taken so far; its wait for a place included."""
    if not job.begun_s:
        return ""
    seconds = max(0.0, (job.ended_s or time.time()) - job.begun_s)
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def beginning(begun: submit.Begun, asked: submit.Order) -> str:
    """Return what became of a submission."""
    job = begun.job
    if begun.started and begun.attempt > 1:
        return (
            f"{job.id} submitted: attempt {begun.attempt}, which goes on where the one before ended"
        )
    if begun.started:
        return f"{job.id} submitted; it works in {asked.folder}"
    if job.ended:
        return f"{job.id} has succeeded already; --no-resume makes it anew"
    return f"{job.id} is {job.state} already; attached to it"
