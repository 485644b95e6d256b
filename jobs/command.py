"""What the commands do: read the recipe, show the plan or run the verb, show the result, return the exit code."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import config, render

CODES = {"done": 0, "incomplete": 3, "interrupted": 130}


@dataclass(frozen=True, kw_only=True, slots=True)
class Flags:
    """How to run; see `kinoray VERB --help`."""

    dry_run: bool = False
    as_json: bool = False
    quiet: bool = False
    no_resume: bool = False
    verify: bool = False
    address: str = ""
    debug: bool = False


def verb(name: str, recipe: Path, overrides: Sequence[str], flags: Flags) -> None:
    """Run one verb from its recipe."""
    _announce(flags)
    module, made = _module(name), _verb(name, recipe, overrides, flags)
    if flags.dry_run:
        planned = module.plan(made)
        if name == "curate":
            from pipelines import estimate

            render.say(f"kinoray: timing up to {estimate.SAMPLES} sources; nothing of it is kept")
            planned = estimate.estimated(made, planned)
        _plans([planned], flags)
        return
    from jobs import curate_report

    with _opened(made, flags, report=curate_report.page_of) as surroundings:
        result = module.run(made, context=surroundings)
    if name == "sample":
        _sheet(made.out, flags)
    _end(result, flags)


def video(recipe: Path | None, overrides: Sequence[str], flags: Flags) -> None:
    """Make one video of `prompt` without a set and without Ray; `out` is the mp4 to write."""
    _announce(flags)
    from pipelines import sample, single
    from pipelines.identity import plain

    table = config.read(recipe, overrides) if recipe else config.keys(overrides)
    prompt, out = str(table.pop("prompt")), Path(str(table.get("out", "")))
    table.pop("verb", None)
    if out.suffix != ".mp4":
        raise config.ConfigError((f"out: {out} is no .mp4; next: out=video.mp4",))
    # a set's keys, but for those that one video has not
    told = {**table, "prompts": prompt, "out": str(out.parent)}
    made = config.build(sample.Config, told, name=str(recipe or "sample"))
    if flags.dry_run:
        render.result(
            {"verb": "sample", "prompt": prompt, "video": str(out)}, as_json=flags.as_json
        )
        return
    found = single.run(made, prompt, out, say=lambda text: _said(text, flags))
    render.result(plain(found), as_json=flags.as_json)


def export(words: Sequence[str], flags: Flags) -> None:
    """Copy a set's videos into a folder that another evaluation reads."""
    from pipelines import set_exports

    places = [word for word in words if "=" not in word]
    table = config.keys([word for word in words if "=" in word])
    if len(places) != 1 or set(table) != {"layout", "out"}:
        known = " or ".join(set_exports.LAYOUTS)
        usage = f"next: kinoray sample export SET layout={known} out=FOLDER"
        raise config.ConfigError((f"export takes one set, a layout and an out; {usage}",))
    out, layout = Path(str(table["out"])), str(table["layout"])
    number = 0 if flags.dry_run else set_exports.export(Path(places[0]), layout, out)
    told = {"verb": "export", "set": places[0], "layout": layout, "out": str(out), "videos": number}
    render.result(told, as_json=flags.as_json)


def take_in(words: Sequence[str], flags: Flags) -> None:
    """Take videos that were made elsewhere into a set."""
    places = [word for word in words if "=" not in word]
    table = _addressed(config.keys([word for word in words if "=" in word]), flags)
    if len(places) != 1:
        usage = "kinoray sample import FOLDER model=WHO_MADE_THEM out=SET [prompts=FILE]"
        raise config.ConfigError((f"import takes one folder of videos; next: {usage}",))
    _announce(flags)
    from pipelines import imports

    made = config.build(imports.Config, {"videos": places[0], **table}, name="import")
    if flags.dry_run:
        told = {"verb": imports.VERB, "videos": str(made.videos), "set": str(made.out)}
        render.result(told, as_json=flags.as_json)
        return
    with _opened(made, flags) as surroundings:
        result = imports.run(made, context=surroundings)
    _sheet(made.out, flags)
    _end(result, flags)


def _opened(made: Any, flags: Flags, **more: Any) -> Any:
    """Return the surroundings of a run as its config and the flags want them, to be entered."""
    from pipelines import context

    return context.opened(
        cluster=made.cluster,
        tracking_uri=made.tracking_uri,
        show=render.Progress(quiet=flags.quiet),
        resume=not flags.no_resume,
        verify=flags.verify,
        on_stop=render.stopping,
        **more,
    )


def _sheet(folder: Path, flags: Flags) -> None:
    from jobs import sheet

    _said(f"contact sheet {sheet.write(folder)}", flags)


def _said(text: str, flags: Flags) -> None:
    if not flags.quiet:
        render.say(f"kinoray: {text}")


def run(recipe: Path, overrides: Sequence[str], flags: Flags) -> None:
    """Run a chain of verbs and write its report page."""
    _announce(flags)
    made = _chain(recipe, overrides, flags)
    from pipelines import chain

    if flags.dry_run:
        _plans(list(chain.plan(made)), flags)
        return
    from jobs import report

    with _opened(made, flags) as surroundings:
        result = chain.run(made, context=surroundings, report=report.write)
    for step in made.steps:
        if step.verb == "sample" and step.name in result.steps:
            _sheet(step.config.out, flags)
    if not flags.as_json:
        for line in report.screen(result):
            render.out(line)
        sys.exit(CODES[result.status])
    _end(result, flags)


def show(recipe: Path, overrides: Sequence[str], *, as_json: bool) -> None:
    """Print a resolved recipe with its digest."""
    flags = Flags(as_json=as_json)
    table = config.read(recipe, overrides)
    from pipelines.identity import plain, recipe_digest

    if isinstance(table.get("steps"), dict):
        made = _chain(recipe, overrides, flags)
        steps = {step.name: step for step in made.steps}
        resolved = {name: {"verb": s.verb, **plain(s.config)} for name, s in steps.items()}
        digests = {name: recipe_digest(s.config) for name, s in steps.items()}
    else:
        name = config.verb_of(table, recipe)
        single = config.build(_module(name).Config, _keys(table, name, recipe), name=str(recipe))
        resolved, digests = {name: plain(single)}, {name: recipe_digest(single)}
    if as_json:
        render.result({"recipe": resolved, "digest": digests}, as_json=True)
        return
    for name, values in resolved.items():
        render.out(f"{name}  {digests[name][:12]}")
        render.table([(key, str(value)) for key, value in config.flat(values).items()])


def resolved(name: str, recipe: Path, overrides: Sequence[str]) -> Any:
    """Return the config of a verb, or of a chain for "run", as its recipe and overrides tell it."""
    if name == "run":
        return _chain(recipe, overrides, Flags())
    return _verb(name, recipe, overrides, Flags())


def _verb(name: str, recipe: Path, overrides: Sequence[str], flags: Flags) -> Any:
    table = _addressed(config.read(recipe, overrides), flags)
    return config.build(_module(name).Config, _keys(table, name, recipe), name=str(recipe))


def _module(name: str) -> Any:
    # One of config.VERBS; the others' libraries (torch, diffusers) take seconds that curate does not need.
    return importlib.import_module(f"pipelines.{name}")


def _announce(flags: Flags) -> None:
    if not flags.quiet:
        render.say("kinoray: loading libraries (a few seconds; longer the first time)")


def _keys(table: dict[str, Any], name: str, recipe: Path) -> dict[str, Any]:
    """Return the verb's keys; a recipe for another verb is refused."""
    if config.verb_of({"verb": name, **table}, recipe) != name:
        raise config.ConfigError(
            (f"{recipe}: is a recipe for {table['verb']}; next: kinoray {table['verb']} {recipe}",)
        )
    return {key: value for key, value in table.items() if key != "verb"}


def _addressed(table: dict[str, Any], flags: Flags) -> dict[str, Any]:
    if flags.address and isinstance(table.setdefault("cluster", {}), dict):
        table["cluster"]["address"] = flags.address
    return table


def _chain(recipe: Path, overrides: Sequence[str], flags: Flags) -> Any:
    from jobs import chain_recipe

    made = chain_recipe.load(recipe, overrides)
    return made if not flags.address else chain_recipe.at(made, flags.address)


def _plans(plans: list[Any], flags: Flags) -> None:
    from pipelines.identity import plain

    if flags.as_json:
        render.result({"plan": [plain(plan) for plan in plans]}, as_json=True)
        return
    for plan in plans:
        render.out(f"{plan.verb} -> {plan.out}")
        render.table([(key, str(value)) for key, value in plan.counts.items()])
        if plan.stages:
            render.out("  stages  " + " -> ".join(plan.stages))
        if plan.steps:
            steps = [(step.name, step.writes, step.needs) for step in plan.steps]
            render.table([("stage", "writes", "needs"), *steps])
        if plan.estimate:
            render.out("  estimate")
            render.table([(f"  {key}", render.cell(value)) for key, value in plan.estimate.items()])
        for note in plan.notes:
            render.out(f"  {note}")


def _end(result: Any, flags: Flags) -> None:
    from pipelines.identity import plain

    render.result(plain(result), as_json=flags.as_json)
    if result.status == "incomplete":
        render.say("kinoray: finished but incomplete; the reasons are above and in the ledger")
    if result.status == "interrupted":
        render.say(
            "kinoray: stopped, everything finished is kept; next: the same command again continues"
        )
    sys.exit(CODES[result.status])
