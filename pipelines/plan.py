"""What a run would do, as data: shown by --dry-run, never carried out here."""

from dataclasses import dataclass, field

Number = int | float | str


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One stage, the columns or files that it writes, and what it needs to run."""

    name: str
    writes: str
    needs: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Counts (videos, actors, bytes, steps) and the ordered stages of one verb.

    `steps` tell more of each stage and `estimate` what the run will take, where somebody asked.
    """

    verb: str
    out: str
    counts: dict[str, Number]
    stages: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    steps: tuple[Step, ...] = ()
    estimate: dict[str, Number] = field(default_factory=dict)
