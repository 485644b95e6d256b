"""Prompts: read from a text file, a JSONL file, or the captions of a dataset."""

import hashlib
import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from ingest.objects import Root
from ingest.store import Dataset
from pipelines.output import WrongInput


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One prompt; its id is a hash of its text, so that it is the same in any set."""

    id: str
    text: str


def read_prompts(place: str | Path, limit: int | None) -> list[Prompt]:
    """Return the first `limit` distinct prompts of `place`, in its order; a dataset's in the order of its clips.

    Raises FileNotFoundError when there is no such file or dataset, WrongInput when it holds no prompt.
    """
    path = Path(place)
    if not Root.of(place).is_local or path.is_dir():
        texts = Dataset.open(place).kept_clips().column("caption").to_pylist()
    elif not path.exists():
        raise FileNotFoundError(f"{path}: no such prompt file or dataset")
    elif path.suffix == ".jsonl":
        texts = [_jsonl(path, number, line) for number, line in _lines(path)]
    else:
        texts = [line for _, line in _lines(path)]
    clean = [unicodedata.normalize("NFC", text.strip()) for text in texts]
    distinct = list(dict.fromkeys(text for text in clean if text))
    if not distinct:
        raise WrongInput(f"{place}: holds no prompt")
    return [Prompt(id=prompt_id(text), text=text) for text in distinct[:limit]]


def is_there(place: str) -> bool:
    """Whether there is such a file or dataset; one in an object store is taken to be there."""
    return not Root.of(place).is_local or Path(place).exists()


def prompt_id(text: str) -> str:
    """Return the id of a prompt: 16 hex digits of the sha256 of its NFC text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise WrongInput(f"{path}: is not UTF-8 text") from None
    return [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _jsonl(path: Path, number: int, line: str) -> str:
    try:
        found = json.loads(line)["prompt"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise WrongInput(f'{path}, line {number}: not an object with a "prompt"') from None
    if not isinstance(found, str):
        raise WrongInput(f'{path}, line {number}: "prompt" is not a text')
    return found
