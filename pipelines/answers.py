"""Answers of stages as rows of the annotations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ingest.caption import clean
from ingest.caption_clean import Clean
from ingest.ledger import MESSAGE_CHARS, printable
from ingest.schema import FAILED, SCORE_FACTS
from ingest.stage import Failure
from pipelines.annotator import Answer
from pipelines.passes import Pass

OK = "ok"
FLOAT16_BYTES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The rows of one clip; a failure has a row only where failures are kept. `rules` cleaned it up."""

    rows: tuple[Mapping[str, Any], ...] = ()
    failure: Failure | None = None
    rules: tuple[str, ...] = ()


def rows_of(one: Pass, facts: Mapping[str, Any], settings: str, answer: Answer) -> Rows:
    """Return what an answer adds to the annotation of a pass."""
    bound = {
        "clip_id": facts["clip_id"],
        "producer": one.producer,
        "payload_sha256": facts["payload_sha256"],
        "settings": settings,
    }
    if one.table == "captions":
        return _caption(bound | {"rank": one.rank}, answer, one.clean)
    if isinstance(answer, Failure):
        return Rows(failure=answer)
    if one.table == "labels" and isinstance(answer, str):
        return Rows(rows=(bound | {"label": clean(answer)},))
    if one.table == "scores" and isinstance(answer, dict):
        facts = {f.name: {fact: getattr(f, fact) for fact in SCORE_FACTS} for f in one.stage.scores}
        if set(answer) == set(facts):
            values = sorted(answer.items())
            return Rows(rows=tuple(bound | {"name": n, "value": v} | facts[n] for n, v in values))
    if one.table == "embeddings" and isinstance(answer, bytes) and answer:
        vector = {"dim": len(answer) // FLOAT16_BYTES, "vector": answer}
        return Rows(rows=(bound | vector,))
    what = f"{one.producer} gave an answer that {one.table} cannot hold"
    return Rows(failure=Failure(error_class="BadAnswer", message=what))


def _caption(bound: Mapping[str, Any], answer: Answer, rules: Clean | None) -> Rows:
    used: tuple[str, ...] = ()
    text = ""
    if isinstance(answer, Failure):
        failure = answer
    elif not isinstance(answer, str):
        failure = Failure(error_class="BadAnswer", message="a captioner must answer with text")
    else:
        cleaned = (rules or Clean()).apply(answer)
        text, used = cleaned.text, cleaned.rules
        failure = _refused(cleaned.refused) if cleaned.refused else None
        used = (*used, f"refused: {cleaned.refused}") if cleaned.refused else used
    if failure is None:
        return Rows(rows=(dict(bound) | {"caption": text, "status": OK},), rules=used)
    message = printable(f"{failure.error_class}: {failure.message}")[:MESSAGE_CHARS]
    failed: dict[str, Any] = {"caption": "", "status": FAILED, "message": message}
    if not failure.final:
        failed["settings"] = None  # so the next run tries again
    return Rows(rows=(dict(bound) | failed,), failure=failure, rules=used)


def _refused(rule: str) -> Failure:
    return Failure(error_class="Unclean", message=f"clean-up refused it: {rule}", final=True)
