"""Clean-up of captions: rules in a fixed order, each told when it changed something, so that they can be counted.

Cleaning what is clean changes nothing.
"""

import re
import unicodedata
from dataclasses import asdict, dataclass
from functools import lru_cache

from ingest.clip import digest_of
from ingest.ledger import printable

CAPTION_CHARS = 2000
_RAW_CHARS = 8 * CAPTION_CHARS  # more than that is no caption; patterns are never tried on more
_URL = re.compile(r"(?:\b(?:https?|ftp)://|\bwww\.)\S*", re.IGNORECASE)
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]++@[\w-]++(?:\.[\w-]++)+")
_VIDEO = (
    "(?:video|clip|footage|film|movie|animation|gif|image|picture|photo|photograph|scene|shot|"
    "sequence|screenshot|frames?)"
)
_SHOWS = (
    "(?:shows?|showing|depicts?|depicting|features?|featuring|displays?|captures?|presents?|"
    "portrays?|illustrates?|showcases?|contains?|is of|are of|is about|consists? of)"
)
_THIS = rf"(?:in )?(?:this|the|a|an) (?:[a-z-]+ ){{0,2}}?{_VIDEO}"
_OPENINGS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # what chat models say before they begin
        r"(?:(?:sure|certainly|of course|okay|ok)\b[!,.]? +)?here(?: is|'s|\u2019s) [^:\n]{0,80}: *",
        r"(?:caption|description|answer|summary) ?: *",
        rf"{_THIS}(?: {_VIDEO})? (?:(?:primarily|mainly|mostly) )?{_SHOWS}(?: us)?(?: that)?[:,]? +",
        rf"in (?:this|the) (?:[a-z-]+ ){{0,2}}?{_VIDEO},? +(?:we (?:can )?see +)?",
        r"(?:a|an) (?:[a-z-]+ )?(?:video|clip|footage|image|picture|photo) of +",
        r"we (?:can )?see(?: that)? +",
    )
)
_QUOTES = {'"': '"', "\u201c": "\u201d", "'": "'", "`": "`"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cleaned:
    """A caption after clean-up, the rules that changed it, and the one that refused it ("" for none)."""

    text: str
    rules: tuple[str, ...] = ()
    refused: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clean:
    """Which rules hold; control characters and runs of whitespace always go.

    `prefixes` strips what captioners begin with ("The video shows ..."). With `scripts` (such as
    "latin", as Unicode names them) at least `min_script_share` of the letters must be of those.
    """

    prefixes: bool = True
    urls: bool = True
    emails: bool = True
    scripts: tuple[str, ...] = ()
    min_script_share: float = 0.5
    min_chars: int = 1
    max_chars: int = CAPTION_CHARS

    def __post_init__(self) -> None:
        """Check lengths and the share."""
        if not 1 <= self.min_chars <= self.max_chars <= CAPTION_CHARS:
            raise ValueError(f"clean: 1 <= min_chars <= max_chars <= {CAPTION_CHARS}")
        if not 0 <= self.min_script_share <= 1:
            raise ValueError("clean: min_script_share between 0 and 1")

    def digest(self) -> str:
        """Return the hex sha256 of the rules."""
        return digest_of(asdict(self) | {"version": 1})

    def apply(self, text: str) -> Cleaned:
        """Return a caption cleaned; a refused one has no text."""
        rules: list[str] = []
        steps = (
            ("control", _printable),
            ("url", _without_urls if self.urls else _same),
            ("email", _without_emails if self.emails else _same),
            ("prefix", _without_opening if self.prefixes else _same),
            ("whitespace", _one_line),
            ("length", self._cut),
        )
        before = None
        while before != text:  # what was cut short may be in quotes now
            before = text
            for name, change in steps:
                changed = change(text)
                if changed != text:
                    rules.append(name)
                    text = changed
        rules = list(dict.fromkeys(rules))
        refused = self._refused(text)
        return Cleaned(text="" if refused else text, rules=tuple(rules), refused=refused)

    def _cut(self, text: str) -> str:
        if len(text) <= self.max_chars:
            return text
        head = text[: self.max_chars + 1].rpartition(" ")[0] or text[: self.max_chars]
        return head.rstrip(" ,;:-")

    def _refused(self, text: str) -> str:
        if not text:
            return "empty"
        if len(text) < self.min_chars:
            return "short"
        share = script_share(text, self.scripts) if self.scripts else 1.0
        return "language" if share < self.min_script_share else ""


def script_share(text: str, scripts: tuple[str, ...]) -> float:
    """Return the share of letters that are of these scripts, 1 for a text without letters."""
    letters = [char for char in text if char.isalpha()]
    wanted = tuple(script.upper() for script in scripts)
    return sum(_script(char) in wanted for char in letters) / len(letters) if letters else 1.0


@lru_cache(maxsize=4096)
def _script(char: str) -> str:
    return unicodedata.name(char, "").partition(" ")[0]


def _same(text: str) -> str:
    return text


def _printable(text: str) -> str:
    # Breaks between lines are whitespace, and no news to count; NFC as in names of files.
    spaced = re.sub(r"[\t\r\n\f\v]", " ", text[:_RAW_CHARS])
    return unicodedata.normalize("NFC", printable(spaced))


def _without_urls(text: str) -> str:
    return _URL.sub(" ", text) if "." in text or "://" in text else text


def _without_emails(text: str) -> str:
    return _EMAIL.sub(" ", text) if "@" in text else text


def _without_opening(text: str) -> str:
    """Strip quotes around it all and openings in front, until there are none."""
    before = None
    while before != text:
        before = text
        bare = text.strip()
        if len(bare) > 1 and _QUOTES.get(bare[0]) == bare[-1] and bare.count(bare[-1]) <= 2:
            text = bare[1:-1]
            continue
        for opening in _OPENINGS:
            if (found := opening.match(bare)) and bare[found.end() :].strip():
                rest = bare[found.end() :].lstrip()
                text = rest[0].upper() + rest[1:] if bare[0].isupper() else rest
                break
    return text


def _one_line(text: str) -> str:
    return " ".join(text.split())
