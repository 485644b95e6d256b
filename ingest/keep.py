"""The keep rule: thresholds over score columns, decided last; scores themselves know none."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from ingest.clip import digest_of
from ingest.clips import SCORE_NAME, own_columns
from ingest.ledger import Fate
from ingest.no_secrets import refuse
from ingest.schema import SCORES
from ingest.scorers import OWN
from ingest.stage import KeepRule, NotAStage, Objection, load, settings_digest

# In the order in which they are asked: which score, and on which side of the bound it is rejected.
RULES = {
    "max_duplicate_frame_share": ("duplicate_frame_share", 1),
    "min_luma": ("luma_mean", -1),
    "max_luma": ("luma_mean", 1),
    "min_luma_range": ("luma_range", -1),
    "min_motion": ("motion", -1),
    "max_motion": ("motion", 1),
    "min_sharpness": ("sharpness", -1),
    "max_flicker": ("flicker", 1),
}
RESERVED = ("leakage", "near_duplicate", "purged", "no_clip_kept", "too_short", "hdr", "past_end")
SLICE = 4096  # rows that an own rule is shown at a time
TRIED = (None, 0.0, 0.5, 1.0)  # scores that any rule must be able to judge


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """The least and the most that a score may be: one of the pass over the source, or of a scorer."""

    score: str
    min: float | None = None
    max: float | None = None

    def __post_init__(self) -> None:
        """Refuse a bound that bounds nothing, or that has a key of its own."""
        known = SCORE_NAME.fullmatch(self.score) and self.score not in own_columns()
        if self.score not in SCORES and not known:
            raise ValueError(f"bounds: {self.score!r} is no score")
        if self.min is None and self.max is None:
            raise ValueError(f"bounds: {self.score}: give min or max")
        own = [rule.name for rule in self.rules() if rule.name in RULES]
        if own:
            raise ValueError(f"bounds: write keep.{own[0]} instead")

    def rules(self) -> list["Rule"]:
        """Return the rules that it stands for."""
        sides = (("min", self.min, -1), ("max", self.max, 1))
        return [
            Rule(name=f"{word}_{self.score}", score=self.score, sign=sign, threshold=value)
            for word, value, sign in sides
            if value is not None
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A threshold and the side of it (`sign`) on which a score is rejected."""

    name: str
    score: str
    sign: int
    threshold: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """Bounds on scores; None turns a rule off.

    A null score passes: nothing is known against it. So rules over motion and repeated frames do
    not apply to stills, which have neither, and `bounds` on what a scorer measures (rules
    `min_<score>`, `max_<score>`) say nothing of a clip that it never saw. `own` are rules of your
    own, each {use = "package.module:Class", ...}; see ingest.stage.KeepRule.
    """

    min_motion: float | None = 0.005
    max_motion: float | None = 0.5
    max_duplicate_frame_share: float | None = 0.1
    min_luma: float | None = 16.0
    max_luma: float | None = 240.0
    min_luma_range: float | None = 20.0
    min_sharpness: float | None = None
    max_flicker: float | None = None
    bounds: tuple[Bound, ...] = (Bound(score="aesthetic", min=4.5),)
    own: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Refuse two bounds on one score, and an own rule without its class."""
        scores = sorted(bound.score for bound in self.bounds)
        twice = [one for one, other in pairwise(scores) if one == other]
        if twice:
            raise ValueError(f"bounds: {twice[0]} is bounded twice; give min and max in one")
        if not all(isinstance(table.get("use"), str) for table in self.own):
            raise ValueError(f"keep.own: {OWN}")
        refuse(self.own, "keep.own")

    def digest(self) -> str:
        """Return the hex sha256 of the thresholds."""
        return digest_of(asdict(self))

    def rules(self) -> list[Rule]:
        """Return all thresholds in the order in which they are asked."""
        found = [
            Rule(name=name, score=score, sign=sign, threshold=getattr(self, name))
            for name, (score, sign) in RULES.items()
            if getattr(self, name) is not None
        ]
        return [*found, *(rule for bound in self.bounds for rule in bound.rules())]

    def decide(self, scores: Mapping[str, float | None]) -> Fate:
        """Return `kept`, or `rejected` with the first rule that the scores break; own rules are not asked."""
        for rule in self.rules():
            value = scores.get(rule.score)
            if value is not None and rule.sign * (value - rule.threshold) > 0:
                return Fate(name="rejected", rule=rule.name, score=value, threshold=rule.threshold)
        return Fate(name="kept")


def own_rules(keep: Keep) -> tuple[KeepRule, ...]:
    """Return the own rules of a keep rule, checked and each asked once; raises stage.NotAStage."""
    taken = {*RULES, *RESERVED, *(rule.name for rule in keep.rules())}
    made = []
    for table in keep.own:
        keys = {key: value for key, value in table.items() if key != "use"}
        one = load(table["use"], keys, "keep_rule")
        if one.name in taken:
            raise NotAStage(f"use = {table['use']!r}: there is a rule {one.name!r} already")
        taken.add(one.name)
        _try(one, table["use"])
        made.append(one)
    return tuple(made)


def _try(rule: KeepRule, use: str) -> None:
    """Ask a rule of made scores: what it cannot do shows before hours of decoding, not after."""
    try:
        objections(rule, dict.fromkeys(rule.needs_scores, TRIED), len(TRIED))
    except NotAStage as error:
        raise NotAStage(f"use = {use!r}: {error}") from error
    except Exception as error:  # somebody else's code may raise anything
        told = f"{type(error).__name__}: {error}"
        shown = ", ".join(str(value) for value in TRIED)
        raise NotAStage(f"use = {use!r}: asked of scores {shown} it raises {told}") from error


def wanted_scores(keep: Keep, own: Sequence[KeepRule] = ()) -> tuple[str, ...]:
    """Return the scores, sorted, that rules ask for and that are no columns of the ledger."""
    asked = {rule.score for rule in keep.rules()} | {n for one in own for n in one.needs_scores}
    return tuple(sorted(asked - set(SCORES)))


def rules_digest(own: Sequence[KeepRule]) -> str:
    """Return the hex sha256 of what decides the answers of own rules."""
    return digest_of([settings_digest(one) for one in own])


def objections(
    rule: KeepRule, columns: Mapping[str, Sequence[float | None]], count: int
) -> dict[int, Objection]:
    """Return, by row of `count`, what an own rule has against it; `columns` are the scores it needs.

    Raises NotAStage when it breaks its promises, and what it raises.
    """
    found: dict[int, Objection] = {}
    for start in range(0, count, SLICE):
        rows = [
            {name: values[at] for name, values in columns.items()}
            for at in range(start, min(count, start + SLICE))
        ]
        answers = list(rule(rows))
        if len(answers) != len(rows):
            raise NotAStage(f"{rule.name}: {len(answers)} answers for {len(rows)} clips")
        wrong = next((a for a in answers if a is not None and not isinstance(a, Objection)), None)
        if wrong is not None:
            raise NotAStage(
                f"{rule.name}: answers with {type(wrong).__name__}; a rule answers with None to keep "
                "a clip, or with an ingest.stage.Objection"
            )
        found |= {start + at: one for at, one in enumerate(answers) if one is not None}
    return found
