"""All candidate clips of a dataset as columns: fates, places and every score, those of annotation passes too."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ingest.columns import among
from ingest.evidence import scored
from ingest.schema import SCORE_FIELDS, SCORES, conformed, ledger_schema
from ingest.store import Dataset

COLUMNS = (
    *("unit_id", "kind", "id", "fate", "rule", "score", "threshold", "stage", "error_class"),
    *("message", "duplicate_of", "source_uri", "source_bytes", "start_s", "end_s", "width"),
    *("height", "payload_kind", "payload_sha256", "shard", "offset", "length", "crc32"),
    *("frame_count", "num_candidates", "frames_decoded", "decode_errors", *SCORES),
)
FACTS = ("unit", "direction")
DIRECTIONS = {"higher": (-1,), "lower": (1,), "middle": (-1, 1)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """Ledger rows of sources and of clips (COLUMNS), and for each score one value a clip, NaN for none.

    `facts` tells of each score what is known: unit, and direction as in ingest.stage.ScoreFact.
    """

    sources: pa.Table
    clips: pa.Table
    scores: dict[str, np.ndarray]
    facts: dict[str, dict[str, str]]

    @property
    def kept(self) -> np.ndarray:
        """Which clips are kept."""
        return among(self.clips.column("fate"), ["kept"])

    def unit_of(self, score: str) -> str:
        """Return the unit of a score, "" where nobody told."""
        return self.facts.get(score, {}).get("unit", "")

    def signs_of(self, score: str) -> tuple[int, ...]:
        """Return on which sides a bound on a score makes sense: -1 a minimum, 1 a maximum."""
        return DIRECTIONS.get(self.facts.get(score, {}).get("direction", ""), (-1,))

    def rows(self, at: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Return some clips, with their scores of every kind."""
        found = self.clips.take(pa.array(np.asarray(at, np.int64))).to_pylist()
        for index, row in zip(at, found, strict=True):
            row |= {name: float(values[index]) for name, values in self.scores.items()}
        return found


def candidates(dataset: Dataset) -> Candidates:
    """Read what a dataset knows of all sources and candidate clips."""
    stored = dataset.ledger_table.schema().names
    wanted = pa.schema([ledger_schema().field(name) for name in COLUMNS])
    rows = conformed(
        dataset.ledger_table.rows([name for name in COLUMNS if name in stored]), wanted
    )
    clip = among(rows.column("kind"), ["clip"])
    clips = rows.filter(pa.array(clip))
    scores = {name: clips.column(name).to_numpy().astype(float) for name in SCORES} | _annotated(
        dataset, clips
    )
    sources = rows.filter(pa.array(~clip))
    return Candidates(sources=sources, clips=clips, scores=scores, facts=_facts(dataset))


def _annotated(dataset: Dataset, clips: pa.Table) -> dict[str, np.ndarray]:
    told = set(dataset.annotation("scores").column("name").unique().to_pylist())
    names = sorted(told - set(SCORES))
    found = scored(dataset, clips.select(["id", "payload_sha256"]), names)
    return {name: found.column(name).to_numpy().astype(float) for name in names}


def _facts(dataset: Dataset) -> dict[str, dict[str, str]]:
    """Return unit and direction of scores: those that curation measures, those that passes stored."""
    found: dict[str, dict[str, str]] = {}
    stored = dataset.annotation("scores").select(["name", *FACTS]).group_by(["name", *FACTS])
    for row in stored.aggregate([]).to_pylist():
        found[row.pop("name")] = {fact: told or "" for fact, told in row.items()}
    for field in SCORE_FIELDS:
        told = field.metadata or {}
        found[field.name] = {
            fact: told.get(f"kinoray.{fact}".encode(), b"").decode() for fact in FACTS
        }
    return found
