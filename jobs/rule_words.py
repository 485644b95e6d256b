"""Rules of the ledger in words for people."""

from collections.abc import Mapping

WORDS = {
    "max_duplicate_frame_share": "repeated frames",
    "min_luma": "too dark",
    "max_luma": "too bright",
    "min_luma_range": "too little contrast",
    "min_motion": "too little motion",
    "max_motion": "too much motion",
    "min_sharpness": "not sharp enough",
    "max_flicker": "flickers",
    "leakage": "shown in an evaluation set",
    "near_duplicate": "shows what a better clip shows",
    "too_short": "shorter than a clip",
    "no_clip_kept": "none of its clips was kept",
    "hdr": "PQ or HLG picture",
    "past_end": "part behind the end of its source",
    "purged": "taken down",
}


def words(rule: str) -> str:
    """Return a rule in words for people."""
    if rule in WORDS:
        return WORDS[rule]
    side, _, score = rule.partition("_")
    sides = {"min": "too low", "max": "too high"}
    return f"{score.replace('_', ' ')} {sides[side]}" if side in sides else rule.replace("_", " ")


def counted(rules: Mapping[str, int]) -> str:
    """Return how many fell to each rule, most first; "none" for no rule."""
    most = sorted(rules.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number} {words(rule)}" for rule, number in most) or "none"
