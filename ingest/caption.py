"""Captions: which captioners are asked, and what people already wrote in files beside the videos.

The first captioner that has something to say gives the clip's caption; who said it is stored.
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ingest.caption_clean import CAPTION_CHARS, Clean
from ingest.caption_file import rows_of
from ingest.clip import digest_of
from ingest.ledger import printable
from ingest.no_secrets import refuse, refuse_variable
from ingest.scorers import OWN, ClipWeights

SPOKEN = ("manifest", "sidecar", "name")  # what people said; no frame is looked at
LEARNED = ("coca", "openai", "tags")
SIDECAR_BYTES = 1 << 20
_BREAKS = re.compile(r"[\W_]+", re.UNICODE)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True, kw_only=True, slots=True)
class Coca:
    """A CoCa model of open_clip that captions `frames` of a clip and takes the caption nearest to it."""

    weights: ClipWeights = field(default_factory=ClipWeights)
    frames: int = 1
    num_beams: int = 4
    min_tokens: int = 5
    max_tokens: int = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Tags:
    """Words of a vocabulary (a file, one a line) that are nearest to the embedding of a clip.

    The caption is `form` with {} for the `count` nearest words, commas between; those whose cosine
    is below `min_cosine` are left out. The model is that of the scorers' embeddings.
    """

    vocabulary: Path | None = None
    count: int = 3
    min_cosine: float = -1.0
    template: str = "a video of {}"
    form: str = "{}"

    def __post_init__(self) -> None:
        """Check the texts with a place in them."""
        if "{}" not in self.template or "{}" not in self.form or self.count < 1:
            raise ValueError("tags: template and form must hold {}, count is at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenAI:
    """A vision endpoint that speaks OpenAI's chat completions, such as a vLLM server's.

    `url` is the base ("https://host/v1"). The key is read from the environment variable `key_env` of
    the worker and written nowhere; "" sends none. `frames` go as JPEG, `frame_px` on the long side.
    `requests_a_minute` = 0 means as many as `concurrency` allows. A request that fails `attempts`
    times, or twice takes `timeout_s`, is that clip's failure; `give_up_after` of those in a row end
    the run, or two where the endpoint did not answer at all.
    """

    url: str = ""
    model: str = ""
    prompt: str = "Describe this video in one sentence."
    key_env: str = "OPENAI_API_KEY"
    frames: int = 4
    frame_px: int = 512
    jpeg_quality: int = 90
    max_tokens: int = 200
    temperature: float = 0.0
    concurrency: int = 8
    requests_a_minute: float = 0.0
    timeout_s: float = 120.0
    attempts: int = 6
    max_wait_s: float = 60.0
    give_up_after: int = 20

    def __post_init__(self) -> None:
        """Check counts and times, and that no key is where its variable's name should be."""
        refuse_variable(self.key_env, "openai.key_env")
        if "@" in self.url or "?" in self.url:
            raise ValueError("openai: url holds a key; name an environment variable with key_env")
        if min(self.frames, self.frame_px, self.concurrency, self.attempts, self.give_up_after) < 1:
            raise ValueError(
                "openai: frames, frame_px, concurrency, attempts, give_up_after at least 1"
            )
        if min(self.timeout_s, self.max_wait_s) <= 0 or self.requests_a_minute < 0:
            raise ValueError(
                "openai: timeout_s and max_wait_s above 0, requests_a_minute at least 0"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Captions:
    """Which captioners to ask, in order; a later one is asked for clips that the earlier left without.

    With `several` each is asked for every clip, and the first in order is preferred. One of your own
    is a table `{use = "package.module:Class", ...}` with its constructor's keys (see ingest.stage).
    `caption_file` answers for `sidecar` before the sidecar; its rows are {"video": name or path,
    "caption": text} with optional "start_s" and "end_s" (see caption_file).
    """

    captioners: tuple[str | dict[str, Any], ...] = SPOKEN
    caption_file: Path | None = None
    several: bool = False
    clean: Clean = field(default_factory=Clean)
    coca: Coca = field(default_factory=Coca)
    openai: OpenAI = field(default_factory=OpenAI)
    tags: Tags = field(default_factory=Tags)

    def __post_init__(self) -> None:
        """Refuse a captioner that does not exist, or is named twice."""
        built_in = (*SPOKEN, *LEARNED)
        for one in self.captioners:
            if isinstance(one, str) and one not in built_in:
                raise ValueError(f"captioner {one!r} is unknown; there are {', '.join(built_in)}")
            if not isinstance(one, str) and not isinstance(one.get("use"), str):
                raise ValueError(OWN)  # noqa: TRY004 - bad data, no bug
        refuse(self.captioners, "captioners")
        named = [one for one in self.captioners if isinstance(one, str)]
        if len(set(named)) < len(named):
            raise ValueError(f"captioners: {', '.join(named)}: one is named twice")

    def digest(self) -> str:
        """Return the hex sha256 of the settings."""
        return digest_of(_plain(asdict(self)))

    def check(self) -> None:
        """Read the caption file once; raises FileNotFoundError, or ValueError naming the line."""
        if self.caption_file is not None:
            rows_of(self.caption_file)


def beside(video: Path) -> str:
    """Return what a .txt or else a .json beside a video says of it; "" for nothing."""
    for path in sidecars(video):
        raw = small(path).decode("utf-8", "replace")
        text = raw if path.suffix == ".txt" else _from_json(raw)
        if text.strip():
            return text
    return ""


def sidecars(video: Path) -> tuple[Path, Path]:
    """Return where what is said of a video may lie beside it, in the order of preference."""
    return video.with_suffix(".txt"), video.with_suffix(".json")


def small(path: Path) -> bytes:
    """Return how a file begins, SIDECAR_BYTES at most; nothing for what is no file, or cannot be read."""
    try:
        if path.is_file():  # a pipe of such a name would be waited on
            with path.open("rb") as file:
                return file.read(SIDECAR_BYTES)
    except (OSError, ValueError):  # ValueError: a name with a null character
        pass
    return b""


def clean(text: str) -> str:
    """Return text on one line in NFC, without control characters, at most CAPTION_CHARS long."""
    # File names of some systems come decomposed; a prompt typed by a person would not match them.
    whole = unicodedata.normalize("NFC", printable(text))
    return " ".join(whole.split())[:CAPTION_CHARS].rstrip()


def _from_json(raw: str) -> str:
    try:
        value = json.loads(raw)
    except ValueError:
        return ""
    text = value.get("caption") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def named(video: Path, _start_s: float, _end_s: float) -> str:
    """Return what the name of a video says, in small letters and without numbers; "" for nothing."""
    words = _BREAKS.sub(" ", _CAMEL.sub(" ", printable(video.stem))).split()
    return " ".join(word.lower() for word in words if not word.isdigit())


class Timed(Protocol):
    """A text that holds from when to when."""

    @property
    def text(self) -> str:
        """What is said."""
        ...

    @property
    def start_s(self) -> float:
        """From when."""
        ...

    @property
    def end_s(self) -> float:
        """To when, exclusive; may be infinite."""
        ...


def best_row(rows: Sequence[Timed], start_s: float, end_s: float) -> str:
    """Return the text that overlaps a period most, the first of equal ones; "" where none does."""

    def overlap_s(row: Timed) -> float:
        return min(row.end_s, end_s) - max(row.start_s, start_s)

    best = max(rows, key=overlap_s, default=None)
    return best.text if best is not None and overlap_s(best) > 0 else ""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
