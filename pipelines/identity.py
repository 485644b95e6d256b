"""What a run is: its resolved recipe as plain data, the digest of that, and the code and packages that carried it out.

Light on purpose (standard library only): the command line uses it before anything heavy is imported.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

# Where and how a run is carried out; everything else decides what comes out and is part of its identity.
HOW_TO_RUN = frozenset(
    {
        "out",
        "tracking_uri",
        "cluster",
        "scratch",
        "num_actors",
        "max_attempts",
        "max_failures",
        "checkpoint_every",
        "num_workers",
        "min_workers",
        "gpus_per_worker",
        "threads_per_worker",
        "form",
        "retention",
        "probe_every",
        "show",
        "decode_workers",
        "max_bad_clips",
        "ssr_actors",
        "mode",
    }
)
# What is asked of a folder that may hold more: another number of these is no other recipe.
MAY_GROW = frozenset({"prompts", "captions", "split", "max_prompts", "num_seeds"})
CODE_NOTE = "kinoray-code.txt"
PACKAGES = ("ray", "torch", "pyarrow", "decord", "deltalake", "diffusers", "mlflow", "numpy")


def plain(value: object) -> Any:
    """Return dataclasses, tuples and paths as JSON-ready values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def digest(value: object) -> str:
    """Return the sha256 of the canonical JSON of `value`, in hex; names of files may be any bytes."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def recipe_digest(config: object) -> str:
    """Return the digest of what a config makes, leaving out where it is put and what carries it out."""
    return digest(what_is_made(config))


def what_is_made(config: object) -> dict[str, Any]:
    """Return a config as plain values, without where it is put, what carries it out, and what may grow in its folder."""
    left_out = HOW_TO_RUN | MAY_GROW
    return {k: v for k, v in plain(config).items() if k not in left_out}


@cache
def code_version() -> dict[str, Any]:
    """Return the commit of the checkout this runs from (with "+dirty" when it was edited), or "unknown"."""
    packages = {name: _version(name) for name in PACKAGES}
    return {"code": code(), "python": platform.python_version(), "packages": packages}


@cache
def code() -> str:
    """Return the commit as in `code_version`; a copy that was sent to a cluster says of itself what it was made of."""
    root = Path(__file__).resolve().parent.parent
    if (root / CODE_NOTE).is_file():
        return (root / CODE_NOTE).read_text(encoding="utf-8").strip()
    commit = _git(root, "rev-parse", "HEAD") or "unknown"
    dirty = "+dirty" if commit != "unknown" and _git(root, "status", "--porcelain") else ""
    return commit + dirty


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
