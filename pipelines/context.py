"""What every verb is handed: the cluster session, the tracker, the event log, the stop flag and where to resume.

Opened once by the outermost verb (a chain opens it for all its steps); the Ray session starts on first use, so that a run
with nothing left to do never starts one.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster import running
from cluster.eventlog import EventLog, read_events
from cluster.interrupt import Interrupt
from cluster.recording import Run, Status
from cluster.session import Cluster, session
from cluster.tracking import Tracker, embedded_uri
from ingest.files import atomic_write
from ingest.store import Dataset
from pipelines.identity import code_version, plain
from pipelines.output import Claim, finish, read_json

STATE = Path(".kinoray")
EXPERIMENT = "kinoray"
INPUT_TAG = "kinoray.input."
ENDINGS: dict[str, Status] = {"done": "FINISHED", "incomplete": "FAILED", "interrupted": "KILLED"}
Show = Callable[[Mapping[str, Any]], None]
Report = Callable[[Dataset, Path], bytes]


def silent(_event: Mapping[str, Any]) -> None:
    """Show nothing: the default for notebooks and other programs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """The surroundings of a run; `parent_id` is the tracker's run that this one belongs under.

    `report` makes a page of a curated dataset and the notes of the run; None for who wants none.
    """

    cluster: Cluster
    tracker: Tracker
    stop: Interrupt
    show: Show
    resume: bool
    verify: bool = False
    parent_id: str = ""
    report: Report | None = None
    _exits: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _started: list[bool] = field(default_factory=list)

    def start_cluster(self) -> None:
        """Connect to or start Ray, once."""
        if not self._started:
            self.show({"event": "stage", "text": f"starting Ray ({self.cluster.address})"})
            self._exits.enter_context(session(self.cluster))
            self._started.append(True)

    def under(self, parent_id: str) -> "Context":
        """Return the same surroundings with runs tracked under `parent_id`."""
        return replace(self, parent_id=parent_id)


@contextlib.contextmanager
def opened(
    *,
    cluster: Cluster,
    tracking_uri: str,
    show: Show = silent,
    resume: bool = True,
    verify: bool = False,
    on_stop: Callable[[], None] = lambda: None,
    report: Report | None = None,
) -> Iterator[Context]:
    """Open the surroundings of a run and take everything down at the end; `on_stop` answers the first Ctrl-C."""
    uri = tracking_uri or embedded_uri(STATE.resolve())
    with contextlib.ExitStack() as exits, Interrupt(on_stop) as stop:
        spool = STATE.resolve() / "tracking-spool"
        tracker = Tracker(
            uri, spool=spool, warn=lambda text: show({"event": "warning", "text": text})
        )
        yield Context(
            cluster=cluster,
            tracker=tracker,
            stop=stop,
            show=show,
            resume=resume,
            verify=verify,
            report=report,
            _exits=exits,
        )


class Recorder:
    """One run on record: its events in the run folder and on the terminal, its numbers in the tracker."""

    def __init__(
        self, context: Context, claimed: Claim, *, verb: str, name: str, config: object
    ) -> None:
        self._context = context
        self._verb = verb
        self._folder = claimed.folder
        self._log = EventLog(claimed.folder / "events.jsonl")
        self._started_s = time.monotonic()
        self.status = "done"
        self._paces: dict[str, tuple[float, int]] = {}
        self.run: Run = _tracked(context, claimed, name=name, config=config, verb=verb)

    def stage(self, text: str) -> None:
        """Say that a stage begins."""
        self._emit({"event": "stage", "text": f"{self._verb}: {text}"})

    def warn(self, text: str) -> None:
        """Say something that the user should look at."""
        self._emit({"event": "warning", "text": self.worded(text)})

    def worded(self, text: str) -> str:
        """Return a warning as the log has it."""
        return f"{self._verb}: {text}"

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield what the run folder's log has, of earlier attempts too."""
        return read_events(self._folder / "events.jsonl")

    def progress(self, done: int, total: int, *, stage: str = "", text: str = "") -> None:
        """Count: `done` of `total` units of `stage`."""
        name = stage or self._verb
        event = {"event": "progress", "stage": name, "done": done, "total": total, "text": text}
        self._emit({**event, "left_s": self._left_s(name, done, total)})

    def _left_s(self, stage: str, done: int, total: int) -> float:
        """Estimate the seconds left from the pace since the stage's first event; 0 while unknown."""
        now_s = time.monotonic()
        first_s, first = self._paces.setdefault(stage, (now_s, done))
        if done <= first or done >= total:
            return 0.0
        return round((now_s - first_s) / (done - first) * (total - done), 1)

    def step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Record the numbers of one training step in the run folder and the tracker."""
        # the tracker first: what the log has is not told again after a kill, and the tracker drops what it has
        self.run.log_metrics(dict(numbers), step)
        self._log.emit(verb=self._verb, event="step", step=step, **numbers)

    def cost(self, unit: str, stats: Mapping[str, float]) -> None:
        """Record in the run folder what one unit of work took."""
        self._log.emit(verb=self._verb, event="cost", unit=unit, **stats)

    def report(self, dataset: Dataset) -> None:
        """Write the page of a curate run beside its notes and into the tracker.

        A page that cannot be made is a warning: the run itself is done, and its page can be made later.
        """
        if self._context.report is None:
            return
        path = self._folder / "report.html"
        try:
            atomic_write(path, self._context.report(dataset, self._folder))
        except (OSError, ValueError) as error:
            self.warn(f"no report page: {error}")
            return
        self.run.log_artifact(path, "")
        self.stage(f"report page {path}")

    def finish(self, claimed: Claim, result: dict[str, Any]) -> None:
        """Write the result of the run; its status is how the tracker will see it end."""
        finish(claimed, result)
        self.status = result["status"]

    @property
    def wall_s(self) -> float:
        """Seconds since the run was begun here."""
        return round(time.monotonic() - self._started_s, 3)

    def _emit(self, event: dict[str, Any]) -> None:
        self._log.emit(verb=self._verb, **event)
        self._context.show({"verb": self._verb, **event})


@contextlib.contextmanager
def recorded(
    context: Context, claimed: Claim, *, verb: str, name: str, config: object
) -> Iterator[Recorder]:
    """Record a run from its first event to its end, also when it fails."""
    recorder = Recorder(context, claimed, verb=verb, name=name, config=config)
    try:
        with running.held(claimed.folder):
            yield recorder
    except KeyboardInterrupt:
        recorder.run.end("KILLED")
        raise
    except BaseException:
        recorder.run.end("FAILED")
        raise
    recorder.run.end(ENDINGS[recorder.status])


def _tracked(context: Context, claimed: Claim, *, name: str, config: object, verb: str) -> Run:
    written = read_json(claimed.folder / "tracking.json") or {}
    version = code_version()
    tags = {"kinoray.verb": verb, "kinoray.recipe": claimed.digest, "kinoray.code": version["code"]}
    # What went in, by digest: from these, and the digests of what came out, descent can be followed.
    tags |= {f"{INPUT_TAG}{name.replace(' ', '_')}": text for name, text in claimed.inputs.items()}
    run = context.tracker.start(
        name,
        experiment=EXPERIMENT,
        parent_id=context.parent_id,
        run_id=written.get("run_id", ""),
        tags=tags,
        params=plain(config),
    )
    if run.id != written.get("run_id"):
        atomic_write(claimed.folder / "tracking.json", json.dumps({"run_id": run.id}).encode())
    return run
