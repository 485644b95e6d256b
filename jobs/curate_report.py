"""The page of a curate run: what became of everything, by which bound, at what cost, with clips to judge it by."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from ingest.columns import among
from ingest.decide import LEAKAGE, NEAR
from ingest.keep import RULES
from ingest.schema import FAILED
from ingest.store import Dataset
from jobs import contact, run_notes
from jobs.candidates import Candidates, candidates
from jobs.charts import funnel, passing_share, spread
from jobs.page import bars, details, page, table, text
from jobs.rule_words import counted, words
from jobs.run_notes import Notes

FILES_SHOWN = 40
SLOWEST = 8
# By fate; of a source in parts the first of these that one of its parts has.
SOURCES = {
    "kept": "with kept clips",
    "failed": "failed",
    "rejected": "without a kept clip",
    "duplicate": "same bytes as another",
}
STAGES = {
    "decode": "decode (waiting for ffmpeg)",
    "shots": "shots (luma and cuts)",
    "scores": "scores and hash",
    "encode": "encode",
    "check": "check what was written",
}


def page_of(dataset: Dataset, folder: Path) -> bytes:
    """Return the whole page of the run whose notes are in `folder`."""
    notes = run_notes.notes(folder)
    title = f"curate {folder.name}"
    facts = f"dataset {dataset.root}, version {dataset.version}, digest {dataset.digest()[:12]}"
    head = f'<h1>{text(title)}</h1><p class="small">{text(facts)}</p>'
    return page(title, [head, *parts(dataset, notes)])


def parts(dataset: Dataset, notes: Notes) -> Iterator[str]:
    """Yield what a page says of a dataset and the run that made it."""
    found = candidates(dataset)
    yield "<h2>what became of everything</h2>"
    yield from _funnels(found)
    yield from _failures(found)
    yield from _costs(found, notes)
    yield from _scores(found, notes)
    near_bounds = list(contact.around(dataset, found, notes.bounds))
    if near_bounds:
        yield "<h2>clips around each bound</h2>"
        yield '<p class="small">first, middle and last frame; the nearest come first</p>'
        yield from near_bounds
    groups = list(contact.twins(dataset, found))
    if groups:
        yield "<h2>near duplicates</h2>"
        yield from groups
    yield from _captions(dataset)


def _funnels(found: Candidates) -> Iterator[str]:
    fates: dict[str, set[str]] = defaultdict(set)  # a long source has several rows
    names = found.sources.select(["source_uri", "fate"]).to_pylist()
    for at, row in enumerate(names):
        fates[row["source_uri"] or f"(taken down) {at}"].add(row["fate"])
    fate = Counter(next(name for name in SOURCES if name in told) for told in fates.values())
    told = [(SOURCES[name], fate[name]) for name in SOURCES if fate[name]]
    yield bars([("sources", len(fates)), *told])
    yield funnel(steps(found))
    why = Counter(row for row in found.sources.column("rule").to_pylist() if row)
    if why:
        yield f'<p class="small">sources without a clip: {text(counted(why))}</p>'


def steps(found: Candidates) -> list[tuple[str, int, str]]:
    """Return how many clips are left after each rule, in the order in which rules are asked."""
    fates = found.clips.column("fate").to_pylist()
    gone = Counter(found.clips.column("rule").to_pylist())
    gone.pop(None, None)
    left, told = len(fates), [("candidate clips", len(fates), "")]
    last = [rule for rule in (LEAKAGE, NEAR) if rule in gone]
    others = sorted(gone.keys() - {*RULES, *last})
    failed = fates.count("failed")
    for rule in [*RULES, *others, *last]:
        if gone[rule]:
            left -= gone[rule]
            told.append((f"after: {words(rule)}", left, f"-{gone[rule]} by {rule}"))
    if failed:
        left -= failed
        told.append(("after: failed", left, f"-{failed}"))
    return [*told, ("kept clips", fates.count("kept"), _share(fates.count("kept"), len(fates)))]


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else ""


def _failures(found: Candidates) -> Iterator[str]:
    names: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for rows in (found.sources, found.clips):
        failed = rows.select(["fate", "stage", "error_class", "source_uri", "message"])
        for row in failed.filter(_is(failed, "failed")).to_pylist():
            reason = row["stage"] or "?", row["error_class"] or "?"
            names[reason].append((Path(row["source_uri"] or "?").name, row["message"] or ""))
    if not names:
        return
    yield "<h2>failures by reason</h2>"
    for (stage, error), files in sorted(names.items(), key=lambda item: -len(item[1])):
        shown = table(("file", "message"), files[:FILES_SHOWN])
        if len(files) > FILES_SHOWN:
            shown += f'<p class="small">and {len(files) - FILES_SHOWN} more, in the ledger</p>'
        yield details(f"{stage}: {error}: {len(files)}", shown)


def _is(rows: pa.Table, fate: str) -> pa.Array:
    return pa.array(among(rows.column("fate"), [fate]))


def _costs(found: Candidates, notes: Notes) -> Iterator[str]:
    if not notes.units:
        return
    yield "<h2>what it took</h2>"
    spent: dict[str, float] = defaultdict(float)
    for numbers in notes.units.values():
        for name, value in numbers.items():
            spent[name] += value
    yield table(("", ""), _throughput(spent, notes))
    taken = {name: spent[f"{name}_s"] for name in STAGES}
    taken["other"] = max(0.0, spent["wall_s"] - sum(taken.values()))
    source_s = spent["source_s"] or 1.0
    yield table(
        ("stage, in the workers", "seconds", "share", "ms for a second of video"),
        [
            (
                STAGES.get(name, "everything else (probe, bars, hashing, shards)"),
                f"{seconds:.1f}",
                _share(seconds, spent["wall_s"]),
                f"{1000 * seconds / source_s:.1f}",
            )
            for name, seconds in taken.items()
        ],
    )
    yield from _slowest(found, notes)


def _throughput(spent: Mapping[str, float], notes: Notes) -> list[tuple[str, str]]:
    whole = notes.whole
    rows = [
        ("video read", f"{spent['source_s'] / 60:.1f} minutes in {len(notes.units)} units of work"),
        ("CPU time of this work", f"{spent['cpu_s']:.0f} s, children included"),
        ("payloads written", f"{spent['payload_bytes'] / 1e6:.1f} MB"),
        ("source frames decoded", f"{spent['frames_decoded']:.0f}"),
    ]
    if spent["cpu_s"]:
        pace = spent["source_s"] / spent["cpu_s"]
        rows.append(("pace", f"{pace:.1f} seconds of video for a second of one CPU core"))
    if whole.get("wall_s"):
        rows.append(
            ("wall time of the run", f"{whole['wall_s']:.0f} s, {whole['cpu_s']:.0f} CPU-s")
        )
    return rows


def _slowest(found: Candidates, notes: Notes) -> Iterator[str]:
    named = found.sources.select(["unit_id", "source_uri"]).to_pydict()
    uris = dict(zip(named["unit_id"], named["source_uri"], strict=True))
    slow = sorted(notes.units.items(), key=lambda item: -item[1].get("wall_s", 0.0))[:SLOWEST]
    rows = [
        (
            Path(uris.get(unit) or "?").name,
            f"{n.get('wall_s', 0):.1f}",
            f"{n.get('source_s', 0):.1f}",
        )
        for unit, n in slow
    ]
    yield details("the slowest", table(("source", "seconds", "seconds of video"), rows))


def _scores(found: Candidates, notes: Notes) -> Iterator[str]:
    drawn: list[str] = []
    for name, values in found.scores.items():
        bounds = [bound for bound in notes.bounds if bound.score == name]
        signs = sorted({bound.sign for bound in bounds}) or found.signs_of(name)
        chart = spread(values, found.kept, bounds, found.unit_of(name), signs)
        if not chart:
            continue
        told = [
            f"{b.name} {b.threshold:g} alone lets "
            f"{100 * passing_share(values, b.sign, np.array([b.threshold]))[0]:.1f} % pass"
            for b in bounds
        ]
        known = int(np.isfinite(values).sum())
        told.append(f"{known} of {len(values)} candidates have it")
        drawn.append(f'<h3>{text(name)}</h3><p class="small">{text("; ".join(told))}</p>{chart}')
    if drawn:
        yield "<h2>scores of all candidates</h2>"
        yield '<p class="small">in colour: clips that are kept in the end; grey: those that are not</p>'
        yield from drawn


def _captions(dataset: Dataset) -> Iterator[str]:
    told = dataset.captions().select(["producer", "status"]).to_pydict()
    made: dict[str, Counter[str]] = defaultdict(Counter)
    for producer, status in zip(told["producer"], told["status"], strict=True):
        made[producer]["failed" if status == FAILED else "said"] += 1
    chosen = dataset.query("SELECT caption_producer, count(*) AS n FROM clips GROUP BY 1")
    used = {row["caption_producer"]: row["n"] for row in chosen.to_pylist()}
    if not made and not used:
        return
    yield "<h2>captions by producer</h2>"
    names = sorted(made.keys() | {name for name in used if name})
    rows = [
        (name, str(made[name]["said"]), str(made[name]["failed"]), str(used.get(name, 0)))
        for name in names
    ]
    rows.append(("(no caption)", "", "", str(used.get("", 0))))
    yield table(("producer", "captions", "failed", "of kept clips' first captions"), rows)
