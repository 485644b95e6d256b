"""What the job commands do at a cluster: submit a verb, look at jobs, read along, stop one."""

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import head
from jobs import config, job_words, render, submit

if TYPE_CHECKING:
    from cluster.job_api import Jobs, Seen

INTERRUPTED = 130
LOOK_EVERY_S = 2.0
STOP_EVERY_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Flags:
    """How to ask; see `kinoray submit --help`."""

    address: str
    follow: bool = False
    watch: bool = False
    dry_run: bool = False
    as_json: bool = False
    quiet: bool = False
    no_resume: bool = False


def hand_over(verb: str, recipe: Path, overrides: tuple[str, ...], flags: Flags) -> None:
    """Submit a verb, or find that it is at work or done; exits with the verb's status when it is followed."""
    config.read(recipe, overrides)
    if flags.dry_run:
        _plan(submit.order(verb, recipe, overrides, resume=not flags.no_resume), flags)
        return
    jobs = _connected(flags.address)
    asked = submit.order(verb, recipe, overrides, resume=not flags.no_resume)
    begun = submit.begin(jobs, asked)
    job, more = begun.job, {"attempt": begun.attempt, "started": begun.started}
    with _leaving(f"{job.id} goes on", jobs, job.id):
        _say(job_words.beginning(begun, asked), flags)
        if not job.ended and (told := jobs.lacking(asked.settings.needs)):
            render.say(f"kinoray: {job_words.unplaced(told)}")
        if flags.follow and not job.ended:
            _end(jobs, _followed(jobs, job.id, flags), flags, more)
        _tell(jobs, job, flags, more)


def status(name: str, flags: Flags) -> None:
    """Show a job, or with an empty name all; `flags.watch` shows it again until it has ended."""
    jobs = _connected(flags.address)
    if not name:
        _table(jobs, flags)
        return
    job, shown = jobs.job(name), ""
    with _leaving(f"{name} goes on", jobs, name):
        while flags.watch and not job.ended:
            shown = render.again(f"{job.id}: {job.state}, {job_words.took(job)}", shown)
            time.sleep(LOOK_EVERY_S)
            job = jobs.job(name)
    _tell(jobs, job, flags, {})


def listing(flags: Flags) -> None:
    """Show all jobs of a cluster, the newest first."""
    _table(_connected(flags.address), flags)


def logs(name: str, flags: Flags) -> None:
    """Show what a job has written; followed, it exits with the job's status."""
    jobs = _connected(flags.address)
    job = jobs.job(name)
    if flags.follow:
        _end(jobs, _followed(jobs, name, flags), flags, {})
    text = jobs.logs(name)
    if flags.as_json:
        render.result(
            {**job_words.facts(job), "logs": text, "next": job_words.following(job, jobs.url)},
            as_json=True,
        )
        return
    _write(text, sys.stdout.write)
    if not text:
        render.say(f"kinoray: {name} is {job.state} and has written nothing yet")
    render.say(f"next: {job_words.following(job, jobs.url)}")


def stop(name: str, flags: Flags) -> None:
    """Ask a job to stop, and wait until it has committed what was in flight."""
    jobs = _connected(flags.address)
    job = jobs.job(name)
    if not job.ended:
        jobs.stop(name)
        _say(f"{name} commits what is in flight", flags)
        with _leaving(f"{name} was asked to stop and does", jobs, name):
            job = _ended(jobs, name)
    _tell(jobs, job, flags, {})


def _connected(address: str) -> "Jobs":
    """Return the jobs of a cluster; one that does not answer is told before Ray, which takes seconds to load, is."""
    found = head.reach(address)
    from cluster.job_api import Jobs

    return Jobs(found)


def _ended(jobs: "Jobs", name: str) -> "Seen":
    while not (job := jobs.job(name)).ended:
        if job.state == "pending":
            render.say(
                f"kinoray: {name} has not begun: it stops as soon as its driver has a place, or when Ray gives up the "
                "waiting (15 minutes unless RAY_JOB_START_TIMEOUT_SECONDS says another)"
            )
            return job
        time.sleep(STOP_EVERY_S)
    return job


def _followed(jobs: "Jobs", name: str, flags: Flags) -> "Seen":
    """Write what a job writes until it ends; Ctrl-C ends the command, not the job."""
    write = sys.stderr.write if flags.as_json else sys.stdout.write
    waiting, told = True, ""
    with _leaving(f"{name} goes on", jobs, name):
        for text in jobs.follow(name):
            if text:
                waiting = False
                _write(text, write)
            elif waiting and (line := _waiting(jobs, name)) != told:
                told = line
                render.say(f"kinoray: {line}")
    return jobs.job(name)


@contextlib.contextmanager
def _leaving(what: str, jobs: "Jobs", name: str) -> Iterator[None]:
    """Turn Ctrl-C into the end of this command alone, and say what it leaves at work."""
    try:
        yield
    except KeyboardInterrupt:
        logs, stop = job_words.logs_of(name, jobs.url), job_words.stop_of(name, jobs.url)
        render.say(f"\nkinoray: {what}; next: {logs}, or {stop}")
        sys.exit(INTERRUPTED)


def _waiting(jobs: "Jobs", name: str) -> str:
    job = jobs.job(name)
    if job.state != "pending":
        return ""
    needs = job_words.needs(job)
    lacking = jobs.lacking(needs)
    if lacking:
        return job_words.unplaced(lacking)
    if needs:
        return f"{name} waits for {job_words.in_words(needs)}, which others have in use"
    return f"{name} waits for its driver to start (the first time a node unpacks the code)"


def _plan(asked: submit.Order, flags: Flags) -> None:
    with tempfile.TemporaryDirectory() as folder:
        size = submit.pack(Path(folder), asked.recipe)
    told = {
        "job": asked.name,
        "verb": asked.verb,
        "folder": str(asked.folder),
        "driver": job_words.in_words(asked.settings.needs) or "on the head node",
        "code": asked.metadata["kinoray.code"],
        "package_bytes": size,
        "entrypoint": asked.entrypoint,
    }
    render.result(told, as_json=flags.as_json)


def _tell(jobs: "Jobs", job: "Seen", flags: Flags, more: dict[str, Any]) -> None:
    following = job_words.following(job, jobs.url)
    facts = job_words.facts(job) | more
    lacking = "" if job.state != "pending" else jobs.lacking(job_words.needs(job))
    if lacking:
        facts["waits"] = lacking
    if flags.as_json:
        render.result({**facts, "next": following}, as_json=True)
        return
    render.result(facts, as_json=False)
    render.say(f"next: {following}")


def _end(jobs: "Jobs", job: "Seen", flags: Flags, more: dict[str, Any]) -> None:
    """Tell how a followed job ended and exit with its status."""
    code = job_words.code_of(job)
    if flags.as_json:
        render.result(
            {**job_words.facts(job), **more, "next": job_words.following(job, jobs.url)},
            as_json=True,
        )
    else:
        render.say(
            f"kinoray: {job.id} {job_words.ending(job)}; next: {job_words.following(job, jobs.url)}"
        )
    sys.exit(code)


def _table(jobs: "Jobs", flags: Flags) -> None:
    found = jobs.all()
    if flags.as_json:
        render.result({"jobs": [job_words.facts(job) for job in found]}, as_json=True)
        return
    if not found:
        render.say(f"no jobs at {jobs.url}; next: kinoray submit VERB RECIPE --address {jobs.url}")
        return
    render.table(
        [
            ("job", "state", "exit", "begun", "took", "recipe"),
            *(_row(job) for job in found),
        ]
    )
    render.say(f"next: kinoray status {found[0].id} --address {jobs.url}")


def _row(job: "Seen") -> tuple[str, ...]:
    facts = job_words.facts(job)
    return tuple(
        render.cell(facts[name]) for name in ("job", "state", "exit", "begun", "took", "recipe")
    )


def _write(text: str, write: Callable[[str], Any]) -> None:
    write(text)
    (sys.stdout if write == sys.stdout.write else sys.stderr).flush()


def _say(line: str, flags: Flags) -> None:
    if not flags.quiet:
        render.say(f"kinoray: {line}" if line else "")
