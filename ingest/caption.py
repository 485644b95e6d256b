"""Captions that people already wrote: a file beside the video, rows of a JSON Lines file, its name.

The first captioner that has something to say gives the clip's caption; who said it is stored.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from ingest.clip import digest_of
from ingest.ledger import printable

CAPTION_CHARS = 2000
SIDECAR_BYTES = 1 << 20
_BREAKS = re.compile(r"[\W_]+", re.UNICODE)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """A cleaned caption, who produced it, and that producer's place in the order of preference."""

    text: str
    producer: str
    rank: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Captions:
    """Which captioners to ask, in order; `caption_file` answers for `sidecar` before the sidecar.

    Its rows are {"video": file name, "caption": text} with optional "start_s" and "end_s".
    """

    captioners: tuple[Literal["sidecar", "name"], ...] = ("sidecar", "name")
    caption_file: Path | None = None

    def __post_init__(self) -> None:
        """Refuse a captioner that does not exist."""
        for name in self.captioners:
            if name not in CAPTIONERS:
                raise ValueError(
                    f"captioner {name!r} is unknown; there are {', '.join(CAPTIONERS)}"
                )

    def digest(self) -> str:
        """Return the hex sha256 of the settings."""
        return digest_of(asdict(self) | {"caption_file": str(self.caption_file or "")})

    def check(self) -> None:
        """Read the caption file once; raises FileNotFoundError, or ValueError naming the line."""
        if self.caption_file is not None:
            _rows(self.caption_file)

    def caption(self, video: Path, start_s: float, end_s: float) -> Caption | None:
        """Return the caption of clip [start_s, end_s) of a video, or None when nobody has one."""
        for rank, name in enumerate(self.captioners):
            text = clean(CAPTIONERS[name](self, video, start_s, end_s))
            if text:
                return Caption(text=text, producer=f"{name}/v1", rank=rank)
        return None


def clean(text: str) -> str:
    """Return text on one line in NFC, without control characters, at most CAPTION_CHARS long."""
    # File names of some systems come decomposed; a prompt typed by a person would not match them.
    whole = unicodedata.normalize("NFC", printable(text))
    return " ".join(whole.split())[:CAPTION_CHARS].rstrip()


def _sidecar(captions: Captions, video: Path, start_s: float, end_s: float) -> str:
    if captions.caption_file is not None:
        text = _best_row(_rows(captions.caption_file).get(video.name, ()), start_s, end_s)
        if text:
            return text
    for beside in (video.with_suffix(".txt"), video.with_suffix(".json")):
        try:
            with beside.open("rb") as file:
                raw = file.read(SIDECAR_BYTES).decode("utf-8", "replace")
        except OSError:
            continue
        text = raw if beside.suffix == ".txt" else _from_json(raw)
        if text.strip():
            return text
    return ""


def _from_json(raw: str) -> str:
    try:
        value = json.loads(raw)
    except ValueError:
        return ""
    text = value.get("caption") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def _name(_captions: Captions, video: Path, _start_s: float, _end_s: float) -> str:
    words = _BREAKS.sub(" ", _CAMEL.sub(" ", printable(video.stem))).split()
    return " ".join(word.lower() for word in words if not word.isdigit())


CAPTIONERS: dict[str, Callable[[Captions, Path, float, float], str]] = {
    "sidecar": _sidecar,
    "name": _name,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    start_s: float
    end_s: float
    text: str


def _best_row(rows: tuple[_Row, ...], start_s: float, end_s: float) -> str:
    def overlap_s(row: _Row) -> float:
        return min(row.end_s, end_s) - max(row.start_s, start_s)

    best = max(rows, key=overlap_s, default=None)
    return best.text if best is not None and overlap_s(best) > 0 else ""


def _rows(path: Path) -> dict[str, tuple[_Row, ...]]:
    status = path.stat()
    return _parsed(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _parsed(path: Path, _mtime_ns: int, _size: int) -> dict[str, tuple[_Row, ...]]:
    found: dict[str, tuple[_Row, ...]] = {}
    for number, line in enumerate(path.read_text("utf-8").split("\n"), 1):
        if line.strip():
            name, row = _row(line, f"{path}:{number}")
            found[name] = (*found.get(name, ()), row)
    return found


def _row(line: str, place: str) -> tuple[str, _Row]:
    try:
        value = json.loads(line)
        start_s, end_s = float(value.get("start_s", 0)), float(value.get("end_s", "inf"))
        name, text = value["video"], value["caption"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{place}: not a caption row with video and caption ({error!r})"
        ) from error
    if not isinstance(name, str) or not isinstance(text, str):
        raise ValueError(f"{place}: video and caption must be text")  # noqa: TRY004 - bad data, no bug
    return name, _Row(start_s=start_s, end_s=end_s, text=text)
