"""Which scores are taken of stored clips, by models that look at their payloads."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingest.no_secrets import refuse

OWN = 'one of your own is named by a table with use = "package.module:Class"'
BUILT_IN = ("embeddings", "text_match", "aesthetic")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipWeights:
    """An open_clip model and its weights: a file with its sha256, or a tag that is in the local cache.

    `model` is a name of open_clip's or the path of a model config (.json); "" is none.
    """

    model: str = ""
    path: Path | None = None
    sha256: str = ""
    tag: str = ""

    def __post_init__(self) -> None:
        """Refuse weights that nothing pins."""
        if self.model and self.path is None and not self.tag:
            raise ValueError(f"weights of {self.model}: give path and sha256, or a tag")
        if self.path is not None and not self.sha256:
            raise ValueError(f"weights of {self.model}: path needs sha256; sha256sum {self.path}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Aesthetic:
    """LAION's head over the embeddings: a file and its sha256."""

    path: Path | None = None
    sha256: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorers:
    """Which scorers to run on kept clips; one of your own is {use = "package.module:Class", ...}.

    `embeddings` stores an open_clip vector a clip, of `frames` frames; `text_match` (cosine with the
    clip's caption) and `aesthetic` are computed from those, so that no payload is decoded again.
    `embedder` is one of your own, {use = "package.module:Class", ...}: its vectors are stored too, and
    are what your own stages that need embeddings are given, in place of open_clip's.
    """

    scorers: tuple[str | dict[str, Any], ...] = ()
    weights: ClipWeights = field(default_factory=ClipWeights)
    frames: int = 8
    aesthetic: Aesthetic = field(default_factory=Aesthetic)
    embedder: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a scorer that does not exist or lacks its weights."""
        for one in self.scorers:
            if isinstance(one, str) and one not in BUILT_IN:
                raise ValueError(f"scorer {one!r} is unknown; there are {', '.join(BUILT_IN)}")
            if not isinstance(one, str) and not isinstance(one.get("use"), str):
                raise ValueError(OWN)  # noqa: TRY004 - bad data, no bug
        refuse((*self.scorers, self.embedder), "scorers")
        if self.embedder and not isinstance(self.embedder.get("use"), str):
            raise ValueError('embedder: name it with use = "package.module:Class"')
        built_in = [one for one in self.scorers if isinstance(one, str)]
        if built_in and not self.weights.model:
            raise ValueError(
                f"{built_in[0]}: needs weights, an open_clip model with path and sha256"
            )
        if "aesthetic" in built_in and (self.aesthetic.path is None or not self.aesthetic.sha256):
            raise ValueError("aesthetic: needs the head's path and sha256")
        if self.frames < 1:
            raise ValueError("frames: at least 1")
