"""Sample: prompts x seeds x checkpoints -> videos with a manifest, one video at a time on each actor.

A sample is named by what decides its pixels (prompt, index, seed, weights, solver, window plan) and by nothing else: the same
name is the same video on any number of actors and after any kill. Windows are predicted and reduced inside the actor.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster import pool
from cluster.session import Cluster
from ingest.objects import Root
from ingest.tables import Table
from models import noise, samplers, windows
from models.diffusion import Schedule
from pipelines import weights
from pipelines.context import Context, Recorder, recorded
from pipelines.generator import Generator, Weights
from pipelines.identity import code_version, digest, plain
from pipelines.manifest import FOLDER, KEY, SCHEMA, Writer, failed_row, read_set, set_digest
from pipelines.order import Order
from pipelines.output import claim
from pipelines.plan import Plan
from pipelines.prompts import Prompt, is_there, read_prompts

VERB = "sample"
IDENTITY_SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Solver:
    """How a reverse process is solved; guidance_scale 1 is off."""

    sampler: Literal["ddim", "dpm++", "ddpm"] = "ddim"
    steps: int = 10
    guidance_scale: float = 1.0
    threshold: Literal["none", "static", "dynamic"] = "static"

    def __post_init__(self) -> None:
        """Refuse what no schedule of ours can be solved with."""
        samplers.Sampling(schedule=Schedule(), **plain(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """Overlapping temporal windows of the SSR and how much each counts where they overlap."""

    window: int = 28
    overlap: int = 2
    spread: Literal["even", "clamped", "exact"] = "even"
    weights: Literal["linear", "uniform", "hann"] = "linear"

    def plan(self, frames: int) -> windows.Plan:
        """Return the windows over `frames` frames; ValueError when they cannot cover them."""
        return getattr(windows, self.spread)(frames, self.window, self.overlap)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """An evaluation set: `prompts` is a .txt or .jsonl file, or a dataset whose captions are the prompts."""

    prompts: str
    base: Path
    motion: Path
    out: Path
    ssr: Path | None = None
    max_prompts: int | None = None
    num_seeds: int = 1
    base_solver: Solver = field(default_factory=Solver)
    ssr_solver: Solver = field(default_factory=Solver)
    windows: Windows = field(default_factory=Windows)
    augment_level: float = 0.1
    micro_batch: int = 1
    num_actors: int = 2
    threads_per_actor: int = 1
    max_attempts: int = 3
    seed: int = 0
    tracking_uri: str = ""
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        """Check counts and shares."""
        counts = (self.num_seeds, self.num_actors, self.micro_batch, self.threads_per_actor)
        if min(counts) < 1:
            raise ValueError("num_seeds, num_actors, micro_batch, threads_per_actor: at least 1")
        if self.max_prompts is not None and self.max_prompts < 1:
            raise ValueError("max_prompts: at least 1")
        if not 0.0 <= self.augment_level < 1.0:
            raise ValueError("augment_level: at least 0 and below 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The set as it now is; `digest` is over the names of its samples and the hashes of their frames."""

    verb: str
    status: str
    set: str
    digest: str
    asked: int
    samples: int
    failed: int
    windows_per_sample: int
    frames: int
    seconds_per_sample: float
    wall_s: float
    run_id: str


def plan(config: Config) -> Plan:
    """Count samples and windows as far as the inputs exist already."""
    counts: dict[str, int | float | str] = {"seeds_per_prompt": config.num_seeds}
    notes: tuple[str, ...] = ()
    if is_there(config.prompts):
        prompts = read_prompts(config.prompts, config.max_prompts)
        counts |= {"prompts": len(prompts), "samples": len(prompts) * config.num_seeds}
    else:
        notes = (f"the prompts come from {config.prompts}, which an earlier step makes",)
    counts["actors"] = config.num_actors
    return Plan(
        verb=VERB, out=str(config.out), counts=counts, stages=("load", "base", "ssr"), notes=notes
    )


def run(config: Config, *, context: Context) -> Result:
    """Generate what the set lacks; a set is complete when each of its samples has its file."""
    prompts = read_prompts(config.prompts, config.max_prompts)
    roles = _roles(config)
    orders = _orders(config, prompts, roles)
    asked = {"prompts": digest([p.text for p in prompts])}
    inputs = asked | {name: loaded.digest for name, loaded in roles.items()}
    claimed = claim(config.out, VERB, config, inputs=inputs, resume=context.resume)
    if claimed.finished and len(_present(config.out)) >= claimed.finished["asked"]:
        return Result(**claimed.finished)
    with recorded(context, claimed, verb=VERB, name=VERB, config=config) as recorder:
        table = Table.create(Root.of(config.out), FOLDER, SCHEMA, key=KEY)
        known = _present(config.out)
        todo = [order for order in orders if order.identity not in known]
        if len(todo) < len(orders):
            recorder.stage(
                f"{len(orders) - len(todo)} of {len(orders)} samples are there, continuing"
            )
        if todo:
            context.start_cluster()
            _generate(
                config,
                todo,
                context,
                recorder,
                total=len(orders),
                writer=Writer(table, app_id=f"{VERB}/{claimed.digest}"),
            )
        result = _result(config, orders, context, recorder)
        recorder.run.log_metrics(_numbers(result), 0)
        recorder.run.set_tags({"kinoray.set": result.digest})
        recorder.finish(claimed, plain(result))
    return result


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


def _roles(config: Config) -> dict[str, weights.Loaded]:
    loaded = {
        "base": weights.load(config.base, "base"),
        "motion": weights.load(config.motion, "motion"),
    }
    if config.ssr is not None:
        loaded["ssr"] = weights.load(config.ssr, "ssr")
    weights.check_together(loaded)
    return loaded


def _orders(
    config: Config, prompts: Sequence[Prompt], roles: dict[str, weights.Loaded]
) -> list[Order]:
    spec = roles["motion"].spec
    plan_ = config.windows.plan(spec.frames)
    shared = {
        "schema": IDENTITY_SCHEMA,
        "weights": {name: loaded.digest for name, loaded in roles.items()},
        "base_solver": plain(config.base_solver),
        "ssr_solver": plain(config.ssr_solver) if config.ssr else None,
        "starts": list(plan_.starts) if config.ssr else None,
        "window": plan_.window if config.ssr else None,
        "window_weights": config.windows.weights if config.ssr else None,
        "augment_level": config.augment_level if config.ssr else None,
        "frames": spec.frames,
        "fps": spec.fps,
        "noise": noise.NOISE_ID,
        # Kernels differ by batch and thread count, so these decide bits as well.
        "micro_batch": config.micro_batch,
        "threads": config.threads_per_actor,
    }
    orders = []
    for prompt in prompts:
        for index in range(config.num_seeds):
            seed = noise.seed_for("sample", config.seed, prompt.id, index)
            named = {**shared, "prompt": prompt.text, "index": index, "seed": f"{seed:016x}"}
            orders.append(
                Order(
                    identity=digest(named),
                    prompt_id=prompt.id,
                    prompt=prompt.text,
                    index=index,
                    seed=seed,
                )
            )
    return orders


def _generate(
    config: Config,
    todo: Sequence[Order],
    context: Context,
    recorder: Recorder,
    *,
    total: int,
    writer: Writer,
) -> None:
    told = Weights(
        base=str(config.base.resolve()),
        motion=str(config.motion.resolve()),
        ssr=str(config.ssr.resolve()) if config.ssr else "",
        out=str(config.out.resolve()),
        settings=_settings(config),
        threads=config.threads_per_actor,
        code=code_version()["code"],
    )
    units = (pool.Unit(key=order.identity, payload=order) for order in todo)
    named = {order.identity: order for order in todo}
    done = total - len(todo)
    outcomes = pool.run_actors(
        Generator,
        (told,),
        units,
        num_actors=min(config.num_actors, len(todo)),
        config=pool.Pool(max_attempts=config.max_attempts),
        stop=context.stop,
    )
    for outcome in outcomes:
        if outcome.failure is None:
            writer.add({**outcome.value, "attempts": outcome.attempts})
        else:
            recorder.warn(f"sample {outcome.key[:12]}: {outcome.failure.message}")
            writer.add(failed_row(named[outcome.key], outcome))
        done += 1
        recorder.progress(done, total, text=f"{outcome.wall_s:.1f} s for the last one")


def _settings(config: Config) -> dict[str, Any]:
    return {
        "base_solver": plain(config.base_solver),
        "ssr_solver": plain(config.ssr_solver),
        "windows": plain(config.windows),
        "augment_level": config.augment_level,
        "micro_batch": config.micro_batch,
    }


def _result(
    config: Config, orders: Sequence[Order], context: Context, recorder: Recorder
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
        samples=len(done),
        failed=len(rows) - len(done),
        windows_per_sample=done[0]["windows"] if done else 0,
        frames=done[0]["frames"] if done else 0,
        seconds_per_sample=round(sum(seconds) / len(seconds), 3) if seconds else 0.0,
        wall_s=recorder.wall_s,
        run_id=recorder.run.id,
    )


def _numbers(result: Result) -> dict[str, float]:
    return {k: float(v) for k, v in plain(result).items() if isinstance(v, (int, float))}
