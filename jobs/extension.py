"""Does a stage of your own keep its promises? What `kinoray doctor --extension package.module:Class` runs."""

import sys
from collections.abc import Sequence

from ingest import conformance, stage
from jobs import config, render

# The first ones have members that the others lack; a captioner and an embedder differ in their answers only.
KINDS: tuple[stage.Kind, ...] = ("scorer", "keep_rule", "shot_detector", "captioner", "embedder")
DONE, FAILED = 0, 1


def run(use: str, keys: Sequence[str], *, kind: str = "", as_json: bool) -> None:
    """Load a stage with its keys, hold it to the protocol of its kind, and exit 1 when it breaks a promise.

    Without a kind it is the first whose promises it keeps, or else whose protocol it fits. Raises ingest.stage.NotAStage,
    ConfigError.
    """
    kinds: list[stage.Kind] = [known for known in KINDS if kind in ("", known)]
    if not kinds:
        hint = config.nearest(kind, KINDS)
        raise config.ConfigError((f"{kind}: no kind of stage{hint} (known: {', '.join(KINDS)})",))
    settings = config.keys(keys)
    fits: list[stage.Kind] = [known for known in kinds if _fits(use, settings, known)]
    checked: dict[stage.Kind, tuple[str, ...]] = {
        k: conformance.check(k, stage.load(use, settings, k)) for k in fits or kinds[-1:]
    }
    keeps: list[stage.Kind] = [known for known, problems in checked.items() if not problems]
    found = (keeps or list(checked))[0]
    producer = stage.producer_of(stage.load(use, settings, found))
    if as_json:
        told = {"use": use, "kind": found, "producer": producer}
        render.result(told | {"problems": list(checked[found])}, as_json=True)
    else:
        rows = [("failed", problem) for problem in checked[found]]
        render.table(rows or [("ok", f"{producer} keeps what a {found} promises")])
    sys.exit(FAILED if checked[found] else DONE)


def _fits(use: str, settings: config.Table, kind: stage.Kind) -> bool:
    try:
        stage.load(use, settings, kind)
    except stage.NotAStage:
        return False
    return True
