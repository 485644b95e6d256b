"""What a row of a manifest, or a sheet beside a video in a tar, may say of a video: types checked."""

import json
from collections.abc import Mapping
from math import inf, isfinite, isnan
from typing import Any

from ingest.source import Said, Spoken

CAPTION, LABEL, CONSENT = "caption", "label", "consent"
LICENCE = ("licence", "license")
START, END = "start_s", "end_s"
COLUMNS = (CAPTION, START, END, LABEL, *LICENCE, CONSENT)


class SayingError(ValueError):
    """A row or sheet that does not say what it should in the way it should."""


def saying(values: Mapping[str, Any]) -> Said:
    """Return what values by column say; a column that is absent, null or empty is silent.

    Raises SayingError.
    """
    caption = text_of(values, CAPTION)
    start_s, end_s = _seconds(values, START, 0.0), _seconds(values, END, inf)
    if not isfinite(start_s) or not start_s < end_s:
        raise SayingError(f"{START}={start_s:g} is not before {END}={end_s:g}")
    licences = {text for name in LICENCE if (text := text_of(values, name))}
    if len(licences) > 1:
        raise SayingError(f"{' and '.join(LICENCE)} differ")
    return Said(
        captions=(Spoken(text=caption, start_s=start_s, end_s=end_s),) if caption else (),
        label=text_of(values, LABEL, numbers=True),
        licence=next(iter(licences), ""),
        consent=text_of(values, CONSENT),
    )


def text_of(values: Mapping[str, Any], name: str, *, numbers: bool = False) -> str:
    """Return the text under a name without space around it, "" for none; raises SayingError."""
    value = values.get(name)
    if value is None:
        return ""
    if numbers and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise SayingError(f"{name} is {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SayingError(f"{name} is no valid Unicode") from error
    return value.strip()


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object in `text`; raises SayingError, also for a key that is named twice."""
    try:
        values = json.loads(text, object_pairs_hook=_once)
    except SayingError:
        raise
    except (ValueError, RecursionError) as error:
        raise SayingError(f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise SayingError("not a JSON object")
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise SayingError("a key is named twice")
    return values


def _seconds(values: Mapping[str, Any], name: str, otherwise: float) -> float:
    value = values.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return otherwise
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if isnan(number) or number < 0:
        raise SayingError(f"{name}={value!r}: a number of seconds from 0 is wanted")
    return number
