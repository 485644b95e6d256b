"""What others may write for us: captioners, scorers, embedders, shot detectors, keep rules.

A recipe names one as `use = "package.module:Class"`; its other keys are the constructor's arguments.
It is loaded and checked before Ray starts, and again in each worker: a constructor should be cheap,
and weights loaded with the first call. `ingest.conformance.check` tests what no type says.
"""

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from ingest.clip import digest_of
from ingest.clips import SCORE_NAME, own_columns

Kind = Literal["captioner", "scorer", "embedder", "shot_detector", "keep_rule"]
NAME = re.compile("[a-z][a-z0-9_]{0,62}")
NOTHING: Mapping[str, Any] = MappingProxyType({})


class NotAStage(ValueError):
    """What a recipe names with `use` cannot be had, or does not keep the protocol of its kind."""

    exit_code = 2


class NotKnownHere(Exception):
    """What would decide a clip's answer cannot be seen from here; what was said of it stays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A clip as a stage sees it: its frames (uint8 RGB THWC, those that the stage asked for) and facts.

    `fps` is the clip's own rate. `facts` are the columns of the relation `clips`, and `embedding`
    (float32, length 1) where the stage asked for it. Neither may be changed.
    """

    clip_id: str
    frames_THWC: np.ndarray
    fps: float
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a stage has nothing for one clip; one that is `final` is not tried again by later runs."""

    error_class: str
    message: str
    final: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreFact:
    """What a score is; name: a column of clips, direction: "higher", "lower" or "middle" is better."""

    name: str
    unit: str
    range: str
    direction: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """How a stage wants to run; a stage without `needs` gets these defaults.

    `frames` are spread evenly over the clip ("all", or 0 for a stage that reads facts only).
    A `costly` one is built once in each of as many actors as fit (at most `max_workers`, 0 = all);
    else each batch is a task. `num_gpus` is for each actor, and 0 on a cluster without any. With
    `embedding`, facts hold that of the clip. A worker whose call (a batch) takes longer than
    `call_timeout_s` is ended; the clips are tried one by one, and one that takes so long alone has
    failed. An `inline` one runs in the driver, and nothing ends it.
    """

    frames: int | Literal["all"] = 8
    batch_clips: int = 8
    costly: bool = False
    inline: bool = False
    embedding: bool = False
    max_workers: int = 0
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory_bytes: int = 0
    call_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        """Check counts and the limit."""
        few = (self.frames != "all" and self.frames < 0) or self.batch_clips < 1
        if few or not self.call_timeout_s > 0:
            words = 'frames at least 0 or "all", batch_clips at least 1, call_timeout_s more than 0'
            raise ValueError(f"needs: {words}")


@runtime_checkable
class Named(Protocol):
    """What every stage tells of itself: with equal names, versions and settings its answers are equal."""

    name: str
    version: str

    def settings(self) -> Mapping[str, Any]:
        """Return what decides the answers beside the clip, as JSON values: prompts, hashes of weights."""
        ...


@runtime_checkable
class Captioner(Named, Protocol):
    """Says what is to be seen. `decides` may be defined too; see `decided`."""

    def __call__(self, clips: Sequence[Seen]) -> Sequence[str | Failure]:
        """Return a caption, or why there is none, for each clip; what is beside it in a batch is no matter."""
        ...


@runtime_checkable
class Scorer(Named, Protocol):
    """Measures; a score that cannot be had is None. `decides` may be defined too; see `decided`."""

    scores: tuple[ScoreFact, ...]

    def __call__(self, clips: Sequence[Seen]) -> Sequence[Mapping[str, float | None] | Failure]:
        """Return a value for each of `scores` by its name, for each clip."""
        ...


@runtime_checkable
class Embedder(Named, Protocol):
    """Gives each clip a vector of length 1."""

    def __call__(self, clips: Sequence[Seen]) -> Sequence[np.ndarray | Failure]:
        """Return a float vector (D,) for each clip, D always the same."""
        ...


@runtime_checkable
class ShotDetector(Named, Protocol):
    """Says of each frame of one source, in order, whether a new shot begins with it; one object a source."""

    def look(self, small_HW: np.ndarray, at_s: Fraction) -> list[bool]:
        """Take the next frame (uint8 luma, shorter side at most 64 px), on screen from `at_s`; return the flags now certain."""
        ...

    def end(self) -> list[bool]:
        """Return the flags of the last frames: in all there is one for each frame."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Objection:
    """Why a keep rule rejects a clip, as its fate will tell."""

    score: float | None = None
    threshold: float | None = None
    message: str = ""


@runtime_checkable
class KeepRule(Named, Protocol):
    """Decides over columns: `needs_scores` are read, nothing else of the clip is."""

    needs_scores: tuple[str, ...]

    def __call__(self, rows: Sequence[Mapping[str, float | None]]) -> Sequence[Objection | None]:
        """Return for each clip None to keep it, or the objection; a score that is missing is None."""
        ...


PROTOCOLS: Mapping[Kind, type] = {
    "captioner": Captioner,
    "scorer": Scorer,
    "embedder": Embedder,
    "shot_detector": ShotDetector,
    "keep_rule": KeepRule,
}
_METHODS: Mapping[Kind, Mapping[str, int]] = {
    "captioner": {"settings": 0, "__call__": 1},
    "scorer": {"settings": 0, "__call__": 1},
    "embedder": {"settings": 0, "__call__": 1},
    "shot_detector": {"settings": 0, "look": 2, "end": 0},
    "keep_rule": {"settings": 0, "__call__": 1},
}


def load(use: str, settings: Mapping[str, Any], kind: Kind) -> Any:
    """Return the stage that a recipe names, constructed with its keys and checked; raises NotAStage."""
    made = _constructed(use, _class(use), settings)
    if problem := problem_of(made, kind):
        raise NotAStage(f"use = {use!r}: {problem}")
    return made


def problem_of(stage: Any, kind: Kind) -> str:
    """Return what keeps an object from being a stage of a kind, in one line, "" for nothing."""
    wanted = f"not a {kind.replace('_', ' ')}"
    for name in ("name", "version"):
        value = getattr(stage, name, None)
        if not isinstance(value, str) or not value:
            return f"{wanted}: it needs a text {name!r}"
    if not NAME.fullmatch(stage.name):
        return f"{wanted}: name {stage.name!r} is not a word of a-z, 0-9 and _"
    for method, arguments in _METHODS[kind].items():
        if not _takes(getattr(stage, method, None), arguments):
            return f"{wanted}: it needs a method {method!r} that takes {arguments} arguments"
    try:
        digest_of(dict(stage.settings()))
    except Exception as error:  # noqa: BLE001  somebody else's code may raise anything
        return f"its settings(): {type(error).__name__}: {error}"
    if not isinstance(needs_of(stage), Needs):
        return f"{wanted}: its `needs` is no ingest.stage.Needs"
    return _own_problem(stage, kind, wanted)


def _own_problem(stage: Any, kind: Kind, wanted: str) -> str:
    if kind == "keep_rule":
        scores = getattr(stage, "needs_scores", None)
        if not isinstance(scores, tuple) or not all(isinstance(name, str) for name in scores):
            return f"{wanted}: it needs a tuple of names 'needs_scores'"
    if kind != "scorer":
        return ""
    facts = getattr(stage, "scores", None)
    if not isinstance(facts, tuple) or not facts:
        return f"{wanted}: it needs a tuple of ingest.stage.ScoreFact 'scores'"
    for fact in facts:
        if not isinstance(fact, ScoreFact):
            return f"{wanted}: {fact!r} is no ingest.stage.ScoreFact"
        if not SCORE_NAME.fullmatch(fact.name) or fact.name in own_columns():
            return f"{wanted}: {fact.name!r} cannot be a score's name, or is a column already"
    return ""


def needs_of(stage: Any) -> Needs:
    """Return how a stage wants to run."""
    return getattr(stage, "needs", Needs())


def producer_of(stage: Named) -> str:
    """Return who says so, as annotations tell it."""
    return f"{stage.name}/{stage.version}"


def settings_digest(stage: Named, more: Mapping[str, Any] = NOTHING) -> str:
    """Return the hex digest of all that decides a stage's answers, `more` included."""
    told = {"name": stage.name, "version": stage.version, "settings": dict(stage.settings())}
    return digest_of(told | {"more": dict(more)})


def decided(stage: Any, facts: Mapping[str, Any]) -> str | None:
    """Return what of a clip's facts decides the answer (text beside it, say), None if it is to have none.

    A stage tells by a method `decides(facts)`. It may raise NotKnownHere: everything stays as it is.
    Whatever else it raises is the clip's failure.
    """
    tell = getattr(stage, "decides", None)
    return "" if tell is None else tell(facts)


def _takes(method: Any, count: int) -> bool:
    if not callable(method):
        return False
    try:
        inspect.signature(method).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


def _class(use: str) -> Any:
    place, colon, name = use.partition(":")
    if not colon or not place or not name:
        raise NotAStage(f'use = {use!r}: write it as "package.module:Class"')
    try:
        module = importlib.import_module(place)
    except Exception as error:  # somebody else's module may raise anything
        raise NotAStage(
            f"use = {use!r}: {place} cannot be imported ({type(error).__name__}: {error}); "
            "install it where this runs and on every worker"
        ) from error
    if not hasattr(module, name):
        raise NotAStage(f"use = {use!r}: {place} has no {name}")
    return getattr(module, name)


def _constructed(use: str, made_by: Any, settings: Mapping[str, Any]) -> Any:
    try:
        inspect.signature(made_by).bind(**settings)
    except (TypeError, ValueError) as error:
        raise NotAStage(f"use = {use!r}: its keys do not fit: {error}") from error
    try:
        return made_by(**settings)
    except Exception as error:  # somebody else's constructor may raise anything
        raise NotAStage(f"use = {use!r}: {type(error).__name__}: {error}") from error
