"""MSR-VTT's layout: one JSON file with `videos` and `sentences`, and files called video0.mp4 and so on.

Xu et al., MSR-VTT: A Large Video Description Dataset, CVPR 2016. Its categories become labels.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ingest.manifests import text
from ingest.sayings import SayingError, json_object, saying, text_of
from ingest.source import Said, Source, suffix_of

SUFFIX = ".json"


def sources(place: str, find: Callable[[str], Iterable[Source]]) -> Iterator[Source]:
    """Yield the videos of an MSR-VTT file, each with its category and all its sentences.

    `find` lists the videos in a folder; they lie anywhere below the file's. One that is missing is
    listed too. Raises ValueError that names the file and the entry that is wrong.
    """
    folder = place.rpartition("/")[0]
    said = _said(place)
    found: dict[str, Source] = {}
    for source in find(folder or "/"):
        base = source.uri.rpartition("/")[2]
        stem = base.removesuffix(base[len(base) - len(suffix_of(base)) :])
        if stem in said and stem in found:
            raise ValueError(f"{place}: {stem} is {found[stem].uri} and {source.uri}")
        found[stem] = source
    for name, words in said.items():
        missing = Source(uri=f"{folder}/{name}.mp4", bytes=0, mtime_ns=0)
        yield replace(found.get(name, missing), said=words)


def _said(place: str) -> dict[str, Said]:
    try:
        values = json_object(text(place))
    except SayingError as error:
        raise ValueError(f"{place}: {error}") from error
    said: dict[str, Said] = {}
    for at, video in enumerate(_list(values, "videos", place)):
        with_place = f"{place}: videos[{at}]"
        name = _name(video, with_place)
        if name in said:
            raise ValueError(f"{with_place}: {name!r} is named twice")
        said[name] = _saying({"label": video.get("category")}, with_place)
    captions: dict[str, list[Said]] = {name: [] for name in said}
    for at, sentence in enumerate(_list(values, "sentences", place)):
        with_place = f"{place}: sentences[{at}]"
        name = _name(sentence, with_place)
        if name not in said:
            raise ValueError(f"{with_place}: {name!r} is not among the videos")
        captions[name].append(_saying({"caption": sentence.get("caption")}, with_place))
    return {
        name: replace(
            words, captions=tuple(dict.fromkeys(c for one in captions[name] for c in one.captions))
        )
        for name, words in said.items()
    }


def _list(values: Mapping[str, Any], name: str, place: str) -> list[Mapping[str, Any]]:
    listed = values.get(name)
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise ValueError(f"{place}: no MSR-VTT file: a list {name!r} of objects is wanted")
    return listed


def _name(values: Mapping[str, Any], place: str) -> str:
    name = values.get("video_id")
    if not isinstance(name, str) or not name or "/" in name or "\0" in name:
        raise ValueError(f"{place}: video_id={name!r} is no name of a video")
    return name


def _saying(values: Mapping[str, Any], place: str) -> Said:
    try:
        text_of(values, "caption")
        return saying(values)
    except SayingError as error:
        raise ValueError(f"{place}: {error}") from error
