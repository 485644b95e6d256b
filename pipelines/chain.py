"""A chain of verbs whose dependencies are data: `@step` in a recipe means "the output of that step".

Each step claims its own folder under the chain's; a step whose recipe and inputs are unchanged is already finished and is
skipped by the verb itself, so that a chain that was killed anywhere simply runs again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Protocol

from cluster.session import Cluster
from pipelines import curate, evaluate, sample, train
from pipelines.context import Context, Recorder, recorded
from pipelines.identity import HOW_TO_RUN, plain
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
    tracking_uri: str = ""
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        """Refuse unknown and circular needs before anything starts."""
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
    results: dict[str, dict[str, Any]] = {}
    status = "done"
    tracked = {"name": config.name, "seed": config.seed}
    with recorded(context, claimed, verb="run", name=config.name, config=tracked) as recorder:
        inner = context.under(recorder.run.id)
        for number, step in enumerate(ordered(config.steps), start=1):
            recorder.stage(f"step {number} of {len(config.steps)}: {step.verb} ({step.name})")
            result = VERBS[step.verb].run(step.config, context=inner)
            results[step.name] = plain(result)
            status = result.status
            last = number == len(config.steps)
            if status == "done" and context.stop.requested and not last:
                status = "interrupted"
            if status != "done":
                break
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


def _identity(config: Config) -> dict[str, Any]:
    """Return what the steps make: a step that would be refused later must not run after one that already worked."""
    steps = {
        step.name: {k: v for k, v in plain(step.config).items() if k not in HOW_TO_RUN}
        for step in config.steps
    }
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
