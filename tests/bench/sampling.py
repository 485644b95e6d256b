"""What an evaluation set costs beside its networks: `python -m tests.bench.sampling` writes tests/bench/sampling.md.

With names of sections (`... makespan latency`) it measures these and writes nothing.

Networks sleep (tests.bench.sampling_actors), so that many logical actors fit on few cores; all else is the product's. Times are
from the first sample's beginning, when all actors are there, to the last one's files.
"""

import dataclasses
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import ray
import torch

from cluster import pool
from cluster.interrupt import Interrupt
from cluster.session import Cluster, session
from ingest.files import atomic_write
from ingest.objects import Root
from ingest.tables import Table
from models import multidiffusion, samplers, ssr, windows
from models.diffusion import Schedule
from pipelines import sampling
from pipelines.makes import makes
from pipelines.manifest import FOLDER, KEY, SCHEMA, Writer, read_set
from pipelines.order import orders_of, settings_of
from pipelines.prompts import Prompt
from pipelines.sample_config import Config, Solver, Windows
from tests.bench.machine import cores, cpu_name
from tests.bench.sampling_actors import Centre, Sleep, Sleeping, Timed, Window
from tests.pipelines.made_roles import made_roles

TABLE = Path(__file__).with_name("sampling.md")
FRAMES, WINDOWS = 80, Windows(window=16, overlap=4)
LOGICAL_CPUS = 17  # sixteen actors and a letterbox
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row of the table."""

    what: str
    found: str
    goal: str
    met: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a set of samples cost."""

    rows: list[dict[str, Any]]
    loopback_bytes: int
    told_bytes: int

    @property
    def makespan_s(self) -> float:
        """From the first one's beginning to the last one's end."""
        return max(r["over"] for r in self.rows) - min(r["began"] for r in self.rows)

    @property
    def pace_s(self) -> float:
        """The time between the ends of two samples of one actor that is never idle."""
        ends = sorted(r["over"] for r in self.rows)
        return (ends[-1] - ends[0]) / (len(ends) - 1)


def main() -> None:
    """Measure all and write the table, or show some sections."""
    here = {"reducer": reducer, "overhead": overhead, "batches": batches}
    with_ray = {"throughput": throughput, "makespan": makespan, "latency": latency, "real": real}
    chosen = sys.argv[1:] or [*here, *with_ray, "central"]
    figures = [one for name, part in here.items() if name in chosen for one in part()]
    ray_session = session(Cluster(num_cpus=LOGICAL_CPUS, object_store_bytes=512 * MIB))
    with tempfile.TemporaryDirectory() as folder, Interrupt() as stop, ray_session:
        for name, run in with_ray.items():
            if name in chosen:
                figures += run(Path(folder) / name, stop)
        figures += central() if "central" in chosen else ()
    text = table(figures)
    if not sys.argv[1:]:
        atomic_write(TABLE, text.encode())
    sys.stdout.write(text)


def reducer() -> Iterator[Figure]:
    """Compare the reducer with reading and writing the video once, into fresh memory as the reducer does."""
    for px in (128, 256):
        plan = WINDOWS.plan(FRAMES)
        weights_KT = windows.weights(plan)
        video = torch.randn(1, 3, FRAMES, px, px)
        said = [(k, video[:, :, plan.slice(k)].clone()) for k in range(len(plan.starts))]
        ours, bound = rounds(lambda: multidiffusion.reduce(said, plan, weights_KT), video.clone)  # noqa: B023  called now
        ratio = ours / bound
        yield Figure(
            what=f"reducer, {len(plan.starts)} windows over {FRAMES} frames of {px} px, against one copy of the video",
            found=f"{ours * 1e3:.1f} / {bound * 1e3:.1f} ms = **{ratio:.2f}**",
            goal="at most 1.2",
            met=ratio <= 1.2,
        )


def overhead() -> Iterator[Figure]:
    """Measure solver, windows and reducer in an actor: eight more steps, whose network costs nothing, by window."""
    plan = WINDOWS.plan(FRAMES)
    for px in (32, 64, 128):
        low = torch.zeros(1, 3, FRAMES, px // 2, px // 2)
        more_s, fewer_s = rounds(partial(enlarged, low, 16), partial(enlarged, low, 8))
        window_s = (more_s - fewer_s) / 8 / len(plan.starts)
        yield Figure(
            what=f"engine and reducer, of a window-step of 200 ms at {px} px, arithmetic on one core",
            found=f"{window_s * 1e3:.2f} ms = **{window_s / 0.2:.1%}**",
            goal="at most 1 %",
            met=window_s <= 0.002,
        )
        real_s = tiny_window_s(px)
        yield Figure(
            what=f"the same, of the time that a tiny real network takes for such a window ({real_s * 1e3:.0f} ms)",
            found=f"**{window_s / real_s:.1%}**",
            goal="",
        )


def enlarged(low_BCTHW: torch.Tensor, steps: int) -> None:
    """Enlarge a video by a network that takes no time."""
    text = torch.zeros(1, 1, 16)
    samplers.sample_ssr(
        Sleeping(0.0),
        low_BCTHW,
        text,
        text,
        seeds=[1],
        scale=2,
        plan=WINDOWS.plan(FRAMES),
        settings=samplers.Sampling(schedule=Schedule(), steps=steps),
    )


def tiny_window_s(px: int) -> float:
    """Return the seconds of a window of the demo's SSR network, of another size."""
    model = ssr.build(ssr.Config(sample_px=px, widths=(16, 32, 48), norm_groups=4), seed=0).eval()
    x = torch.zeros(1, 6, WINDOWS.window, px, px)
    text, time_B, level_B = torch.zeros(1, 1, 64), torch.zeros(1).long(), torch.zeros(1)

    def once() -> None:
        with torch.inference_mode():
            model(x, time_B, text, level_B=level_B)

    return rounds(once, lambda: None, times=3)[0]


def batches() -> Iterator[Figure]:
    """Ask what the measured number of windows a pass gains with a tiny real network, against one by one."""
    from pipelines import batching  # noqa: PLC0415
    from pipelines.maker import Maker  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as name:
        config = recipe(Path(name), px=16, base=2, ssr=4)
        roles = sampling.roles_of(config, settings_of(config, micro_batch=1))
        most = len(config.windows.plan(FRAMES).starts)
        seconds = batching.Meter(roles)(most)
        chosen = batching.best(seconds)
        maker = Maker(roles, base=False)
        single_s, chosen_s = (maker.pass_s(n, times=5) / n for n in (1, chosen))
    yield Figure(
        what=f"windows a pass as measured ({chosen} of {most}), speed over one by one",
        found=f"**{single_s / chosen_s:.2f}**",
        goal="never below 1",
        met=chosen == 1 or single_s >= chosen_s,
    )


def throughput(folder: Path, stop: Interrupt) -> Iterator[Figure]:
    """Compare eight sleeping actors with eight times one."""
    for ms, steps, times in ((50, 16, 20), (200, 8, 5)):
        here = folder / str(ms)
        config = recipe(here, px=16, base=2, ssr=steps)
        one = made(replace(config, num_actors=1, out=here / "one"), 5, ms / 1e3, stop)
        many = made(replace(config, num_actors=8, out=here / "many"), 8 * times, ms / 1e3, stop)
        ratio = 8 * times * one.pace_s / 8 / many.makespan_s
        yield Figure(
            what=f"{8 * times} videos on 8 actors of {ms} ms a window, over 8 x one actor's rate",
            found=f"**{ratio:.3f}**",
            goal="at least 0.98",
            met=ratio >= 0.98,
        )
        passes = 2 + steps * len(config.windows.plan(FRAMES).starts)
        bare = passes * ms / 1e3
        yield Figure(
            what=f"one actor of {ms} ms: a video's time over its networks' alone",
            found=f"**{one.pace_s / bare:.3f}**",
            goal="",
        )
        yield told(many, steps * 8 * times)


def told(many: Made, steps: int) -> Figure:
    """Say what the driver was told, and what went over the loopback in all, beside the payload of a step."""
    spec = 3 * FRAMES * (2 * 16) ** 2 * 4
    return Figure(
        what="bytes to the driver by sample and by step; all bytes over loopback by step, over a step's payload",
        found=(
            f"{many.told_bytes / len(many.rows):.0f} B (its row), **0** by step; "
            f"{many.loopback_bytes / steps / spec:.1%} of {spec / 1e3:.0f} kB, Ray's own included"
        ),
        goal="no payload",
        met=many.told_bytes / len(many.rows) < 10_000,
    )


def makespan(folder: Path, stop: Interrupt) -> Iterator[Figure]:
    """Compare 109 videos on 16 actors with what no scheduler can beat."""
    config = recipe(folder, px=16, base=1, ssr=8)
    one = made(replace(config, num_actors=1, out=folder / "one"), 4, 0.2, stop)
    many = made(replace(config, num_actors=16, out=folder / "many"), 109, 0.2, stop)
    bound = 109 / 16 * one.pace_s
    yield Figure(
        what="109 videos on 16 actors of 200 ms: makespan over 109/16 of one actor's time for one",
        found=f"{many.makespan_s:.1f} / {bound:.1f} s = **{many.makespan_s / bound:.3f}**",
        goal="at most 1.05",
        met=many.makespan_s / bound <= 1.05,
    )


def latency(folder: Path, stop: Interrupt) -> Iterator[Figure]:
    """Compare one video's windows over several actors with W / ceil(W / G)."""
    for px, sizes in ((64, (2, 4, 8)), (128, (2, 8))):
        here = folder / str(px)
        config = recipe(here, px=px // 2, base=1, ssr=32)
        count = len(config.windows.plan(FRAMES).starts)
        single = made(replace(config, num_actors=1, out=here / "one"), 1, 0.2, stop)
        alone_s = statistics.median(r["ssr_s"] for r in single.rows)
        for actors in sizes:
            changes = {"num_actors": actors, "mode": "latency", "out": here / f"{actors}"}
            shared = made(replace(config, **changes), 2, 0.2, stop)
            same = {r["identity"]: r["frames_sha256"] for r in shared.rows}
            if any(same[r["identity"]] != r["frames_sha256"] for r in single.rows):
                raise AssertionError("a shared video is another one")
            found = alone_s / statistics.median(r["ssr_s"] for r in shared.rows)
            most = count / -(-count // actors)
            yield Figure(
                what=f"latency mode, {count} windows of {px} px and 200 ms on {actors} actors, over W/ceil(W/G) = {most:g}",
                found=f"{found:.2f} = **{found / most:.3f}**, bit-equal",
                goal="at least 0.90",
                met=found / most >= 0.90,
            )


def real(folder: Path, stop: Interrupt) -> Iterator[Figure]:
    """Compare two actors with a tiny real network, one torch thread each, with twice one."""
    config = recipe(folder, px=16, base=4, ssr=4)
    paces = []
    for number in range(3):
        one = made(replace(config, num_actors=1, out=folder / f"one{number}"), 6, 0.0, stop)
        two = made(replace(config, num_actors=2, out=folder / f"two{number}"), 12, 0.0, stop)
        paces.append(one.pace_s / 2 / two.pace_s)
    yield Figure(
        what="tiny real networks: 2 actors over 2 x one, each on a core of its own, three rounds",
        found=" ".join(f"{p:.3f}" for p in paces) + f", **{statistics.median(paces):.3f}**",
        goal="at least 0.98",
        met=statistics.median(paces) >= 0.98,
    )


def central() -> Iterator[Figure]:
    """Measure what others do: whole windows to one reducer at each step, through the object store."""
    plan = WINDOWS.plan(FRAMES)
    for ms in (50, 200):
        workers = [
            ray.remote(num_cpus=1)(Window).remote(ms / 1e3)  # pyright: ignore[reportAttributeAccessIssue]
            for _ in range(8)
        ]
        centre = ray.remote(num_cpus=1)(Centre).remote(  # pyright: ignore[reportAttributeAccessIssue]
            [worker.__call__ for worker in workers], plan
        )
        ray.get(centre.run.remote((1, 3, FRAMES, 128, 128), 2))
        step_s = ray.get(centre.run.remote((1, 3, FRAMES, 128, 128), 8))
        for actor in (centre, *workers):
            ray.kill(actor)
        yield Figure(
            what=f"peer: a reducer in the middle, 8 workers of {ms} ms, 128 px, reduction alone: share of its bound",
            found=f"a step {step_s * 1e3:.0f} ms = **{ms / 1e3 / step_s:.3f}**",
            goal="to compare with latency mode",
        )


def recipe(folder: Path, *, px: int, base: int, ssr: int) -> Config:
    """Return a set's recipe, with random weights of its own, written on the way."""
    roles = made_roles(folder / "roles", frames=FRAMES, px=px)
    return Config(
        **roles,
        prompts="",
        out=folder / "set",
        base_solver=Solver(steps=base),
        ssr_solver=Solver(steps=ssr),
        windows=WINDOWS,
    )


def made(config: Config, count: int, sleep_s: float, stop: Interrupt) -> Made:
    """Make `count` samples by the product's own line of actors, whose networks sleep (0: do not)."""
    found = makes(config)
    settings = settings_of(config, micro_batch=1)
    orders = orders_of(config, [Prompt(text=f"number {i}") for i in range(count)], found, settings)
    marks = config.out / "marks"
    marks.mkdir(parents=True)
    table = Table.create(Root.of(config.out), FOLDER, SCHEMA, key=KEY)
    writer = Kept(table, app_id="bench")
    context: Any = SimpleNamespace(start_cluster=lambda: None, stop=stop)
    recorder: Any = SimpleNamespace(warn=failed, progress=lambda *_, **__: None)
    line = Sleepers(config, context, recorder, frames=found.frames, recipe="bench")
    line.sleep = Sleep(seconds=sleep_s, together=0, marks=str(marks))
    before = sent_bytes()
    line.make(orders, total=count, writer=writer)
    loopback = sent_bytes() - before
    if len([r for r in read_set(config.out) if r["status"] == "done"]) != count:
        raise AssertionError("samples are missing")
    told_bytes = sum(len(pickle.dumps(row)) for row in writer.rows)
    return Made(rows=writer.rows, loopback_bytes=loopback, told_bytes=told_bytes)


class Sleepers(sampling.Line):
    """A set's line with actors that say when they began."""

    sleep: Sleep

    def _stations(self, count: int, meanwhile: Callable[[], object]) -> list[pool.Station]:
        stations = super()._stations(count, meanwhile)
        together = sum(station.num_actors for station in stations)
        sleep = replace(self.sleep, together=together)
        return [
            dataclasses.replace(one, actor=Timed, arguments=(*one.arguments, sleep))
            for one in stations
        ]


class Kept(Writer):
    """A manifest's writer that keeps what it was given."""

    def __init__(self, table: Table, *, app_id: str) -> None:
        super().__init__(table, app_id=app_id)
        self.rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, and commit it without what the bench has added."""
        self.rows.append(row)
        super().add({k: v for k, v in row.items() if k not in {"began", "over"}})


def failed(text: str) -> None:
    """Stop the bench at the first failed sample."""
    raise AssertionError(text)


def sent_bytes() -> int:
    """Return what went over the loopback so far."""
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent


def rounds(
    ours: Callable[[], Any], bound: Callable[[], Any], times: int = 7
) -> tuple[float, float]:
    """Return the best seconds of both, called in turns on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found: tuple[list[float], list[float]] = [], []
    for _ in range(times + 1):
        for call, kept in zip((ours, bound), found, strict=True):
            begun_s = time.perf_counter()
            call()
            kept.append(time.perf_counter() - begun_s)
    torch.set_num_threads(threads)
    return statistics.median(found[0][1:]), statistics.median(found[1][1:])


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as Markdown."""
    lines = [
        (
            f"Measured {time.strftime('%Y-%m-%d')} by `python -m tests.bench.sampling` on {cpu_name()}, {cores()} cores, "
            f"torch {torch.__version__}: {FRAMES} frames, {len(WINDOWS.plan(FRAMES).starts)} windows of {WINDOWS.window} "
            "frames; base of 16 px and SSR of 32 px where nothing else is said; actors have one torch thread each."
        ),
        "",
        "| what | found | goal | |",
        "| --- | --- | --- | --- |",
    ]
    words = {True: "met", False: "MISSED", None: ""}
    lines += [f"| {f.what} | {f.found} | {f.goal} | {words[f.met]} |" for f in figures]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
