"""Chain recipes: `[steps.NAME]` tables, each a verb with its keys; `@NAME` is the output folder of that step.

Keys that every verb has (seed, tracking_uri, cluster) are written once at the top. An override that names no step goes to the
one step that has such a key, so that `source=my_videos` needs no path.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from cluster.session import Cluster
from jobs.config import ConfigError, build, nearest, read, verb_of
from pipelines import chain


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shared:
    name: str = ""
    seed: int = 0
    parallel: int = 1
    tracking_uri: str = ""
    cluster: Cluster = field(default_factory=Cluster)


SHARED = ("seed", "tracking_uri", "cluster")
TOP = ("name", "out", "steps", "parallel", *SHARED)


def load(recipe: Path, overrides: Sequence[str]) -> chain.Config:
    """Return the chain in `recipe`; ConfigError holds every problem of every step."""
    verbs = _verbs(read(recipe), recipe)
    routed = [_routed(text, verbs) for text in overrides]
    table = read(recipe, routed)
    verbs = _verbs(table, recipe)
    out = Path(str(table.get("out", "")))
    problems: list[str] = [] if table.get("out") else [f"{recipe}: out: Field required"]
    problems += [f"{recipe}: {k}: unknown key{nearest(k, TOP)}" for k in table if k not in TOP]
    steps: list[chain.Step] = []
    for name, verb in verbs.items():
        try:
            steps.append(_step(name, verb, table, recipe, out))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(tuple(problems))
    values = {k: table[k] for k in ("name", "parallel", *SHARED) if k in table}
    try:
        return build_chain(values, out, tuple(steps), str(recipe))
    except ValueError as error:
        raise ConfigError((f"{recipe}: {error}",)) from None


def build_chain(
    values: dict[str, Any], out: Path, steps: tuple[chain.Step, ...], name: str
) -> chain.Config:
    """Return the chain with its shared keys checked; ValueError for needs that cannot be met."""
    checked = build(_Shared, values, name=name)
    return chain.Config(
        out=out,
        steps=steps,
        name=checked.name or Path(name).stem,
        seed=checked.seed,
        parallel=checked.parallel,
        tracking_uri=checked.tracking_uri,
        cluster=checked.cluster,
    )


def at(made: chain.Config, address: str) -> chain.Config:
    """Return the chain on the cluster at `address`."""
    steps = tuple(
        replace(
            step, config=replace(step.config, cluster=replace(step.config.cluster, address=address))
        )
        for step in made.steps
    )
    return replace(made, steps=steps, cluster=replace(made.cluster, address=address))


def _verbs(table: dict[str, Any], recipe: Path) -> dict[str, str]:
    steps = table.get("steps")
    if not isinstance(steps, dict) or not steps:
        raise ConfigError((f"{recipe}: steps: a chain needs [steps.NAME] tables",))
    for name, step in steps.items():
        if not isinstance(step, dict):
            raise ConfigError((f"{recipe}: steps.{name}: is a value, not a table",))
    return {name: verb_of(step, recipe, prefix=f"steps.{name}.") for name, step in steps.items()}


def _step(name: str, verb: str, table: dict[str, Any], recipe: Path, out: Path) -> chain.Step:
    own = {k: v for k, v in table["steps"][name].items() if k != "verb"}
    needs = tuple(dict.fromkeys(_needs(own)))
    shared = {k: table[k] for k in SHARED if k in table}
    outs = {
        n: str(step.get("out") or out / n) if isinstance(step, dict) else ""
        for n, step in table["steps"].items()
    }
    filled = {**shared, "out": outs[name], **_resolved(own, outs)}
    schema = chain.VERBS[verb].Config
    made = build(schema, filled, name=str(recipe), prefix=f"steps.{name}.")
    return chain.Step(name=name, verb=verb, config=made, needs=needs)


def _needs(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.startswith("@"):
        yield value[1:]
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _needs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _needs(inner)


def _resolved(value: Any, outs: dict[str, str]) -> Any:
    if isinstance(value, str) and value.startswith("@"):
        # An unknown step stays as it is written: the chain's own check names it.
        return outs.get(value[1:], value)
    if isinstance(value, dict):
        return {k: _resolved(v, outs) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolved(v, outs) for v in value]
    return value


def _routed(text: str, verbs: dict[str, str]) -> str:
    key = text.partition("=")[0].strip().split(".")[0]
    if key in TOP:
        return text
    having = [n for n, v in verbs.items() if key in {f.name for f in fields(chain.VERBS[v].Config)}]
    if len(having) == 1:
        return f"steps.{having[0]}.{text}"
    if having:
        options = ", ".join(f"steps.{name}.{key}" for name in having)
        raise ConfigError((f"{text}: several steps have this key; write one of {options}",))
    known = [*TOP, *(f.name for v in set(verbs.values()) for f in fields(chain.VERBS[v].Config))]
    raise ConfigError((f"{text}: no step has the key {key}{nearest(key, known)}",))
