"""A shot detector of somebody's own in place of ours: held to its promises while it works."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from ingest import stage
from ingest.clip import Prep
from ingest.cuts import CutFinder, NativeCutFinder, cut_finder
from ingest.ledger import MESSAGE_CHARS
from ingest.sources import SourceError

Make = Callable[[], stage.ShotDetector]


class Checked:
    """A detector whose failures and miscounts are the fate of the source that it looks at."""

    def __init__(self, make: Make) -> None:
        self._looks = self._flags = 0
        self._detector = self._asked(make)

    def look(self, small_HW: np.ndarray, at_s: Fraction) -> list[bool]:
        """Show the next frame; return the flags now certain."""
        self._looks += 1
        return self._told(partial(self._detector.look, small_HW, at_s))

    def end(self) -> list[bool]:
        """Return the last flags; raises SourceError when there is not one for each frame."""
        flags = self._told(self._detector.end)
        if self._flags != self._looks:
            self._refuse(f"{self._flags} flags for {self._looks} frames")
        return flags

    def _told(self, question: Callable[[], Any]) -> list[bool]:
        flags = self._asked(lambda: [bool(flag) for flag in question()])
        self._flags += len(flags)
        if self._flags > self._looks:
            self._refuse(f"{self._flags} flags for {self._looks} frames")
        return flags

    def _refuse(self, why: str) -> None:
        raise SourceError("shots", "BrokenDetector", f"{self._detector.name}: {why}")

    def _asked(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except Exception as error:  # somebody else's code may raise anything
            told = f"{type(error).__name__}: {error}"[:MESSAGE_CHARS]
            raise SourceError("shots", "BrokenDetector", told) from error


def finder(prep: Prep, own: Make | None) -> CutFinder | NativeCutFinder | Checked:
    """Return what looks for the shots of one source."""
    return Checked(own) if own else cut_finder(prep)


def made_by(table: Mapping[str, Any]) -> tuple[Make | None, str]:
    """Return what makes the detector of a recipe's table, and the digest of what decides its answers.

    An empty table means ours. Raises stage.NotAStage.
    """
    if not table:
        return None, ""
    if not isinstance(table.get("use"), str):
        raise stage.NotAStage('detector: name it with use = "package.module:Class"')
    keys = {key: value for key, value in table.items() if key != "use"}
    make = partial(stage.load, table["use"], keys, "shot_detector")
    return make, stage.settings_digest(make())
