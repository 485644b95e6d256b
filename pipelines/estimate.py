"""What a curate run would take: sources counted, a few of them timed on a short piece, the rest extrapolated.

Nothing is written but a scratch folder that is gone afterwards. What the numbers rest on is said with them.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.resources import nodes
from cluster.session import Cluster, session
from ingest.decide import DECIDED
from ingest.schema import SCORES
from ingest.sources import Source, SourceError, list_sources
from ingest.stage import Needs, needs_of
from ingest.trial import TRIAL_S, Trial, declared_s, trial
from ingest.unit import num_parts
from pipelines.captioners import passes_of
from pipelines.curate import STAGES, Config
from pipelines.deciding import own_of
from pipelines.passes import Pass
from pipelines.plan import Number, Plan, Step

SAMPLES = 3
ATTEMPTS = 6
PROBED = 48
FETCHED_BYTES = 64 << 20  # what is copied from a store or out of a tar for one look is at most this
MB = 1e6
CLOCK = "start_pts, end_pts, start_s, end_s, shot_index, frame_count, fps_num, fps_den"
WRITES = {
    "list": "",
    "hash": "source_sha256",
    "decode": "frames_decoded, decode_errors, width, height, timebase_num, timebase_den, crop_*",
    "shots": CLOCK,
    "scores": ", ".join((*SCORES, "phash")),
    "keep": "fate, rule, score, threshold",
    "encode": "payload (H.264 or PNG)",
    "check": "stage, error_class, message of a payload that is not what it must be",
    "shard": "shard, offset, length, crc32, payload_sha256, payload_kind",
    "commit": "ledger rows",
    "decide": ", ".join(DECIDED),
    "annotate": "",
}
NEEDS = {
    "list": "the driver",
    "hash": "1 CPU for each source at a time",
    "commit": "the driver",
    "decide": "the driver; decodes nothing",
}
NOT_IN_IT = (
    "not in it: starting Ray, near duplicates, leakage and keep rules of your own (they keep "
    "fewer), annotation passes, other work on the same CPUs"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """How long the sources are: declared seconds of those that were asked, and of all by their bytes."""

    asked: int
    silent: int
    total_s: float
    longest_s: float
    units: int
    exact: bool


def estimated(config: Config, plan: Plan) -> Plan:
    """Return the plan of a run with its stages in full, and an estimate from a timed sample."""
    still = config.prep.contract.is_still
    sources = list_sources(config.source, pictures=still, layout=config.layout)
    passes = passes_of(config.captions, config.scorers, sources)
    with tempfile.TemporaryDirectory(prefix="kinoray-trial-", dir=config.scratch or None) as folder:
        lengths = _lengths(config, sources, Path(folder))
        known = _known(config, sources, lengths)
        trials = list(_trials(config, sources, lengths, Path(folder)))
    cores = _cores(config.cluster)
    numbers, notes = _extrapolated(config, sources, known, trials, cores)
    return replace(
        plan,
        counts={**plan.counts, "units": known.units},
        steps=steps(passes),
        estimate=numbers,
        notes=(*plan.notes, *notes),
    )


def steps(passes: Sequence[Pass]) -> tuple[Step, ...]:
    """Return the stages of a run with what each writes and needs; each annotation pass is one."""
    found: list[Step] = []
    for name in STAGES:
        if name == "annotate":
            found += [_step(one) for one in passes]
        else:
            needs = NEEDS.get(name, "1 CPU for each unit of work")
            found.append(Step(name=name, writes=WRITES[name], needs=needs))
    return tuple(found)


def _step(one: Pass) -> Step:
    columns = {
        "captions": "caption",
        "labels": "label",
        "embeddings": "vector",
        "scores": ", ".join(fact.name for fact in getattr(one.stage, "scores", ())),
    }
    name = f"{one.table}: {one.producer}"
    return Step(name=name, writes=columns[one.table], needs=_in_words(needs_of(one.stage)))


def _in_words(needs: Needs) -> str:
    if needs.inline:
        return "the driver; reads columns and side files"
    frames = "every frame" if needs.frames == "all" else f"{needs.frames} frames"
    sees = [frames] if needs.frames else []
    sees += ["the embedding"] if needs.embedding else []
    room = [f"{needs.num_cpus:g} CPU"]
    room += [f"{needs.num_gpus:g} GPU where there is one"] if needs.num_gpus else []
    room += [f"{needs.memory_bytes / 2**30:.1f} GiB"] if needs.memory_bytes else []
    who = "each actor" if needs.costly else "each task"
    seen = " and ".join(sees) or "columns"
    return f"{seen} of each kept clip; {', '.join(room)} for {who} of {needs.batch_clips} clips"


def _near(source: Source) -> bool:
    """Whether a look at a source is cheap: a file of this machine, or a small copy."""
    return source.bytes <= FETCHED_BYTES or (source.member is None and Path(source.uri).exists())


def _lengths(config: Config, sources: Sequence[Source], folder: Path) -> dict[str, float]:
    """Return the declared seconds of some sources, evenly over their sizes, by URI; 0 where silent."""
    near = sorted((s for s in sources if _near(s)), key=lambda s: (s.bytes, s.uri))
    count = min(PROBED, len(near))
    found: dict[str, float] = {}
    for source in (near[(2 * i + 1) * len(near) // (2 * count)] for i in range(count)):
        try:
            found[source.uri] = declared_s(source, prep=config.prep, scratch=folder)
        except SourceError:
            found[source.uri] = 0.0
    return found


def _known(config: Config, sources: Sequence[Source], lengths: dict[str, float]) -> Known:
    told = {uri: length for uri, length in lengths.items() if length}
    pace = sum(told.values()) / max(1, sum(s.bytes for s in sources if s.uri in told))
    by_source = [(s, lengths.get(s.uri, s.bytes * pace)) for s in sources]
    return Known(
        asked=len(lengths),
        silent=len(lengths) - len(told),
        total_s=sum(length for _, length in by_source),
        longest_s=max((length for _, length in by_source), default=0.0),
        units=sum(num_parts(s.bytes, length, config.prep) for s, length in by_source),
        exact=len(lengths) == len(sources),
    )


def _trials(
    config: Config, sources: Sequence[Source], lengths: dict[str, float], folder: Path
) -> Iterator[Trial]:
    """Yield up to SAMPLES trials that could be timed, and those that failed on the way."""
    near = [s for s in sources if _near(s)]
    pick = _by_bytes(near, lambda source: lengths.get(source.uri, 1.0) > 0)
    own, timed = own_of(config.prep, config.detector, config.keep), 0
    for source in pick[:ATTEMPTS]:
        length = lengths.get(source.uri)
        if length is None:
            try:
                length = declared_s(source, prep=config.prep, scratch=folder)
            except SourceError:
                length = 0.0
        done = trial(
            source,
            length,
            prep=own.prep,
            keep=config.keep,
            scratch=folder,
            detector=own.detector,
        )
        yield done
        timed += not done.problem and done.source_s > 0
        if timed == SAMPLES:
            return


def _by_bytes(sources: Sequence[Source], likely: Callable[[Source], bool]) -> list[Source]:
    """Return sources to try, the first few so that each stands for an equal share of the bytes."""
    ordered = sorted((s for s in sources if likely(s)), key=lambda s: (s.bytes, s.uri))
    ordered = ordered or sorted(sources, key=lambda s: (s.bytes, s.uri))
    total, passed, picked = sum(s.bytes for s in ordered), 0, list[Source]()
    for source in ordered:
        passed += source.bytes
        if len(picked) < SAMPLES and passed * 2 * SAMPLES >= total * (2 * len(picked) + 1):
            picked.append(source)
    return picked + [s for s in reversed(ordered) if s not in picked][:ATTEMPTS]


def _cores(cluster: Cluster) -> float:
    """Return the CPUs of this machine, or of the running cluster that the recipe names."""
    if cluster.address == "local":
        here = len(os.sched_getaffinity(0))
        return float(here if cluster.num_cpus == "all" else cluster.num_cpus)
    with session(cluster):
        return sum(node.num_cpus for node in nodes())


def _extrapolated(
    config: Config,
    sources: Sequence[Source],
    known: Known,
    trials: Sequence[Trial],
    cores: float,
) -> tuple[dict[str, Number], list[str]]:
    timed = [one for one in trials if not one.problem and one.source_s > 0]
    notes = [f"not timed: {Path(one.uri).name}: {one.problem}" for one in trials if one.problem]
    if not timed:
        return {}, [*notes, "no estimate: no source could be timed"]
    seconds, num_bytes = known.total_s, sum(source.bytes for source in sources)

    def all_of(what: Callable[[Trial], float]) -> tuple[float, float, float]:
        rates = [what(one) / one.source_s for one in timed]
        pooled = sum(what(one) for one in timed) / sum(one.source_s for one in timed)
        return pooled * seconds, min(rates) * seconds, max(rates) * seconds

    hash_s = num_bytes * sum(t.hash_s for t in timed) / max(1, sum(t.num_bytes for t in timed))
    cpu_s = tuple(one + hash_s for one in all_of(lambda t: t.cpu_s))
    unit_s = min(known.longest_s, 1.5 * config.prep.max_unit_s)  # no unit ends before it is done
    longest_s = unit_s * sum(t.cpu_s for t in timed) / sum(t.source_s for t in timed)
    wall_s = tuple(max(one / max(1.0, cores), longest_s) for one in cpu_s)
    numbers: dict[str, Number] = {
        "video": f"about {seconds / 60:.1f} minutes",
        "CPU time": _between("{:.0f} s", cpu_s),
        "wall time": _between("{:.0f} s", wall_s) + f" on {cores:g} CPUs, all of them ours",
        "candidate clips": _between("{:.0f}", all_of(lambda t: t.candidates)),
        "kept clips": _between("{:.0f}", all_of(lambda t: t.kept)),
        "output": _between("{:.1f} MB", all_of(lambda t: t.payload_bytes / MB)),
    }
    return numbers, [*notes, *_grounds(sources, known, timed)]


def _between(form: str, values: tuple[float, ...]) -> str:
    middle, low, high = (form.format(value) for value in values)
    return f"about {middle}" if low == high else f"about {middle} ({low} to {high})"


def _grounds(sources: Sequence[Source], known: Known, timed: Sequence[Trial]) -> list[str]:
    """Return in words what the estimate rests on."""
    lengths = f"the lengths that {known.asked - known.silent} of {len(sources)} sources declare"
    if not known.exact:
        lengths += ", the others' taken from their bytes"
    took = ", ".join(f"{Path(t.uri).name} {t.source_s:.0f} s" for t in timed)
    return [
        f"rests on {lengths}, and on {len(timed)} timed pieces of at most {TRIAL_S}-odd seconds: {took}",
        "the range is what all would be like if they were like the cheapest, or the dearest, of these",
        NOT_IN_IT,
    ]
