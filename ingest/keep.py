"""The keep rule: thresholds over score columns, decided last; scores themselves know none."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ingest.clip import digest_of
from ingest.ledger import Fate

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """Bounds on scores; None turns a rule off.

    A null score passes: nothing is known against it. So rules over motion and repeated frames do
    not apply to stills, which have neither.
    """

    min_motion: float | None = 0.005
    max_motion: float | None = 0.5
    max_duplicate_frame_share: float | None = 0.1
    min_luma: float | None = 16.0
    max_luma: float | None = 240.0
    min_luma_range: float | None = 20.0
    min_sharpness: float | None = None
    max_flicker: float | None = None

    def digest(self) -> str:
        """Return the hex sha256 of the thresholds."""
        return digest_of(asdict(self))

    def decide(self, scores: Mapping[str, float | None]) -> Fate:
        """Return `kept`, or `rejected` with the first rule that the scores break."""
        for rule, (name, sign) in RULES.items():
            value, threshold = scores.get(name), getattr(self, rule)
            if value is not None and threshold is not None and sign * (value - threshold) > 0:
                return Fate(name="rejected", rule=rule, score=value, threshold=threshold)
        return Fate(name="kept")
