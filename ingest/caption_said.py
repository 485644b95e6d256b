"""What people said of a video, as stages: a manifest's words, a file beside it, its name, its label.

They read facts and small files, no frames, and run where the driver does: what decides a caption is
its very text, so that a changed side file changes the captions of its clips and nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ingest.caption import Captions, beside, best_row, named
from ingest.caption_file import matched
from ingest.sources import Source
from ingest.stage import Needs, NotKnownHere, Seen

LEAST_S = 1.0  # a picture lasts no time, but what is said of a file is said of it too
Ask = Callable[[Mapping[str, Any]], str]


class Spoken:
    """A stage of a name over a function from facts to text; "" is nothing said.

    The function raises NotKnownHere where it cannot be known from here what is said.
    """

    version = "v1"
    needs = Needs(frames=0, batch_clips=256, inline=True)

    def __init__(self, name: str, ask: Ask) -> None:
        self.name, self._ask = name, ask

    def settings(self) -> Mapping[str, Any]:
        """Return nothing: the text itself decides."""
        return {}

    def decides(self, facts: Mapping[str, Any]) -> str | None:
        """Return the text, None where nothing is said."""
        return self._ask(facts) or None

    def __call__(self, clips: Sequence[Seen]) -> list[str]:
        """Return what is said of each clip."""
        return [self._ask(clip.facts) for clip in clips]


def sidecar(captions: Captions, listed: Mapping[str, Source]) -> Spoken:
    """Return the captioner that reads the caption file and the files beside the videos.

    Raises OSError, and ValueError naming a wrong line of the caption file.
    """
    file = captions.caption_file
    rows = matched(file, (source.uri for source in listed.values())).rows if file else {}
    texts: dict[str, str] = {}

    def ask(facts: Mapping[str, Any]) -> str:
        video = _path(facts, listed)
        if file:
            source = listed.get(facts["source_uri"])
            if source is None:
                raise NotKnownHere("whose row it would be is known of listed videos only")
            if text := best_row(rows.get(source.uri, ()), *_period(facts)):
                return text
        if str(video) not in texts:
            text = beside(video)
            if not text and not video.exists():
                raise NotKnownHere(f"{video} cannot be seen from here")
            texts[str(video)] = text
        return texts[str(video)]

    return Spoken("sidecar", ask)


def name(listed: Mapping[str, Source]) -> Spoken:
    """Return the captioner that reads the words of a video's name."""
    return Spoken("name", lambda facts: named(_path(facts, listed), 0.0, 0.0))


def manifest(listed: Mapping[str, Source]) -> Spoken:
    """Return the captioner for what the listing of the sources said of them, by period."""

    def ask(facts: Mapping[str, Any]) -> str:
        said = _said(facts, listed)
        return best_row(said.captions, *_period(facts)) if said else ""

    return Spoken("manifest", ask)


def label(listed: Mapping[str, Source]) -> Spoken:
    """Return the stage for the labels that the listing of the sources gave them."""

    def ask(facts: Mapping[str, Any]) -> str:
        said = _said(facts, listed)
        return said.label if said else ""

    return Spoken("manifest", ask)


def _said(facts: Mapping[str, Any], listed: Mapping[str, Source]) -> Any:
    source = listed.get(facts["source_uri"])
    if source is None:
        raise NotKnownHere(f"{facts['source_uri']} is not listed by this run")
    return getattr(source, "said", None)


def _path(facts: Mapping[str, Any], listed: Mapping[str, Source]) -> Path:
    source = listed.get(facts["source_uri"])  # whose name may hold bytes that no table can
    return Path(source.uri if source else facts["source_uri"] or "")


def _period(facts: Mapping[str, Any]) -> tuple[float, float]:
    start_s, end_s = float(facts["start_s"] or 0.0), float(facts["end_s"] or 0.0)
    return start_s, end_s if end_s > start_s else start_s + LEAST_S
