"""The books must balance: every unit of work one source row, every candidate clip one fate."""

from collections import Counter, defaultdict
from dataclasses import dataclass

import pyarrow as pa

MAX_PROBLEMS = 20
FATES = frozenset(("kept", "rejected", "failed", "duplicate"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """Whether the fates add up, what does not (at most MAX_PROBLEMS lines), what was counted."""

    ok: bool
    problems: tuple[str, ...]
    sources: int
    candidates: int


def balance(ledger: pa.Table, expected_units: set[str] | None = None) -> Balance:
    """Compare ledger rows with each other and, when given, with the units that were to be done."""
    names = ["unit_id", "kind", "id", "fate", "num_candidates", "num_kept", "shard"]
    sources: dict[str, list[dict[str, object]]] = defaultdict(list)
    clips: dict[str, list[dict[str, object]]] = defaultdict(list)
    for row in ledger.select(names).to_pylist():
        (sources if row["kind"] == "source" else clips)[row["unit_id"]].append(row)
    problems = []
    for unit in sorted(sources.keys() | clips.keys()):
        problems += _unit_problems(unit, sources[unit], clips[unit])
    if expected_units is not None:
        missing = expected_units - sources.keys()
        problems += [f"unit {unit}: no fate" for unit in sorted(missing)]
    return Balance(
        ok=not problems,
        problems=tuple(problems[:MAX_PROBLEMS]),
        sources=sum(len(rows) for rows in sources.values()),
        candidates=sum(len(rows) for rows in clips.values()),
    )


def _unit_problems(
    unit: str, sources: list[dict[str, object]], clips: list[dict[str, object]]
) -> list[str]:
    if len(sources) != 1:
        return [f"unit {unit}: {len(sources)} source rows, not 1"]
    source, found = sources[0], []
    kept = [row for row in clips if row["fate"] == "kept"]
    if source["num_candidates"] != len(clips):
        found.append(f"unit {unit}: {source['num_candidates']} candidates but {len(clips)} fates")
    if source["num_kept"] != len(kept):
        found.append(f"unit {unit}: {source['num_kept']} kept counted but {len(kept)} kept rows")
    doubled = [name for name, count in Counter(row["id"] for row in clips).items() if count > 1]
    found += [f"unit {unit}: clip {name} has several fates" for name in doubled]
    found += [
        f"unit {unit}: kept clip {row['id']} has no shard" for row in kept if not row["shard"]
    ]
    odd = {str(row["fate"]) for row in (source, *clips)} - FATES
    found += [f"unit {unit}: unknown fate {name}" for name in sorted(odd)]
    return found
