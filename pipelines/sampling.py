"""The driver of a set in the making: which actors there are, what each is given, and what is committed.

No video passes here: actors write files and say what they wrote.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster import pool
from pipelines import batching, gang, together
from pipelines.context import Context, Recorder
from pipelines.generator import Generator, Told
from pipelines.identity import code_version
from pipelines.maker import Roles
from pipelines.manifest import Writer, failed_row
from pipelines.order import Order, settings_of
from pipelines.sample_config import Config

# One video is generated on an actor while the one before is encoded.
PER_ACTOR = 2


def known_micro_batch(config: Config) -> int:
    """Return how many windows share a pass, 0 while nobody has measured it."""
    return batching.known(config.out, config.micro_batch if config.ssr else 1)


def measured_micro_batch(config: Config, frames: int, context: Context, recorder: Recorder) -> int:
    """Measure it for videos of `frames` frames."""
    roles = roles_of(config, settings_of(config, micro_batch=1))
    most = len(config.windows.plan(frames).starts)
    needs = _needs(config, per_actor=1)
    return batching.measured(
        config.out, roles, most, needs=needs, context=context, recorder=recorder
    )


class Line:
    """The actors of a set, or two kinds of them, where the first feed the second."""

    def __init__(
        self, config: Config, context: Context, recorder: Recorder, *, frames: int, recipe: str
    ) -> None:
        self._config, self._context, self._recorder = config, context, recorder
        self._settings = settings_of(config, micro_batch=known_micro_batch(config))
        self.recipe = recipe
        plan = config.windows.plan(frames) if config.ssr else None
        shares = plan is not None and config.ssr_solver.threshold != "dynamic"
        self._windows = len(plan.starts) if plan and shares else 1
        self._box: Any = None
        self._base_s = self._whole_s = 0.0

    def make(self, todo: Sequence[Order], *, total: int, writer: Writer) -> None:
        """Make these samples of a set of `total`, and commit each when its files are there."""
        self._context.start_cluster()
        self._box = gang.open_letterbox()
        named = {order.identity: order for order in todo}
        units = _Units(todo, self._widths(len(todo)))
        done = total - len(todo)
        stations = self._stations(len(todo), writer.tick)
        try:
            for outcome in pool.run_line(stations, units, stop=self._context.stop):
                if outcome.failure is None:
                    self._base_s += outcome.value["base_s"]
                    self._whole_s += outcome.value["base_s"] + outcome.value["ssr_s"]
                    writer.add({**outcome.value, "attempts": outcome.attempts})
                else:
                    self._recorder.warn(f"sample {outcome.key[:12]}: {outcome.failure.message}")
                    writer.add(failed_row(named[outcome.key], outcome))
                done += 1
                self._recorder.progress(
                    done, total, text=f"{outcome.wall_s:.1f} s for the last one"
                )
        finally:
            writer.flush()

    def _widths(self, count: int) -> Iterable[int]:
        config = self._config
        return together.widths(
            count,
            actors=config.ssr_actors or config.num_actors,
            windows=self._windows,
            latency=config.mode == "latency",
            alone=self._alone,
        )

    def _alone(self) -> float | None:
        """Return which share of a video's time its actors cannot share; None while none is made."""
        if self._config.ssr_actors:
            return 0.0
        return self._base_s / self._whole_s if self._whole_s else None

    def _stations(self, count: int, meanwhile: Callable[[], object]) -> list[pool.Station]:
        config = self._config
        numbers = {"all": config.num_actors}
        if config.ssr_actors:
            numbers = {"base": config.num_actors, "ssr": config.ssr_actors}
        return [
            pool.Station(
                actor=Generator,
                arguments=(self._told(stage),),
                num_actors=min(number, count if stage == "base" else count * self._windows),
                wide=stage != "base",
                config=replace(_needs(config, per_actor=PER_ACTOR), meanwhile=meanwhile),
            )
            for stage, number in numbers.items()
        ]

    def _told(self, stage: Any) -> Told:
        return Told(
            roles=roles_of(self._config, self._settings),
            out=str(self._config.out.resolve()),
            stage=stage,
            threads=self._config.threads_per_actor,
            box=self._box,
            code=code_version()["code"],
            recipe=self.recipe,
        )


class _Units:
    """The units of orders, each with its width, which is asked when it is its turn; says how many are left."""

    def __init__(self, orders: Sequence[Order], widths: Iterable[int]) -> None:
        self._orders, self._widths, self._next = orders, iter(widths), 0

    def __iter__(self) -> "_Units":
        return self

    def __next__(self) -> pool.Unit:
        if self._next == len(self._orders):
            raise StopIteration
        order = self._orders[self._next]
        self._next += 1
        return pool.Unit(key=order.identity, payload=order, width=next(self._widths))

    def __length_hint__(self) -> int:
        return len(self._orders) - self._next


def roles_of(config: Config, settings: dict[str, Any]) -> Roles:
    """Return what a recipe says of its networks, for an actor."""
    return Roles(
        base=config.base if config.public_folder else str(Path(config.base).resolve()),
        motion=str(config.motion.resolve()) if config.motion else "",
        ssr=str(config.ssr.resolve()) if config.ssr else "",
        settings=settings,
        device="cuda" if config.gpus_per_actor else "cpu",
    )


def _needs(config: Config, *, per_actor: int) -> pool.Pool:
    return pool.Pool(
        max_attempts=config.max_attempts,
        per_actor=per_actor,
        num_cpus=float(config.threads_per_actor),
        num_gpus=config.gpus_per_actor,
    )
