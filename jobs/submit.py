"""Hand a verb and its recipe to a cluster as a Ray job: the same work in the same place is one job, however often it is asked.

A job's name is the digest of what it makes and where. What travels is a copy of our five packages and the recipe; data, history
and whatever else lies in the checkout stay here.
"""

import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.head import Job
from cluster.spool import without_secrets
from jobs import config
from pipelines import identity

if TYPE_CHECKING:
    from cluster.job_api import Jobs, Seen

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGES = ("cluster", "ingest", "models", "pipelines", "jobs")
# What code is made of. A video, a checkpoint or a file of settings that lies among it stays here.
CODE = (".py", ".toml", ".txt", ".jsonl")
RECIPES = "recipe"
DIGEST_CHARS = 12
# Where two that submit at one moment find each other: the second sees the first's job at its next look.
TRIES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What is to be submitted; `name` is the first attempt's, `digest` that of what is made and where."""

    verb: str
    recipe: Path
    overrides: tuple[str, ...]
    digest: str
    folder: Path
    settings: Job
    resume: bool

    @property
    def name(self) -> str:
        """Return the name of the first attempt."""
        return f"{self.verb}-{self.digest[:DIGEST_CHARS]}"

    @property
    def entrypoint(self) -> str:
        """Return the shell command of the driver, which begins in the folder of the code."""
        folder = shlex.quote(str(self.folder))
        missing = shlex.quote(
            f"kinoray: {self.folder} is not on the node of the driver; next: cluster.job.folder=FOLDER "
            "on storage that every node of the cluster has"
        )
        # under its own name, which a chain takes for its own where its recipe has none
        recipe = shlex.quote(f"{RECIPES}/{self.recipe.name}")
        words = [*self.overrides, "--address", "auto", *([] if self.resume else ["--no-resume"])]
        # -P: what lies in the folder must not be taken for the code. exec: signals reach Python itself.
        return (
            f'code="$PWD"; cd {folder} 2>/dev/null || {{ echo {missing} >&2; exit 2; }}; '
            f'exec python -P -m jobs {self.verb} "$code"/{recipe} {shlex.join(words)}'
        )

    @property
    def metadata(self) -> dict[str, str]:
        """Return what a listing tells of the job: nothing that is secret."""
        return {
            "kinoray.verb": self.verb,
            "kinoray.recipe": self.recipe.name,
            "kinoray.digest": self.digest,
            "kinoray.code": identity.code(),
            "kinoray.folder": str(self.folder),
            "kinoray.needs": " ".join(f"{k}={v:g}" for k, v in self.settings.needs.items()),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """A job after it was asked for: whether this call started it, and which attempt it is."""

    job: "Seen"
    started: bool
    attempt: int


def order(verb: str, recipe: Path, overrides: Sequence[str], *, resume: bool) -> Order:
    """Read a recipe as `verb` and return what to submit; ConfigError holds every problem."""
    from jobs import command

    made: Any = command.resolved(verb, recipe, overrides)
    plain = identity.plain(made)
    written = f"{plain}{recipe.read_text(encoding='utf-8')}"
    if without_secrets(written) != written:
        told = (
            f"{recipe}: holds a password or key, which would lie open on the cluster; next: take it out, and set it in "
            "the environment of the cluster's nodes (MLFLOW_TRACKING_USERNAME and _PASSWORD for a tracker)"
        )
        raise config.ConfigError((told,))
    settings = made.cluster.job
    folder = Path(settings.folder) if settings.folder else Path.cwd()
    return Order(
        verb=verb,
        recipe=recipe,
        overrides=tuple(overrides),
        digest=identity.digest({"verb": verb, "folder": folder, "recipe": _work(plain)}),
        folder=folder,
        settings=settings,
        resume=resume,
    )


def _work(plain: dict[str, Any]) -> dict[str, Any]:
    """Return what a recipe makes and where, without what carries it out: with more workers it is the same job."""
    left_out = identity.HOW_TO_RUN - {"out"}
    kept = {key: value for key, value in plain.items() if key not in left_out}
    if isinstance(kept.get("steps"), list):  # a chain's; a training's are a number
        kept["steps"] = [step | {"config": _work(step["config"])} for step in kept["steps"]]
    return kept


def begin(jobs: "Jobs", asked: Order) -> Begun:
    """Start the job, or return the one that is at this work or has done it; raises ClusterUnavailable."""
    from cluster.head import ClusterUnavailable

    for _ in range(TRIES):
        attempt, last = newest(jobs.all(), asked.name)
        if last is not None and _stands(last, asked):
            return Begun(job=last, started=False, attempt=attempt)
        name = asked.name if last is None else f"{asked.name}-{attempt + 1}"
        if send(jobs, asked, name):
            return Begun(job=jobs.job(name), started=True, attempt=attempt + 1)
    raise ClusterUnavailable(
        f"{asked.name}: others start and stop it at this moment; next: the same command again"
    )


def _stands(last: "Seen", asked: Order) -> bool:
    if last.ended:
        return last.state == "succeeded" and asked.resume
    if not asked.resume:
        raise config.ConfigError(
            (
                f"{last.id} is {last.state}, and nothing is started over under it; next: kinoray stop {last.id} --address ...",
            )
        )
    return True


def newest(seen: Sequence["Seen"], name: str) -> tuple[int, "Seen | None"]:
    """Return the last attempt at a job and its number, (0, None) where there is none."""
    attempts: dict[int, Seen] = {}
    for job in seen:
        if found := re.fullmatch(re.escape(name) + r"(?:-([1-9]\d*))?", job.id):
            attempts[int(found[1] or 1)] = job
    last = max(attempts, default=0)
    return last, attempts.get(last)


def send(jobs: "Jobs", asked: Order, name: str) -> bool:
    """Submit one attempt with a copy of the code; False when there is one of that name."""
    from cluster.job_api import Asked

    with tempfile.TemporaryDirectory(prefix="kinoray-job-") as folder:
        pack(Path(folder), asked.recipe)
        return jobs.submit(
            Asked(
                id=name,
                entrypoint=asked.entrypoint,
                code=Path(folder),
                metadata=asked.metadata,
                settings=asked.settings,
            )
        )


def pack(folder: Path, recipe: Path) -> int:
    """Copy our code and the recipe into a folder and return the bytes; equal content makes an equal package."""
    total = 0
    for path in _files():
        copy = folder / path.relative_to(CHECKOUT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        total += copy.stat().st_size
    (folder / identity.CODE_NOTE).write_text(identity.code() + "\n", encoding="utf-8")
    (folder / RECIPES).mkdir()
    shutil.copyfile(recipe, folder / RECIPES / recipe.name)
    return total + recipe.stat().st_size


def _files() -> list[Path]:
    """Return the files of our packages, those that git ignores left out where this is a checkout."""
    listed = ["git", "-C", str(CHECKOUT), "ls-files", "-z", "-co", "--exclude-standard", "--"]
    if (CHECKOUT / ".git").exists():
        done = subprocess.run([*listed, *PACKAGES], capture_output=True, text=True, check=False)
        found = [CHECKOUT / name for name in done.stdout.split("\0") if name]
    else:
        found = [path for name in PACKAGES for path in (CHECKOUT / name).rglob("*")]
    return sorted(p for p in found if p.suffix in CODE and p.is_file() and not p.is_symlink())
