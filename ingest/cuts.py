"""Where one shot ends and the next begins, from the frames that pass by: no second decode.

A detector looks at small grey pictures, at most LOOK_FPS a second, and keeps what it saw of the last
two seconds. Three laws make a border, all from sums over a few thousand pixels:

- a cut: a jump of brightness well above those around it, after which the picture is another one (its
  correlation with the one before is low). A flash is no cut: after it the picture is the same again;
- a dissolve: frames that are a mixture of the first and the last frame of a span, which are two
  different pictures. What moves is no mixture: that tells pans and zooms from dissolves;
- black after something was shown, which is where fades end.

A part of a long source is looked at by itself, and its ends end shots. A dissolve that goes on beyond
such an end is not seen: neither part has both of its pictures. Its mixtures, a second or two of them,
stay in the last shot of the one part and the first of the other.
"""

from collections import deque
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from math import ceil
from statistics import median

import numpy as np

from ingest.clip import LOOK_FPS, Prep
from ingest.looks import View, alike, brighter, jump, view

SIDE = 4  # looks before and after a jump that it is compared with
FLASH = 4  # looks that a flash lasts at most
SPANS = (8, 16, 24)  # looks that a span of a dissolve reaches over; long ones are found in parts
LAG = max(SPANS)  # looks after which a flag is certain
LEAST_JUMP, LEAST_CHANGE = 1.0, 0.1  # levels, and lost correlation, of what stands still
GONE_DETAIL = 0.15  # between the ends of a dissolve less is left; a slow zoom keeps more
ALIKE = 0.85  # correlation up to which a picture of quite other detail is another one
LIT = 1.5  # times black_levels: where black has ended
FLAT_LEVELS = 4.0  # below this deviation a picture is flat: it fades, it does not dissolve
SAME_DETAIL = 0.3  # correlation of detail above which two pictures look like one scene
OTHER_DETAIL = 0.45  # above it they are; bars and logos alone reach 0.35
MIXED = (0.2, 0.8)  # shares of the second picture that are a mixture beyond doubt
TOUCHED = (0.06, 0.94)  # shares from which on a frame is counted to the dissolve
SAME_AGAIN = 0.35  # correlation of what was before a flash and is after it, in motion also
MOST_STEP, MOST_BACK = 0.35, 0.1  # of the share from look to look; more is a cut, or no way there


class CutFinder:
    """Says of each look, in order, whether a new shot begins with it; all within a dissolve do.

    Looks come at one rate, about LOOK_FPS a second. A flag is certain LAG looks late.
    """

    def __init__(self, prep: Prep) -> None:
        self._prep = prep
        self._before_HW: np.ndarray | None = None
        self._jumps: deque[float] = deque(maxlen=FLASH + SIDE + 1)
        self._changes: deque[float] = deque(maxlen=FLASH + SIDE + 1)
        self._views: deque[View] = deque(maxlen=LAG + 1)
        self._flags: deque[bool] = deque()
        self._was_black = True  # a fade in at the start of a file belongs to its first shot
        self._shown = False

    def look(self, small_HW: np.ndarray, at_s: Fraction | None = None) -> list[bool]:  # noqa: ARG002
        """Take the next `shrunk` frame, uint8 luma; return the flags that are now certain.

        Looks come at one rate, so their times (which NativeCutFinder wants) tell nothing.
        """
        before_HW = small_HW if self._before_HW is None else self._before_HW
        self._before_HW = small_HW
        self._jumps.append(jump(before_HW, small_HW))
        seen = view(small_HW)
        self._changes.append(1 - alike(self._views[-1], seen) if self._views else 0.0)
        self._views.append(seen)
        self._flags.append(self._black_border(small_HW))
        self._cut(FLASH)
        for span in SPANS:
            self._dissolve(span)
        return [self._flags.popleft()] if len(self._flags) > LAG else []

    def end(self) -> list[bool]:
        """Return the flags of the last looks."""
        for ahead in reversed(range(FLASH)):
            self._cut(ahead)
        flags = list(self._flags)
        self._flags.clear()
        return flags

    def _black_border(self, small_HW: np.ndarray) -> bool:
        # Nearly all of it, not its mean: a lit figure on a dark stage is no black frame. And what
        # was black has to become clearly lit, or a dim shot would begin again and again.
        levels = self._prep.black_levels * (LIT if self._was_black else 1.0)
        lit = np.count_nonzero(small_HW >= ceil(levels))  # a whole number: no copy as floats
        is_black = lit < 0.02 * small_HW.size
        border = self._shown and is_black != self._was_black
        self._was_black = is_black
        self._shown = self._shown or not is_black
        return border

    def _cut(self, ahead: int) -> None:
        # Judge the look that has `ahead` others after it.
        at = len(self._views) - 1 - ahead
        if at < 1 or self._jumps[-1 - ahead] < self._prep.cut_min_levels:
            return
        views = list(self._views)
        if self._is_another(views[at - 1], views[at], ahead) and not _flashes(views, at):
            self._flags[-1 - ahead] = True

    def _is_another(self, before: View, after: View, ahead: int) -> bool:
        prep, level, change = self._prep, self._jumps[-1 - ahead], self._changes[-1 - ahead]
        shared = float(before.detail @ after.detail)
        if shared >= OTHER_DETAIL:
            return False
        # By how much the step stands out; what is nearly still is noise.
        higher = level / max(_around(self._jumps, ahead), LEAST_JUMP)
        stranger = change / max(_around(self._changes, ahead), LEAST_CHANGE)
        if 1 - change >= prep.cut_likeness:  # one place lit otherwise, or another like it
            return change > 1 - ALIKE and shared < SAME_DETAIL and higher >= 2 * prep.cut_ratio
        if level >= prep.cut_sure_levels and 1 - change < prep.cut_likeness / 2:
            return True
        return higher >= prep.cut_ratio or (
            higher >= 1.25 and stranger >= prep.cut_ratio and change > 0.7
        )

    def _dissolve(self, span: int) -> None:
        # Judge the span that ends with the newest look.
        if len(self._flags) <= span:
            return
        first, last = self._views[-1 - span], self._views[-1]
        if min(first.deviation, last.deviation) < FLAT_LEVELS or (
            alike(first, last) >= self._prep.cut_likeness
            or float(first.detail @ last.detail) >= GONE_DETAIL
        ):
            return
        step = last.half - first.half
        weight = float(step @ step)
        if weight < len(step) * self._prep.cut_min_levels**2:
            return
        views = list(self._views)[-1 - span :]
        middle = views[span // 2].half - first.half  # most spans are no mixture even there
        share = float(middle @ step) / weight
        if float(middle @ middle) / weight - share**2 > self._prep.dissolve_residual:
            return
        between = np.stack([one.half for one in views[1:-1]]) - first.half
        shares = between @ step / weight
        rests = np.sqrt(np.maximum(0, (between**2).sum(axis=1) / weight - shares**2))
        if _is_way(shares, rests, self._prep.dissolve_residual) and _loses_contrast(views, shares):
            touched = np.flatnonzero((shares > TOUCHED[0]) & (shares < TOUCHED[1]))
            # The look after the last mixture is where the next shot begins.
            for index in range(int(touched[0]), int(touched[-1]) + 2):
                self._flags[index - span] = True


class NativeCutFinder:
    """A CutFinder for frames of any rate, steady or not: says of each whether a new shot begins.

    How much two frames differ depends on the time between them, so CutFinder is shown LOOK_FPS
    frames a second at most: the first of each sixteenth. A cut found there is placed at the largest
    jump since the look before. A picture between two looks that belongs to neither has two borders.
    """

    def __init__(self, prep: Prep) -> None:
        self._looks = CutFinder(prep)
        self._sure_levels = prep.cut_sure_levels
        self._last_look = -1
        self._was_cut = False
        self._held: list[bool] = []  # flags of the last gap that is certain
        self._small: list[np.ndarray] = []  # since the last look, and that look
        self._gaps: deque[list[bool]] = deque()  # flags if no cut is found there
        self._tops: deque[int] = deque()  # the frame of the largest jump

    def look(self, small_HW: np.ndarray, at_s: Fraction) -> list[bool]:
        """Take the next `shrunk` frame, on screen from `at_s`; return the flags now certain."""
        if not self._small:
            self._small.append(small_HW)
        self._small.append(small_HW)
        look = int(at_s * LOOK_FPS // 1)
        if look <= self._last_look:
            return []
        self._last_look = look
        return self._looked()

    def _looked(self) -> list[bool]:
        newest_HW, jumps = self._small[-1], _jumps(self._small)
        self._gaps.append(_inserted(self._small, jumps, self._sure_levels))
        self._tops.append(int(np.argmax(jumps)))
        self._small = [newest_HW]
        return [flag for is_cut in self._looks.look(newest_HW) for flag in self._placed(is_cut)]

    def _placed(self, is_cut: bool) -> list[bool]:  # noqa: FBT001 - a flag is what it is about
        # Held back by one gap: what begins with a cut may go on as a dissolve, without a hole.
        ready, flags, top = self._held, self._gaps.popleft(), self._tops.popleft()
        if is_cut and self._was_cut:
            ready = ready[: ready.index(True)] + [True] * (len(ready) - ready.index(True))
            flags = [True] * len(flags)
        elif is_cut:
            flags[top] = True
        self._was_cut, self._held = is_cut, flags
        return ready

    def end(self) -> list[bool]:
        """Return the flags of the last frames, the very last of which is looked at in any case."""
        flags = self._looked() if len(self._small) > 1 else []
        flags += [flag for is_cut in self._looks.end() for flag in self._placed(is_cut)]
        return flags + self._held


def cut_finder(prep: Prep) -> CutFinder | NativeCutFinder:
    """Return the finder for the frames that a contract has decoded."""
    contract = prep.contract
    slow = not contract.native and contract.stream_fps(Fraction(LOOK_FPS)) <= LOOK_FPS
    return CutFinder(prep) if slow else NativeCutFinder(prep)


def _jumps(small: Sequence[np.ndarray]) -> list[float]:
    return [jump(before, after) for before, after in pairwise(small)]


def _around(values: Sequence[float], ahead: int) -> float:
    # Medians: a cut or a flash nearby, or repeated frames, count little. Of the livelier side.
    known, at = list(values), len(values) - 1 - ahead
    sides = (known[max(0, at - SIDE) : at], known[at + 1 : at + 1 + SIDE])
    return max(median(side) if side else 0.0 for side in sides)


def _flashes(views: Sequence[View], at: int) -> bool:
    """Whether the jump to look `at` is the beginning or the end of a flash in one shot."""
    return _lit(views, at - 1, 1) or _lit(views, at, -1)


def _lit(views: Sequence[View], base: int, way: int) -> bool:
    # Away from `base`, the picture is that of `base` but brighter, and soon that of `base` again.
    for distance in range(2, FLASH + 2):
        if not 0 <= base + way * distance < len(views):
            return False
        lit, then = views[base + way * (distance - 1)], views[base + way * distance]
        if not brighter(lit, views[base]):
            return False
        rise, left = lit.level - views[base].level, then.level - views[base].level
        if left < 0.4 * rise and alike(views[base], then) > SAME_AGAIN:
            return True
    return False


def _is_way(shares: np.ndarray, rests: np.ndarray, most: float) -> bool:
    """Whether frames go over from one picture to another step by step, through mixtures."""
    mixed = (shares > MIXED[0]) & (shares < MIXED[1])
    if np.count_nonzero(mixed) < 2 or float(np.median(rests[mixed])) >= most:
        return False
    steps = np.diff(shares, prepend=0.0, append=1.0)
    return float(steps.max()) < MOST_STEP and float(steps.min()) > -MOST_BACK


def _loses_contrast(views: Sequence[View], shares: np.ndarray) -> bool:
    """Whether frames between two are as dull as mixtures are; a picture that moves stays crisp."""
    mixed = (shares > MIXED[0]) & (shares < MIXED[1])
    share, dull = shares[mixed], np.array([one.deviation for one in views[1:-1]])[mixed]
    one, other = views[0].deviation * (1 - share), views[-1].deviation * share
    mixture = np.sqrt(one**2 + other**2 + 2 * alike(views[0], views[-1]) * one * other)
    return float(np.median((one + other - dull) / (one + other - mixture))) > 0.5


def _inserted(small: Sequence[np.ndarray], jumps: Sequence[float], sure: float) -> list[bool]:
    flags = [level >= sure for level in jumps]
    if sum(flags) < 2:  # what is left at the next look is that look's matter
        return [False] * len(flags)
    base = view(small[flags.index(True)])
    return [False] * len(flags) if _only_lit(small, flags, base) else flags


def _only_lit(small: Sequence[np.ndarray], flags: Sequence[bool], base: View) -> bool:
    first, last = flags.index(True), len(flags) - 1 - flags[::-1].index(True)
    inside = [view(small[index]) for index in range(first + 1, last + 1)]
    return all(brighter(one, base) for one in inside)
