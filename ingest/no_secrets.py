"""Recipes are written down (recipe.json, the tracker), so no key may stand in one: keys belong in the environment."""

import re
from collections.abc import Mapping

VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")
# The last word of a name that is a secret's; max_tokens, token_env, pad_token and the like are not.
_WORDS = "password|passwd|passphrase|secret|secrets|credential|credentials|authorization|bearer"
_KEYS = "(api|access|secret|private|auth|account|signing|subscription|service)_?keys?"
_TOKENS = "((api|access|auth|bearer|secret|session|refresh|hf|id|user|login|personal)_?)?token"
_NAMED = re.compile(f"(.*_)?({_WORDS}|{_KEYS})|{_TOKENS}")
_CAMEL = re.compile("(?<=[a-z0-9])(?=[A-Z])")
# How well-known keys begin.
_LOOKS = re.compile(
    "(sk-|sk_|pk_|rk_|hf_|gsk_|xai-|nvapi-|r8_|glpat-|github_pat_|gh[pousr]_|xox[a-z]-|AIza|AKIA|ASIA|eyJ)"
    r"[\w.-]{8,}|(?i:bearer|basic)\s+\S{8,}"
)


def refuse(told: object, where: str) -> None:
    """Raise ValueError where a table, however deep in `told`, has a key that is a secret's name or holds one.

    The value is not repeated.
    """
    for one in told if isinstance(told, (list, tuple)) else (told,):
        for name, value in one.items() if isinstance(one, Mapping) else ():
            if _holds(str(name), value):
                raise ValueError(
                    f"{where}: {_shown(str(name))} is or holds a secret, which a recipe would write "
                    "down: keys belong in the environment; name a variable there"
                )
            refuse(value, where)


def refuse_variable(name: str, where: str) -> None:
    """Raise ValueError unless `name` can be that of an environment variable, "" for none; it is not repeated."""
    if name and (not VARIABLE.fullmatch(name) or _LOOKS.match(name)):
        raise ValueError(
            f"{where}: is the name of an environment variable (letters, digits and _), "
            "never the key itself: keys belong in the environment"
        )


def _holds(name: str, value: object) -> bool:
    word = _CAMEL.sub("_", name).replace("-", "_").replace(".", "_").lower()
    if _LOOKS.match(name) or (value and isinstance(value, (str, bytes)) and _NAMED.fullmatch(word)):
        return True
    several = value if isinstance(value, (list, tuple)) else (value,)
    return any(isinstance(one, str) and _LOOKS.match(one.strip()) for one in several)


def _shown(name: str) -> str:
    return "a key" if _LOOKS.match(name) else name
