"""The passes that a recipe asks for: labels, embeddings, captioners in their order, then scorers.

What looks at frames is loaded by its name, so that neither this process nor a worker of light passes loads a model's library.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ingest import caption_said, stage
from ingest.caption import SPOKEN, Captions
from ingest.scorers import ClipWeights, Scorers
from ingest.sources import Source
from ingest.stage import Kind, NotAStage, needs_of
from pipelines.context import Show, silent
from pipelines.made import made
from pipelines.passes import Pass, TableName
from pipelines.pinned import pinned, verify

LEARNED = {
    "coca": "pipelines.clip_stages:Coca",
    "tags": "pipelines.clip_stages:Tags",
    "openai": "pipelines.openai:Endpoint",
    "embeddings": "pipelines.clip_stages:Embeddings",
    "text_match": "pipelines.clip_stages:TextMatch",
    "aesthetic": "pipelines.clip_stages:Aesthetic",
}


def passes_of(
    captions: Captions,
    scorers: Scorers | None = None,
    sources: Sequence[Source] = (),
    *,
    show: Show = silent,
) -> tuple[Pass, ...]:
    """Return the passes of a recipe, checked, their weights read and compared with their sha256.

    Files that are not there are told first; no clip is looked at and Ray is not needed. `sources` are
    those that the run listed; what their listing said of them is what `manifest` says. Raises
    stage.NotAStage, and FileNotFoundError or ValueError for a caption file or weights that are not there
    or not what the recipe says.
    """
    captions.check()
    wanted = scorers or Scorers()
    listed = {source.printable_uri: source for source in sources}
    ours = "tags" in captions.captioners or any(isinstance(s, str) for s in wanted.scorers)
    pinned(
        captions, wanted, embedded=ours
    )  # first: what is missing is told before a model's library is loaded
    said = [_captioner(one, captions, wanted, listed) for one in captions.captioners]
    said = [replace(one, rank=rank) for rank, one in enumerate(said)]
    scored = [_scorer(one, wanted) for one in wanted.scorers if one != "embeddings"]
    vectors = _embeddings(wanted, ours=ours, asked=[*said, *scored])
    found = [*_labels(listed), *vectors.values(), *_given(said, vectors), *_given(scored, vectors)]
    _refuse_doubles(found)
    files = pinned(captions, wanted, embedded=True in vectors)
    verify(files, lambda text: show({"event": "stage", "text": text}))
    return tuple(found)


def _labels(listed: Mapping[str, Source]) -> list[Pass]:
    if not listed:
        return []
    # Also where no source has a label any more: those that the listing gave before go.
    said = caption_said.label(listed)
    return [Pass(table="labels", make=lambda: said, stage=said)]


def _captioner(
    one: str | dict[str, Any], captions: Captions, scorers: Scorers, listed: Mapping[str, Source]
) -> Pass:
    how = {"clean": captions.clean, "chained": not captions.several}
    if not isinstance(one, str):
        return _own(one, "captioner", "captions", **how)
    if one in SPOKEN:
        return _spoken(one, captions, listed, **how)
    settings: dict[str, Any] = {"config": getattr(captions, one)}
    if one == "tags":
        settings |= {"weights": _weights(scorers), "words": _words(captions)}
    return _pass(LEARNED[one], settings, "captioner", "captions", **how)


def _spoken(one: str, captions: Captions, listed: Mapping[str, Source], **how: Any) -> Pass:
    ways = {
        "manifest": lambda: caption_said.manifest(listed),
        "sidecar": lambda: caption_said.sidecar(captions, listed),
        "name": lambda: caption_said.name(listed),
    }
    said = ways[one]()
    return Pass(table="captions", make=lambda: said, stage=said, **how)


def _words(captions: Captions) -> tuple[str, ...]:
    """Return the words of the vocabulary; read here, for the file need not be on every worker."""
    path = captions.tags.vocabulary
    if path is None:
        raise NotAStage("tags: needs tags.vocabulary, a file of words, one a line")
    lines = (line.strip() for line in path.read_text("utf-8").splitlines())
    return tuple(line for line in lines if line)


def _weights(scorers: Scorers) -> ClipWeights:
    if not scorers.weights.model:
        raise NotAStage("tags: needs the scorers' weights, an open_clip model with path and sha256")
    return scorers.weights


def _embeddings(scorers: Scorers, *, ours: bool, asked: Sequence[Pass]) -> dict[bool, Pass]:
    """Return the passes that embed clips: what our stages read (True), and what stages from elsewhere read."""
    found: dict[bool, Pass] = {}
    others = [
        one.stage.name for one in asked if needs_of(one.stage).embedding and not _is_ours(one)
    ]
    if others and not scorers.embedder and not scorers.weights.model:
        raise NotAStage(
            f"{others[0]}: needs embeddings: give scorers.embedder, or scorers.weights of open_clip"
        )
    if ours or (others and not scorers.embedder):
        settings = {"weights": scorers.weights, "frames": scorers.frames}
        found[True] = _pass(LEARNED["embeddings"], settings, "embedder", "embeddings")
    if scorers.embedder:
        found[False] = _own(scorers.embedder, "embedder", "embeddings")
    return found


def _given(passes: Sequence[Pass], vectors: Mapping[bool, Pass]) -> list[Pass]:
    """Return the passes, those that read embeddings with the pass that makes these."""
    return [
        replace(one, vectors=vectors.get(_is_ours(one), vectors.get(True)))
        if needs_of(one.stage).embedding
        else one
        for one in passes
    ]


def _is_ours(one: Pass) -> bool:
    return f"{type(one.stage).__module__}:{type(one.stage).__qualname__}" in LEARNED.values()


def _scorer(one: str | dict[str, Any], scorers: Scorers) -> Pass:
    if not isinstance(one, str):
        try:
            return _own(one, "scorer", "scores")
        except NotAStage as error:
            hint = "; name an embedder with scorers.embedder" if "'scores'" in str(error) else ""
            raise NotAStage(f"{error}{hint}") from error
    settings: dict[str, Any] = {"weights": scorers.weights, "frames": scorers.frames}
    if one == "aesthetic":
        settings["head"] = scorers.aesthetic
    return _pass(LEARNED[one], settings, "scorer", "scores")


def _own(table: Mapping[str, Any], kind: Kind, name: TableName, **how: Any) -> Pass:
    settings = {key: value for key, value in table.items() if key != "use"}
    return _pass(table["use"], settings, kind, name, **how)


def _pass(use: str, settings: Mapping[str, Any], kind: Kind, table: TableName, **how: Any) -> Pass:
    loaded = stage.load(use, settings, kind)
    return Pass(table=table, make=partial(made, use, dict(settings), kind), stage=loaded, **how)


def _refuse_doubles(passes: Sequence[Pass]) -> None:
    """Two of one name would take each other's rows away at every run."""
    seen: set[tuple[str, str]] = set()
    for one in passes:
        key = one.table, one.stage.name
        if key in seen:
            raise NotAStage(f"two stages of {one.table} are called {one.stage.name!r}; rename one")
        seen.add(key)
    names = [f.name for p in passes if p.table == "scores" for f in p.stage.scores]
    if len(set(names)) < len(names):
        raise NotAStage(f"two scorers give a score of one name, of {', '.join(sorted(names))}")
