"""Output folders: who owns one, what was asked of it, and whether that is finished.

A run claims its folder with `recipe.json` before it works and ends with `result.json`. The same recipe continues there, another
recipe is refused (never overwritten), and a fresh start moves the old folder aside: nothing a user made is ever deleted here.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.spool import without_secrets
from ingest.files import atomic_create, atomic_write
from ingest.objects import Root
from pipelines.identity import code_version, digest, plain, recipe_digest, what_is_made

NOTES = Path(".kinoray") / "runs"


class WrongInput(ValueError):
    """An input of a run is not what the recipe says it is."""

    exit_code = 2


class Occupied(Exception):
    """The output folder belongs to something else; carries the folder and the reason."""

    exit_code = 2

    def __init__(self, folder: str, reason: str) -> None:
        super().__init__(folder, reason)
        self.folder = folder
        self.reason = reason

    def __str__(self) -> str:
        """Return one line that names both ways out."""
        return (
            f"{self.folder}: {self.reason}; next: choose another folder with out=..., "
            "or add --no-resume to start over (the old folder is kept beside it)"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A folder that this run may write to; `finished` is the result of an earlier, complete run of the same recipe."""

    folder: Path
    digest: str
    inputs: Mapping[str, str]
    finished: dict[str, Any] | None


def claim(
    folder: Path, verb: str, config: object, *, inputs: Mapping[str, str], resume: bool
) -> Claim:
    """Take `folder` for `config` and the digests of its `inputs`; raises Occupied when it holds something else."""
    asked = {"recipe": recipe_digest(config), "inputs": inputs}
    if not resume:
        move_aside(folder)
    identity = digest(asked)
    recipe = {"verb": verb, "digest": identity, "recipe": plain(config), "inputs": dict(inputs)}
    written = read_json(folder / "recipe.json")
    if written is None and _holds_something(folder):
        written = read_json(folder / "recipe.json")  # of a run that began in between
        if written is None:
            raise Occupied(str(folder), "is not empty and was not made by kinoray")
    if written is None:
        folder.mkdir(parents=True, exist_ok=True)
        # A tracking URI may hold a password; the copy on disk may not.
        text = without_secrets(to_json(recipe | code_version()).decode())
        if not atomic_create(folder / "recipe.json", text.encode()):  # another was faster
            written = read_json(folder / "recipe.json")
    if written is not None and written.get("digest") != identity:
        raise Occupied(str(folder), f"was made by another recipe ({_difference(written, recipe)})")
    return Claim(
        folder=folder,
        digest=identity,
        inputs=dict(inputs),
        finished=_complete(read_json(folder / "result.json")),
    )


def finish(claimed: Claim, result: dict[str, Any]) -> None:
    """Write the result of the run; only a result whose status is "done" counts as an end."""
    atomic_write(claimed.folder / "result.json", to_json(result))


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in `path`, or None where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, NotADirectoryError) as error:
        raise Occupied(str(path.parent), f"{path.name} cannot be read ({error})") from None


def _complete(result: dict[str, Any] | None) -> dict[str, Any] | None:
    return result if result is not None and result.get("status") == "done" else None


def to_json(value: Mapping[str, Any]) -> bytes:
    """Return a value as indented JSON with a final newline."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _holds_something(folder: Path) -> bool:
    if folder.exists() and not folder.is_dir():
        raise Occupied(str(folder), "is a file, not a folder")
    # What a kill left of a file that was being written belongs to nobody.
    return folder.is_dir() and any(".writing-" not in path.name for path in folder.iterdir())


def move_aside(folder: Path) -> None:
    """Give what is in `folder` another name, so that a fresh start deletes nothing."""
    if not _holds_something(folder):
        return
    stamp = time.strftime("%Y%m%dT%H%M%S")
    kept = folder.with_name(f"{folder.name}.old-{stamp}")
    number = 1
    while kept.exists():
        kept = folder.with_name(f"{folder.name}.old-{stamp}-{number}")
        number += 1
    folder.rename(kept)


def notes_of(dataset: str) -> Path:
    """Return where the runs that write to a dataset keep their notes: inside it, or for a store beside the tracker."""
    root = Root.of(dataset)
    return root.path / "runs" if root.is_local else NOTES / digest(root.uri)[:12]


def start_over(dataset: str) -> None:
    """Move a dataset aside; raises WrongInput for one in an object store."""
    root = Root.of(dataset)
    if not root.is_local:
        raise WrongInput(
            f"{dataset}: nothing is moved aside in an object store; name another prefix"
        )
    move_aside(root.path)


def _difference(written: dict[str, Any], asked: dict[str, Any]) -> str:
    old, new = _identity(written), _identity(asked)
    keys = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    shown = ", ".join(f"{k} was {old.get(k)!r}, is {new.get(k)!r}" for k in keys[:2])
    return shown + (f" and {len(keys) - 2} more" if len(keys) > 2 else "")


def _identity(recipe: dict[str, Any]) -> dict[str, Any]:
    keys = what_is_made(recipe.get("recipe", {}))
    return _flat(keys) | {f"input {k}": v[:12] for k, v in recipe.get("inputs", {}).items()}


def _flat(table: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(table, dict):
        return {prefix: table}
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat
