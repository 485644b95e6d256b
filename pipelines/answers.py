"""Answers of stages as rows of the annotations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ingest.caption import clean
from ingest.caption_clean import CAPTION_CHARS, Clean
from ingest.ledger import MESSAGE_CHARS, printable
from ingest.schema import FAILED, SCORE_FACTS
from ingest.stage import Failure, ScoreFact
from pipelines.annotator import Answer
from pipelines.passes import Pass

OK = "ok"
FLOAT16_BYTES = 2
RAW_CHARS = 8 * CAPTION_CHARS  # clean-up looks at no more


class Wanted(NamedTuple):
    """The digests that a clip's rows are to have; `asked` is None where asking again costs nothing."""

    settings: str
    asked: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The rows of one clip; a failure has some only where failures are kept. `rules` cleaned it up."""

    rows: tuple[Mapping[str, Any], ...] = ()
    failure: Failure | None = None
    rules: tuple[str, ...] = ()


def rows_of(one: Pass, facts: Mapping[str, Any], wanted: Wanted, answer: Answer) -> Rows:
    """Return what an answer adds to the annotation of a pass.

    A final failure is kept where there is room for one: a caption that failed, scores that are null.
    """
    bound = {
        "clip_id": facts["clip_id"],
        "producer": one.producer,
        "payload_sha256": facts["payload_sha256"],
        "settings": wanted.settings,
    }
    if one.table == "captions":
        return _caption(bound | {"rank": one.rank, "asked": wanted.asked}, answer, one.clean)
    told = {fact.name: {n: getattr(fact, n) for n in SCORE_FACTS} for fact in _scores(one)}
    if isinstance(answer, Failure):
        none = (bound | {"name": name, "value": None} | told[name] for name in sorted(told))
        return Rows(rows=tuple(none) if answer.final else (), failure=answer)
    if one.table == "labels" and isinstance(answer, str):
        return Rows(rows=(bound | {"label": clean(answer)},))
    if one.table == "scores" and isinstance(answer, dict) and set(answer) == set(told):
        values = sorted(answer.items())
        return Rows(rows=tuple(bound | {"name": n, "value": v} | told[n] for n, v in values))
    if one.table == "embeddings" and isinstance(answer, bytes) and answer:
        vector = {"dim": len(answer) // FLOAT16_BYTES, "vector": answer}
        return Rows(rows=(bound | vector,))
    what = f"{one.producer} gave an answer that {one.table} cannot hold"
    return Rows(failure=Failure(error_class="BadAnswer", message=what))


def _scores(one: Pass) -> Sequence[ScoreFact]:
    return one.stage.scores if one.table == "scores" else ()


def cleaned_anew(one: Pass, row: Mapping[str, Any], settings: str) -> Rows:
    """Return a stored caption as the clean-up of now makes it; the captioner is not asked."""
    bound = dict(row) | {"settings": settings, "rank": one.rank}
    if row["status"] == FAILED and row["raw"] is None:  # there never was an answer to clean
        name, _, message = (row["message"] or "").partition(": ")
        failure = Failure(error_class=name, message=message, final=True)
        return Rows(rows=(bound,), failure=failure)
    answer = row["caption"] if row["raw"] is None else row["raw"]
    return _caption(bound | {"message": None}, answer, one.clean)


def _caption(bound: Mapping[str, Any], answer: Answer, rules: Clean | None) -> Rows:
    used: tuple[str, ...] = ()
    told: dict[str, Any] = {"caption": "", "status": OK, "raw": None}
    if isinstance(answer, Failure):
        failure = answer
    elif not isinstance(answer, str):
        failure = Failure(error_class="BadAnswer", message="a captioner must answer with text")
    else:
        cleaned = (rules or Clean()).apply(answer)
        told["caption"], used = cleaned.text, cleaned.rules
        failure = _refused(cleaned.refused) if cleaned.refused else None
        used = (*used, f"refused: {cleaned.refused}") if cleaned.refused else used
        if bound["asked"] is not None and answer != cleaned.text:
            told["raw"] = _storable(answer)
    if failure is not None:
        message = printable(f"{failure.error_class}: {failure.message}")[:MESSAGE_CHARS]
        told |= {"status": FAILED, "message": message}
        if not failure.final:  # so the next run tries again
            told |= {"settings": None, "asked": None}
    return Rows(rows=(dict(bound) | told,), failure=failure, rules=used)


def _storable(answer: str) -> str:
    return answer[:RAW_CHARS].encode("utf-8", "backslashreplace").decode("utf-8")


def _refused(rule: str) -> Failure:
    return Failure(error_class="Unclean", message=f"clean-up refused it: {rule}", final=True)
