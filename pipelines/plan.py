"""What a run would do, as data: shown by --dry-run, never carried out here."""

from dataclasses import dataclass, field

Number = int | float | str


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Counts (videos, actors, bytes, steps) and the ordered stages of one verb."""

    verb: str
    out: str
    counts: dict[str, Number]
    stages: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
