"""Whether a user's words can stand in a manifest or a batch script: a narrow alphabet, so that nothing has to be escaped twice.

A word goes through several readers (YAML, a shell, #SBATCH, a scheduler that joins words again), each with rules of its own.
Each function returns what is wrong, or "".
"""

import re
from collections.abc import Iterable

DNS = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
LABEL_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,200}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
)
PATH = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9_.+-]+)+")
WORD = re.compile(r"[A-Za-z0-9_./=:@,+%-]+")
IMAGE = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9._:/-]*?)(:(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
    r"(@sha256:(?P<digest>[0-9a-f]{64}))?"
)
LIMIT = re.compile(r"([0-9]+-)?[0-9]{1,3}:[0-9]{2}(:[0-9]{2})?")


def found(problems: Iterable[str]) -> None:
    """Raise ValueError with every problem on one line, when there is one."""
    told = [problem for problem in problems if problem]
    if told:
        raise ValueError("; ".join(told))


def dns(key: str, value: str) -> str:
    """Say whether `value` is no name for a Kubernetes object (and the pods named after it)."""
    fits = DNS.fullmatch(value)
    return "" if fits else f"{key}: {value!r} must be 1 to 40 of a-z, 0-9 and -, a letter first"


def name(key: str, value: str, *, empty: bool = False) -> str:
    """Say whether `value` is no name as schedulers and labels take them."""
    fits = NAME.fullmatch(value) or (empty and not value)
    return "" if fits else f"{key}: {value!r} must be 1 to 63 of letters, digits, '.', '_' and '-'"


def label_key(key: str, value: str) -> str:
    """Say whether `value` is no key of a Kubernetes label or taint."""
    return "" if LABEL_KEY.fullmatch(value) else f"{key}: {value!r} is no label key"


def path(key: str, value: str) -> str:
    """Say whether `value` is no absolute path of plain characters, without `..`."""
    fits = PATH.fullmatch(value)
    return "" if fits else f"{key}: {value!r} must be an absolute path of letters, digits and _.+-"


def count(key: str, value: int, least: int) -> str:
    """Say whether `value` is below `least`."""
    return "" if value >= least else f"{key}: {value} must be at least {least}"


def image(key: str, value: str) -> str:
    """Say whether `value` is no image pinned by a tag or a digest; `latest` is another one tomorrow."""
    fits = IMAGE.fullmatch(value)
    if not fits:
        return f"{key}: {value!r} is no container image"
    tag, digest = fits["tag"], fits["digest"]
    if (tag or "").lower() == "latest" or not (tag or digest):
        return f"{key}: {value!r} must name a tag other than latest, or a digest"
    return ""


def command(key: str, value: str, verbs: tuple[str, ...]) -> str:
    """Say whether `value` is no command line of ours in plain words."""
    words = value.split(" ")
    if words[0] not in verbs:
        return f"{key}: {value!r} must begin with one of {', '.join(verbs)}"
    odd = [word for word in words if not WORD.fullmatch(word)]
    return (
        f"{key}: {odd[0]!r} has characters that a shell reads; put it into the recipe"
        if odd
        else ""
    )
