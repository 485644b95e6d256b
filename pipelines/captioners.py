"""The passes that a recipe asks for: labels, embeddings, captioners in their order, then scorers.

What looks at frames is loaded by its name, so that neither this process nor a worker of light passes loads a model's library.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ingest import caption_said, stage
from ingest.caption import SPOKEN, Captions
from ingest.scorers import Scorers
from ingest.sources import Source
from ingest.stage import Kind, NotAStage
from pipelines.passes import Pass, TableName

LEARNED = {
    "coca": "pipelines.clip_stages:Coca",
    "tags": "pipelines.clip_stages:Tags",
    "openai": "pipelines.openai:Endpoint",
    "embeddings": "pipelines.clip_stages:Embeddings",
    "text_match": "pipelines.clip_stages:TextMatch",
    "aesthetic": "pipelines.clip_stages:Aesthetic",
}


def passes_of(
    captions: Captions, scorers: Scorers | None = None, sources: Sequence[Source] = ()
) -> tuple[Pass, ...]:
    """Return the passes of a recipe, checked: nothing is looked at yet, and Ray is not needed.

    `sources` are those that the run listed; what their listing said of them is what `manifest` says.
    Raises stage.NotAStage, and what a caption file or weights that are not there raise.
    """
    captions.check()
    wanted = scorers or Scorers()
    listed = {source.printable_uri: source for source in sources}
    found = _labels(listed)
    embedded = "tags" in captions.captioners or any(isinstance(s, str) for s in wanted.scorers)
    vectors = _embeddings(wanted) if embedded else None
    found += [vectors] if vectors else []
    for rank, one in enumerate(captions.captioners):
        how = {"rank": rank, "clean": captions.clean, "chained": not captions.several}
        if one == "tags":
            how |= {"vectors": vectors}
        if isinstance(one, str) and one in SPOKEN:
            found.append(_spoken(one, captions, listed, **how))
        elif isinstance(one, str):
            settings: dict[str, Any] = {"config": getattr(captions, one)}
            if one == "tags":
                settings |= {"weights": wanted.weights, "words": _words(captions)}
            found.append(_pass(LEARNED[one], settings, "captioner", "captions", **how))
        else:
            found.append(_own(one, "captioner", "captions", **how))
    found += [_scorer(one, wanted, vectors) for one in wanted.scorers if one != "embeddings"]
    _refuse_doubles(found)
    return tuple(found)


def _labels(listed: Mapping[str, Source]) -> list[Pass]:
    if not listed:
        return []
    # Also where no source has a label any more: those that the listing gave before go.
    made = caption_said.label(listed)
    return [Pass(table="labels", make=lambda: made, stage=made)]


def _spoken(one: str, captions: Captions, listed: Mapping[str, Source], **how: Any) -> Pass:
    ways = {
        "manifest": lambda: caption_said.manifest(listed),
        "sidecar": lambda: caption_said.sidecar(captions, listed),
        "name": lambda: caption_said.name(listed),
    }
    made = ways[one]()
    return Pass(table="captions", make=lambda: made, stage=made, **how)


def _words(captions: Captions) -> tuple[str, ...]:
    """Return the words of the vocabulary; read here, for the file need not be on every worker."""
    path = captions.tags.vocabulary
    if path is None:
        raise NotAStage("tags: needs tags.vocabulary, a file of words, one a line")
    lines = (line.strip() for line in path.read_text("utf-8").splitlines())
    return tuple(line for line in lines if line)


def _embeddings(scorers: Scorers) -> Pass:
    if not scorers.weights.model:
        raise NotAStage("tags: needs the scorers' weights, an open_clip model with path and sha256")
    settings = {"weights": scorers.weights, "frames": scorers.frames}
    return _pass(LEARNED["embeddings"], settings, "embedder", "embeddings")


def _scorer(one: str | dict[str, Any], scorers: Scorers, vectors: Pass | None) -> Pass:
    if not isinstance(one, str):
        return _own(one, "scorer", "scores")
    settings: dict[str, Any] = {"weights": scorers.weights, "frames": scorers.frames}
    if one == "aesthetic":
        settings["head"] = scorers.aesthetic
    return _pass(LEARNED[one], settings, "scorer", "scores", vectors=vectors)


def _own(table: Mapping[str, Any], kind: Kind, name: TableName, **how: Any) -> Pass:
    settings = {key: value for key, value in table.items() if key != "use"}
    return _pass(table["use"], settings, kind, name, **how)


def _pass(use: str, settings: Mapping[str, Any], kind: Kind, table: TableName, **how: Any) -> Pass:
    make = partial(stage.load, use, dict(settings), kind)
    return Pass(table=table, make=make, stage=make(), **how)


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
