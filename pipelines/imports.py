"""Videos made elsewhere as a set of ours: decoded once, hashed and described as far as anything is known of them.

What is known is the file, and its prompt: by a suite's name or text for it, or, without a suite, by the file's own name. Seed,
weights and settings are not known, and the manifest leaves them open.
"""

import json
import re
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cluster import pool
from cluster.session import Cluster
from ingest import ffmpeg
from ingest.clip import Contract, Prep
from ingest.objects import Root
from ingest.reading import Reading
from ingest.sources import SourceError, list_sources, sha256_file
from ingest.tables import Table
from pipelines import videos
from pipelines.alone import alone, refuse_running
from pipelines.conditions import NEVER_SHRUNK_PX
from pipelines.context import Context, Recorder, recorded
from pipelines.identity import code_version, digest, plain
from pipelines.manifest import FOLDER, KEY, SCHEMA, Asked, Writer, failed_row, read_set, set_digest
from pipelines.order import Order
from pipelines.output import WrongInput, claim
from pipelines.prompt_files import shown
from pipelines.prompts import Prompt, read_suite

VERB = "import"
INDEXED = re.compile(r"^(.*)-(\d{1,6})$", re.DOTALL)
# As decoded: RGB frames of their own number and size.
PREP = Prep(contract=Contract(frames=1, fps="native"), payload_short_side_px=NEVER_SHRUNK_PX)
MOST_BYTES = 4 << 30  # of frames in memory; a sample is a clip
SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What to take in: videos below the folder `videos`, made by `model` (any words), for the suite `prompts`.

    A file belongs to the prompt whose name or text it is called by, with or without "-INDEX" behind it. Without `prompts`
    its name is its prompt.
    """

    videos: Path
    out: Path
    model: str
    prompts: str = ""
    captions: str = "first"
    split: str = ""
    max_attempts: int = 2
    tracking_uri: str = ""
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        """Check that something is said of who made them: sets are compared by it."""
        if not self.model.strip():
            raise ValueError("model: say what made these videos")


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What is in the set now, and what was not there: prompts of the suite without a video."""

    verb: str
    status: str
    set: str
    digest: str
    videos: int
    samples: int
    failed: int
    prompts: int
    prompts_without: int
    wall_s: float
    run_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One video to take in, and what it is called there."""

    order: Order
    path: str
    sha256: str
    name: str


def run(config: Config, *, context: Context) -> Result:
    """Take in what the set lacks; WrongInput where a file belongs to no prompt, or two are the same sample."""
    jobs, prompts = _jobs(config)
    if not context.resume:
        refuse_running(config.out)
    claimed = claim(config.out, VERB, config, inputs={}, resume=context.resume)
    orders = [job.order for job in jobs]
    with (
        alone(config.out, temporary=("", "videos/*")),
        recorded(context, claimed, verb=VERB, name=VERB, config=config) as recorder,
    ):
        table = Table.create(Root.of(config.out), FOLDER, SCHEMA, key=KEY)
        Asked.of(orders).write(config.out)
        known = {row["identity"] for row in read_set(config.out) if row["status"] == "done"}
        todo = [job for job in jobs if job.order.identity not in known]
        writer = Writer(table, app_id=f"{VERB}/{claimed.digest}")
        _taken(config, todo, len(jobs), writer, context=context, recorder=recorder)
        result = _result(config, orders, prompts, context, recorder)
        recorder.run.set_tags({"kinoray.set": result.digest})
        recorder.finish(claimed, plain(result))
    return result


def _taken(
    config: Config,
    todo: Sequence[Job],
    total: int,
    writer: Writer,
    *,
    context: Context,
    recorder: Recorder,
) -> None:
    if not todo:
        return
    context.start_cluster()
    named = {job.order.identity: job for job in todo}
    told = {"model": config.model, "out": str(config.out.resolve()), "code": code_version()["code"]}
    units = [pool.Unit(key=job.order.identity, payload=job) for job in todo]
    done = total - len(todo)
    needs = pool.Pool(max_attempts=config.max_attempts, meanwhile=writer.tick)
    try:
        for outcome in pool.run_tasks(partial(take, told), units, config=needs, stop=context.stop):
            job = named[outcome.key]
            if outcome.failure is None:
                writer.add({**outcome.value, "attempts": outcome.attempts})
            else:
                recorder.warn(f"{shown(job.name)}: {outcome.failure.message}")
                writer.add({**failed_row(job.order, outcome), "seed": ""})
            done += 1
            recorder.progress(done, total)
    finally:
        writer.flush()


def take(told: Mapping[str, str], job: Job) -> dict[str, Any]:
    """Decode one video, write it as a sample of the set, and return its row; raises SourceError."""
    started_s = time.time()
    frames_THWC, fps, steady = frames_of(job.path)
    name = videos.stem(job.order.prompt.id, job.order.index, job.order.identity)
    out, shown_fps = Path(told["out"]), max(1, round(fps))
    low = videos.write_base(out, name, frames_THWC, shown_fps)
    files = videos.write_final(out, name, low, frames_THWC, shown_fps, enlarged=False)
    imported = {
        "model": told["model"],
        "file": job.name,
        "sha256": job.sha256,
        "fps": str(fps),
        "steady": steady,
    }
    return {
        "status": "done",
        "error": None,
        **_columns(job),
        "settings": json.dumps({"imported": imported}, sort_keys=True, ensure_ascii=False),
        "frames": frames_THWC.shape[0],
        "fps": shown_fps,
        "width": frames_THWC.shape[2],
        "height": frames_THWC.shape[1],
        **files,
        "code": told["code"],
        "wall_s": round(time.time() - started_s, 3),
    }


def frames_of(path: str) -> tuple[np.ndarray, Any, bool]:
    """Return a video's frames (uint8 THWC) as they are, its rate, and whether it is constant; raises SourceError."""
    info = ffmpeg.probe(path, PREP)
    if info.hdr:
        raise SourceError(
            "import", "Hdr", "has an HDR transfer (PQ or HLG); next: make it SDR (BT.709)"
        )
    found: list[np.ndarray] = []
    with Reading(path, info, PREP) as reading:
        for frame in reading:
            found.append(np.array(frame))
            if len(found) * found[0].nbytes > MOST_BYTES:
                raise SourceError("import", "TooLong", "is more than a clip; next: cut it")
    if not found or info.pace is None:
        raise SourceError("import", "Empty", "has no frame")
    return np.stack(found), info.pace.fps, info.pace.steady


def _columns(job: Job) -> dict[str, Any]:
    return {**job.order.columns(), "seed": ""}


def _jobs(config: Config) -> tuple[list[Job], int]:
    """Return what there is to take in, in the order of names, and how many prompts the suite has."""
    if not config.videos.is_dir():
        raise FileNotFoundError(f"{shown(config.videos)}: no such folder; next: correct the path")
    root = config.videos.resolve()
    found = [Path(source.uri) for source in list_sources([str(root)])]
    prompts = _suite(config)
    jobs: dict[str, Job] = {}
    strangers: list[str] = []
    for path in found:
        told = _belongs(path.stem, prompts)
        if told is None:
            strangers.append(path.name)
            continue
        prompt, index = told
        sha256 = sha256_file(path)
        named = {"imported": sha256, "model": config.model, "prompt": prompt.text, "index": index}
        order = Order(identity=digest(named), prompt=prompt, negative="", index=index, seed=0)
        place = f"{prompt.id}/{index}"
        name = str(path.relative_to(root))
        if place in jobs:
            raise WrongInput(
                f"{shown(name)}: is sample {index} of the same prompt as {shown(jobs[place].name)}; "
                "next: call them PROMPT-0, PROMPT-1 and so on"
            )
        jobs[place] = Job(order=order, path=str(path), sha256=sha256, name=name)
    if strangers:
        some = ", ".join(shown(name, 60) for name in strangers[:SHOWN])
        raise WrongInput(
            f"{len(strangers)} of {len(found)} videos belong to no prompt of {shown(config.prompts)} ({some}); "
            "next: call them by a prompt's name or text, with -INDEX behind it, or move them away"
        )
    known = prompts.values() or [job.order.prompt for job in jobs.values()]
    return list(jobs.values()), len({prompt.id for prompt in known})


def _suite(config: Config) -> dict[str, Prompt]:
    """Return prompts by all that a file may be called by."""
    if not config.prompts:
        return {}
    found: dict[str, Prompt] = {}
    suite = read_suite(config.prompts, captions=config.captions, split=config.split)
    for prompt in suite.prompts:
        names = json.loads(prompt.more).get("names") or [prompt.name]
        for name in (*names, prompt.text):
            if name:
                found.setdefault(_clean(name), prompt)
    return found


def _belongs(stem: str, prompts: Mapping[str, Prompt]) -> tuple[Prompt, int] | None:
    """Return the prompt and index of a file by its name, None where it has none."""
    stem = _clean(stem)
    if stem in prompts:
        return prompts[stem], 0
    match = INDEXED.match(stem)
    text, index = (match[1], int(match[2])) if match else (stem, 0)
    if prompts:
        return (prompts[text], index) if text in prompts else None
    try:
        return replace(Prompt(text=text), name=stem), index
    except ValueError:
        return None


def _clean(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _result(
    config: Config, orders: Sequence[Order], prompts: int, context: Context, recorder: Recorder
) -> Result:
    wanted = {order.identity for order in orders}
    rows = [row for row in read_set(config.out) if row["identity"] in wanted]
    done = [row for row in rows if row["status"] == "done"]
    complete = len(done) == len(orders)
    left = "interrupted" if context.stop.requested else "incomplete"
    return Result(
        verb=VERB,
        status="done" if complete else left,
        set=str(config.out),
        digest=set_digest(done),
        videos=len(orders),
        samples=len(done),
        failed=len(rows) - len(done),
        prompts=prompts,
        prompts_without=prompts - len({order.prompt.id for order in orders}),
        wall_s=recorder.wall_s,
        run_id=recorder.run.id,
    )
