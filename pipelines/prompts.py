"""Prompts: what is asked for in words, and what beside the words is given: pictures, videos, masks, a style.

They are read from a file (prompt_files has the forms) or are the captions of a dataset. A prompt is named by a hash of what
it asks for, so that it is the same in any set, and nothing that was typed becomes part of a path.
"""

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ingest.objects import Root
from ingest.sources import sha256_file
from ingest.store import Dataset
from pipelines.output import WrongInput
from pipelines.prompt_columns import FILES, TAKES, Task, check, typed
from pipelines.prompt_files import check_choices, rows, shown, wrong

__all__ = [
    "FILES",
    "TAKES",
    "Prompt",
    "Suite",
    "Task",
    "file_sha256",
    "is_there",
    "prompt_id",
    "read_prompts",
    "read_suite",
]
# What decides pixels. Not the number of seeds: a set of 5 grows to 10 without making the 5 again.
_ASKED = (
    "text",
    "negative",
    "task",
    *FILES,
    "frames_known",
    "margin",
    "strength",
    "style",
    "alpha",
)
_DOMAIN = b"kinoray prompt 1\0"  # no text holds a NUL, so no text alone has such a hash


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One prompt: its text (NFC, stripped), its task and what the task takes (see TAKES); the rest stays at its default.

    `mask`: white is made anew. `frames_known`: how many first frames of the video are kept. `margin`: the share of the
    picture, below 0.5, that is made anew at each edge. `strength`: how far SDEdit goes from the video, more than 0, at
    most 1. Any task may have a `style` (the folder of a base checkpoint) with an `alpha`, more than 0, at most 1.
    `num_seeds` 0 is the recipe's. `name` is what the suite calls it; `more` is a JSON object of all other columns.

    `id` is 16 hex digits: of the text's sha256 where there is only a text, else of all that decides pixels, where a file
    counts by its bytes and a style by the path as it was written. Raises ValueError that begins with the wrong column,
    and OSError for a file that cannot be read.
    """

    id: str = ""
    text: str
    negative: str = ""
    task: Task = "text"
    image: str = ""
    last_image: str = ""
    video: str = ""
    mask: str = ""
    frames_known: int = 0
    margin: float = 0.0
    strength: float = 0.0
    style: str = ""
    alpha: float = 0.0
    num_seeds: int = 0
    name: str = ""
    more: str = "{}"

    def __post_init__(self) -> None:
        """Clean the texts, check that task and columns agree, and give it its id."""
        for column in ("text", "negative"):
            object.__setattr__(self, column, _clean(getattr(self, column)))
        check({f.name: getattr(self, f.name) for f in fields(self)})
        if not self.id:
            object.__setattr__(self, "id", _identity(self, self.style))


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """The distinct prompts of a file or dataset in its order, and how many others were the same again.

    Prompts that are one have all their columns: lists are joined (VBench's dimensions), values that differ become a list,
    and where the suite gave it several names, all are in `names` of `more` (EvalCrafter has a few prompts twice).
    """

    prompts: tuple[Prompt, ...]
    duplicates: int


def read_prompts(
    place: str | Path, limit: int | None, *, captions: str = "first", split: str = ""
) -> list[Prompt]:
    """Return the first `limit` distinct prompts of `place`; see read_suite."""
    return list(read_suite(place, captions=captions, split=split).prompts[:limit])


def read_suite(place: str | Path, *, captions: str = "first", split: str = "") -> Suite:
    """Return the prompts of a file, in its order, or the captions of a dataset, in the order of its clips.

    Paths are relative to the prompt file and come back absolute. `captions` and `split`: see prompt_files.rows.
    Raises FileNotFoundError when there is no such file or dataset; WrongInput, one line, for what is wrong in it.
    """
    path = Path(place)
    if path.is_file():
        said = rows(path, captions=captions, split=split)
        return _distinct(path, ((row.at, _prompt(path, row.at, row.values)) for row in said))
    if not path.exists() and "://" not in str(place):
        raise FileNotFoundError(
            f"{shown(place)}: no such prompt file or dataset; next: correct the path"
        )
    if path.exists() and not path.is_dir():
        raise WrongInput(f"{shown(place)}: neither a file nor a dataset; next: name one of them")
    check_choices(place, captions=captions, split=split)
    captioned = Dataset.open(place).kept_clips().column("caption").to_pylist()
    texts = [_clean(text) for text in captioned if text and text.strip()]
    # Once each: most captions of a labelled dataset are alike.
    found = [(f"caption {shown(text, 40)!r}", text) for text in dict.fromkeys(texts)]
    suite = _distinct(path, ((at, _prompt(path, at, {"prompt": text})) for at, text in found))
    return replace(suite, duplicates=len(texts) - len(found))


def is_there(place: str) -> bool:
    """Whether there is such a file or dataset; one in an object store is taken to be there."""
    return Path(place).exists() or ("://" in place and not Root.of(place).is_local)


def prompt_id(text: str) -> str:
    """Return the id of a prompt that is only a text: 16 hex digits of the sha256 of its NFC text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: str) -> str:
    """Return the hex sha256 of a file, read once while its time and size stay; raises OSError."""
    status = os.stat(path)  # noqa: PTH116  a name, thousands of times
    return _hashed(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1 << 16)
def _hashed(path: str, _mtime_ns: int, _size: int) -> str:
    return sha256_file(path)


def _clean(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def _identity(prompt: Prompt, style: str) -> str:
    asked = {name: getattr(prompt, name) for name in _ASKED} | {"style": style}
    said = {name: value for name, value in asked.items() if value}
    if prompt.task == "text":
        del said["task"]
    if set(said) == {"text"}:
        return prompt_id(prompt.text)
    said |= {name: file_sha256(said[name]) for name in FILES if name in said}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(_DOMAIN + text.encode()).hexdigest()[:16]


def _prompt(path: Path, at: str, values: dict[str, Any]) -> Prompt:
    """Return the prompt of a row; raises WrongInput that names file, place and column."""
    try:
        columns, written = typed(path.parent, values)
        made = Prompt(**columns)
        # By its path as written: the folder with all of it may move, or lie elsewhere on another machine.
        return replace(made, id=_identity(made, written)) if written else made
    except OSError as error:
        why = f"{shown(error.filename)} cannot be read ({error.strerror}); next: check its rights"
        raise wrong(path, at, why) from None
    except ValueError as error:
        raise wrong(path, at, error) from None


@dataclass(slots=True)
class _Held:
    """A prompt while others may still turn out to be the same."""

    at: str
    prompt: Prompt
    names: dict[str, None] = field(default_factory=dict)
    more: dict[str, Any] | None = None

    def join(self, other: Prompt) -> None:
        if other.num_seeds != self.prompt.num_seeds:
            raise ValueError(
                f"num_seeds: {other.num_seeds} here, {self.prompt.num_seeds} in {self.at} for the "
                "same prompt; next: make them one"
            )
        if other.name:
            self.names[other.name] = None
        if other.more != self.prompt.more:
            before = json.loads(self.prompt.more) if self.more is None else self.more
            self.more = _joined(before, json.loads(other.more))

    def whole(self) -> Prompt:
        if self.more is None and list(self.names) in ([], [self.prompt.name]):
            return self.prompt
        more = json.loads(self.prompt.more) if self.more is None else self.more
        names = {"names": list(self.names)} if len(self.names) > 1 else {}
        text = json.dumps(more | names, ensure_ascii=False, sort_keys=True)
        return replace(self.prompt, name=next(iter(self.names), ""), more=text)


def _distinct(path: Path, found: Iterable[tuple[str, Prompt]]) -> Suite:
    held: dict[str, _Held] = {}
    count = 0
    for at, prompt in found:
        count += 1
        kept = held.setdefault(prompt.id, _Held(at=at, prompt=prompt))
        try:
            kept.join(prompt)
        except ValueError as error:
            raise wrong(path, at, error) from None
    if not held:
        raise WrongInput(f"{shown(path)}: holds no prompt; next: write one a line")
    return Suite(prompts=tuple(one.whole() for one in held.values()), duplicates=count - len(held))


def _joined(one: Any, other: Any) -> Any:
    """Return two values of a column as one: objects key by key, what else differs as a list."""
    if one == other:
        return one
    if isinstance(one, dict) and isinstance(other, dict):
        shared = {key: _joined(one[key], other[key]) for key in one if key in other}
        return one | other | shared
    lists = [value if isinstance(value, list) else [value] for value in (one, other)]
    return lists[0] + [value for value in lists[1] if value not in lists[0]]
