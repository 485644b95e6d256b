"""Sample: prompts x seeds x checkpoints -> videos with a manifest.

A sample is named by what decides its pixels (pipelines/order.py): the same name is the same video on any number of actors and
after any kill. A set holds samples by their names; what is asked of it may grow, and only what is new is made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ingest.objects import Root
from ingest.tables import Table
from pipelines import sampling
from pipelines.alone import alone, refuse_running
from pipelines.checking import damaged
from pipelines.context import Context, Recorder, recorded
from pipelines.identity import plain
from pipelines.makes import Makes, makes
from pipelines.manifest import FOLDER, KEY, SCHEMA, Asked, Writer, read_set, set_digest
from pipelines.order import Order, orders_of, settings_of
from pipelines.output import Claim, claim
from pipelines.plan import Plan
from pipelines.prompts import Suite, is_there, read_suite
from pipelines.sample_config import Config as Config  # noqa: PLC0414  what a recipe says
from pipelines.sample_config import Public as Public  # noqa: PLC0414
from pipelines.sample_config import Solver as Solver  # noqa: PLC0414
from pipelines.sample_config import Windows as Windows  # noqa: PLC0414

VERB = "sample"


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What was asked of the set and what is there; `digest` is over the names of these samples and their frames' hashes."""

    verb: str
    status: str
    set: str
    digest: str
    asked: int
    asked_digest: str
    samples: int
    made: int
    failed: int
    windows_per_sample: int
    frames: int
    seconds_per_sample: float
    wall_s: float
    run_id: str


def plan(config: Config) -> Plan:
    """Count samples and windows as far as the inputs exist already."""
    counts: dict[str, int | float | str] = {"seeds_per_prompt": config.num_seeds}
    notes: list[str] = []
    if is_there(config.prompts):
        suite = _suite(config)
        prompts = suite.prompts[: config.max_prompts]
        samples = sum(prompt.num_seeds or config.num_seeds for prompt in prompts)
        counts |= {"prompts": len(prompts), "samples": samples}
        if suite.duplicates:
            notes.append(f"{suite.duplicates} prompts are there twice and count once")
        if there := len(_present(config.out)):
            notes.append(f"the set holds {there} samples already")
    else:
        notes.append(f"the prompts come from {config.prompts}, which an earlier step makes")
    counts["actors"] = config.num_actors + config.ssr_actors
    stages = ("load", "base") if config.ssr is None else ("load", "base", "ssr")
    return Plan(verb=VERB, out=str(config.out), counts=counts, stages=stages, notes=tuple(notes))


def run(config: Config, *, context: Context) -> Result:
    """Generate what the set lacks; a set is complete when each sample that is asked for has its file."""
    suite = _suite(config)
    found = makes(config)
    inputs = dict(found.digests)
    if not context.resume:
        refuse_running(config.out)
    claimed = claim(config.out, VERB, config, inputs=inputs, resume=context.resume)
    with alone(config.out, temporary=("", "videos/*")):
        micro_batch = sampling.known_micro_batch(config)
        if micro_batch and (told := _nothing_to_do(config, suite, found, claimed, context)):
            return told
        with recorded(context, claimed, verb=VERB, name=VERB, config=config) as recorder:
            if not micro_batch:
                sampling.measured_micro_batch(config, found.frames, context, recorder)
            orders = _orders(config, suite, found)
            line = sampling.Line(
                config, context, recorder, frames=found.frames, recipe=claimed.digest
            )
            made = _made(config, orders, line, context, recorder)
            result = _result(config, orders, made, context, recorder)
            recorder.run.log_metrics(_numbers(result), 0)
            recorder.run.set_tags({"kinoray.set": result.digest})
            recorder.finish(claimed, plain(result))
        return result


def _suite(config: Config) -> Suite:
    return read_suite(config.prompts, captions=config.captions, split=config.split)


def _orders(config: Config, suite: Suite, found: Makes) -> list[Order]:
    settings = settings_of(config, micro_batch=sampling.known_micro_batch(config))
    return orders_of(config, suite.prompts[: config.max_prompts], found, settings)


def _nothing_to_do(
    config: Config,
    suite: Suite,
    found: Makes,
    claimed: Claim,
    context: Context,
) -> Result | None:
    """Return the result of an earlier run that was asked for the same and whose files are all there."""
    told = claimed.finished
    if told is None or context.verify:
        return None
    orders = _orders(config, suite, found)
    same = told.get("asked_digest") == Asked.of(orders).digest
    if same and {order.identity for order in orders} <= _present(config.out):
        return Result(**told)
    return None


def _made(
    config: Config,
    orders: list[Order],
    line: sampling.Line,
    context: Context,
    recorder: Recorder,
) -> int:
    """Make what is not there and return how many samples that were."""
    table = Table.create(Root.of(config.out), FOLDER, SCHEMA, key=KEY)
    Asked.of(orders).write(config.out)
    known = _present(config.out)
    known -= damaged(config.out, known, everything=context.verify, context=context, say=recorder)
    todo = [order for order in orders if order.identity not in known]
    if len(todo) < len(orders):
        there = len(orders) - len(todo)
        recorder.stage(f"{there} of {len(orders)} samples are there, continuing")
    if todo:
        line.make(todo, total=len(orders), writer=Writer(table, app_id=f"{VERB}/{line.recipe}"))
    return len(todo)


def _present(folder: Path) -> set[str]:
    """Return the samples that are done and whose files are there; what somebody removed is made again."""
    if not (folder / FOLDER).exists():
        return set()
    paths = ("base_path", "lossless_path", "view_path")
    return {
        row["identity"]
        for row in read_set(folder)
        if row["status"] == "done" and all((folder / row[path]).exists() for path in paths)
    }


def _result(
    config: Config, orders: Sequence[Order], todo: int, context: Context, recorder: Recorder
) -> Result:
    wanted = {order.identity for order in orders}
    rows = [row for row in read_set(config.out) if row["identity"] in wanted]
    done = [row for row in rows if row["status"] == "done"]
    complete = len(done) == len(orders)
    status = "interrupted" if context.stop.requested and not complete else "done"
    seconds = [row["wall_s"] for row in done]
    return Result(
        verb=VERB,
        status=status if complete or status == "interrupted" else "incomplete",
        set=str(config.out),
        digest=set_digest(done),
        asked=len(orders),
        asked_digest=Asked.of(orders).digest,
        samples=len(done),
        made=len(done) - (len(orders) - todo),
        failed=len(rows) - len(done),
        windows_per_sample=done[0]["windows"] if done else 0,
        frames=done[0]["frames"] if done else 0,
        seconds_per_sample=round(sum(seconds) / len(seconds), 3) if seconds else 0.0,
        wall_s=recorder.wall_s,
        run_id=recorder.run.id,
    )


def _numbers(result: Result) -> dict[str, float]:
    return {k: float(v) for k, v in plain(result).items() if isinstance(v, (int, float))}
