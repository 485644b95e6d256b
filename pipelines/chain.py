"""A chain of verbs whose dependencies are data: `@step` in a recipe means "the output of that step".

Each step claims its own folder under the chain's; a step whose recipe and inputs are unchanged is already finished and is
skipped by the verb itself, so that a chain that was killed anywhere simply runs again. With `parallel` above 1 steps that do
not need each other run side by side, in threads: the cluster decides who gets its machines.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Protocol

from cluster.session import Cluster
from pipelines import curate, evaluate, sample, train
from pipelines.context import Context, Recorder, recorded
from pipelines.identity import plain, what_is_made
from pipelines.output import Claim, claim
from pipelines.plan import Plan

VERBS = {"curate": curate, "train": train, "sample": sample, "evaluate": evaluate}
StepConfig = curate.Config | train.Config | sample.Config | evaluate.Config


class Result(Protocol):
    """What every verb returns: how it ended, and everything else as JSON-ready fields."""

    @property
    def status(self) -> str:
        """Return "done", "incomplete" or "interrupted"."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One verb of a chain and the names of the steps whose outputs it reads."""

    name: str
    verb: str
    config: StepConfig
    needs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A chain: its folder, its steps, and what they share."""

    out: Path
    steps: tuple[Step, ...]
    name: str = "chain"
    seed: int = 0
    parallel: int = 1
    tracking_uri: str = ""
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        """Refuse unknown and circular needs before anything starts."""
        if self.parallel < 1:
            raise ValueError("parallel: at least 1 step at a time")
        list(ordered(self.steps))


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainResult:
    """The results of all steps, in the order they ran; `report` is the page that shows them."""

    verb: str
    name: str
    out: str
    status: str
    steps: dict[str, dict[str, Any]]
    run_id: str
    report: str
    wall_s: float


def ordered(steps: tuple[Step, ...]) -> Iterator[Step]:
    """Yield the steps so that each comes after what it needs; raises ValueError naming the step."""
    named = {step.name: step for step in steps}
    for step in steps:
        for need in step.needs:
            if need not in named:
                raise ValueError(
                    f"steps.{step.name}: @{need} is not a step (known: {', '.join(named)})"
                )
    try:
        names = list(TopologicalSorter({s.name: s.needs for s in steps}).static_order())
    except CycleError as error:
        raise ValueError(
            f"steps need each other in a circle: {' -> '.join(error.args[1])}"
        ) from None
    # static_order is free among equals; the order of the recipe decides there.
    rank = {name: (_depth(named[name], named), i) for i, name in enumerate(named)}
    yield from (named[name] for name in sorted(names, key=rank.__getitem__))


def plan(config: Config) -> tuple[Plan, ...]:
    """Return the plan of each step, in order."""
    return tuple(VERBS[step.verb].plan(step.config) for step in ordered(config.steps))


def run(
    config: Config, *, context: Context, report: Callable[[ChainResult], Path] | None = None
) -> ChainResult:
    """Run the steps in order and stop at the first that is interrupted or incomplete."""
    claimed = claim(config.out, "run", _identity(config), inputs={}, resume=context.resume)
    tracked = {"name": config.name, "seed": config.seed}
    with recorded(context, claimed, verb="run", name=config.name, config=tracked) as recorder:
        inner = context.under(recorder.run.id)
        results = _Running(config, inner, recorder).results()
        status = next((r["status"] for r in results.values() if r["status"] != "done"), "done")
        if status == "done" and len(results) < len(config.steps):
            status = "interrupted"
        made = ChainResult(
            verb="run",
            name=config.name,
            out=str(config.out),
            status=status,
            steps=results,
            run_id=recorder.run.id,
            report="",
            wall_s=recorder.wall_s,
        )
        return _finished(made, claimed, recorder, report)


class _Running:
    """The steps of a chain on their way."""

    def __init__(self, config: Config, context: Context, recorder: Recorder) -> None:
        self._context, self._recorder, self._parallel = context, recorder, config.parallel
        self._waiting = list(ordered(config.steps))
        self._total, self._begun = len(self._waiting), 0
        self._ended: queue.Queue[tuple[Step, Result | BaseException]] = queue.Queue()

    def results(self) -> dict[str, dict[str, Any]]:
        """Run all, but start none after one that did not end well or after a stop; return them in the chain's order.

        A step's error is raised when those beside it have ended.
        """
        order = [step.name for step in self._waiting]
        found: dict[str, Result] = {}
        failed: list[BaseException] = []
        flying = 0
        while True:
            while flying < self._parallel and (step := self._next(found, failed)):
                self._start(step)
                flying += 1
            if not flying:
                break
            step, ended = self._ended.get()
            flying -= 1
            if isinstance(ended, BaseException):
                failed.append(ended)
            else:
                found[step.name] = ended
        if failed:
            raise failed[0]
        return {name: plain(found[name]) for name in order if name in found}

    def _next(self, found: dict[str, Result], failed: list[BaseException]) -> Step | None:
        bad = failed or any(result.status != "done" for result in found.values())
        if bad or (self._begun and self._context.stop.requested):
            return None
        ready = (step for step in self._waiting if all(need in found for need in step.needs))
        return next(ready, None)

    def _start(self, step: Step) -> None:
        self._waiting.remove(step)
        self._begun += 1
        self._recorder.stage(f"step {self._begun} of {self._total}: {step.verb} ({step.name})")
        if self._parallel == 1:
            self._run(step)  # here, where a second Ctrl-C reaches it
            return
        self._context.start_cluster()  # in the main thread, once
        threading.Thread(target=self._run, args=(step,), name=step.name, daemon=True).start()

    def _run(self, step: Step) -> None:
        try:
            self._ended.put((step, VERBS[step.verb].run(step.config, context=self._context)))
        except BaseException as error:  # noqa: BLE001  raised where steps are waited for, which must not wait forever
            self._ended.put((step, error))


def _identity(config: Config) -> dict[str, Any]:
    """Return what the steps make: a step that would be refused later must not run after one that already worked."""
    steps = {step.name: what_is_made(step.config) for step in config.steps}
    return {"name": config.name, "steps": steps}


def _finished(
    made: ChainResult,
    claimed: Claim,
    recorder: Recorder,
    report: Callable[[ChainResult], Path] | None,
) -> ChainResult:
    if report is not None and made.steps:
        page = report(made)
        recorder.run.log_artifact(page, "")
        made = replace(made, report=str(page))
    recorder.finish(claimed, plain(made))
    return made


def _depth(step: Step, named: dict[str, Step]) -> int:
    return 1 + max((_depth(named[need], named) for need in step.needs), default=0)
