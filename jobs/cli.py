"""The commands a person types: flags say how to run, keys what to run; heavy imports wait for their command."""

from pathlib import Path
from typing import Any

import click

from jobs import cli_jobs
from jobs.cli_cluster import cluster
from jobs.cli_dataset import dataset

RECIPES = Path(__file__).resolve().parent / "recipes"
EPILOG = "Exit codes: 0 done, 1 failed, 2 wrong recipe or arguments, 3 finished but incomplete, 130 interrupted (resumable)."


class Commands(click.Group):
    """A command group that keeps the order of the work and names the nearest command on a typing error."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """Return the commands in the order they were written, not by letter."""
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Return the command; an unknown one names its nearest neighbour."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            from jobs.config import nearest

            raise click.UsageError(
                f"no such command: {args[0]}{nearest(args[0], list(self.commands))}"
            )
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
def kinoray() -> None:
    """Turn raw video into evaluated video generators on a Ray cluster.

    \b
    kinoray demo                                 the whole job on real video, on this machine
    kinoray curate jobs/recipes/curate.toml source=my_videos out=datasets/mine
    kinoray run jobs/recipes/demo.toml           a chain of verbs; finished steps are skipped
    """


def _flags(command: Any) -> Any:
    options = [
        click.option("--dry-run", is_flag=True, help="Show the plan and touch nothing."),
        click.option(
            "--json", "as_json", is_flag=True, help="End with one JSON line on standard output."
        ),
        click.option("--quiet", is_flag=True, help="No progress: warnings and the end only."),
        click.option(
            "--no-resume",
            is_flag=True,
            help="Start over; an existing output folder is moved aside.",
        ),
        click.option(
            "--address",
            default="",
            help="A running Ray cluster (default: one embedded in this process).",
        ),
        click.option("--debug", is_flag=True, help="Show tracebacks."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _recipe(command: Any) -> Any:
    command = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(command)
    return click.argument("recipe", type=click.Path(path_type=Path))(command)


@kinoray.command()
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@_flags
def demo(overrides: tuple[str, ...], **flags: Any) -> None:
    """Do the whole job on real video with tiny models, ending with a report page.

    \b
    kinoray demo
    kinoray demo source=my_videos out=runs/mine
    """
    from jobs import command, demo_videos

    if any(text.startswith(("source=", "steps.curate.source=")) for text in overrides):
        # The captions that come with the recipe belong to its own videos.
        overrides = (
            'steps.curate.captions={captioners = ["manifest", "sidecar", "name"]}',
            *overrides,
        )
    elif not flags["dry_run"]:
        demo_videos.unpack()
    command.run(RECIPES / "demo.toml", overrides, command.Flags(**flags))


@kinoray.command()
@_recipe
@_flags
def run(recipe: Path, overrides: tuple[str, ...], **flags: Any) -> None:
    """Run a chain of verbs whose dependencies are data; finished steps are skipped by digest."""
    from jobs import command

    command.run(recipe, overrides, command.Flags(**flags))


@kinoray.command()
@_recipe
@_flags
def curate(recipe: Path, overrides: tuple[str, ...], **flags: Any) -> None:
    """Turn videos into exact clips: scored, captioned, filtered, in a versioned dataset."""
    _verb("curate", recipe, overrides, flags)


@kinoray.command()
@_recipe
@_flags
def train(recipe: Path, overrides: tuple[str, ...], **flags: Any) -> None:
    """Train a base, motion or SSR (spatial super-resolution) model on a dataset."""
    _verb("train", recipe, overrides, flags)


@kinoray.command()
@_recipe
@click.option(
    "--verify", is_flag=True, help="Look at every file first; what is damaged is made again."
)
@_flags
def sample(recipe: Path, overrides: tuple[str, ...], **flags: Any) -> None:
    """Generate an evaluation set: prompts times seeds, overlapping windows reduced by MultiDiffusion.

    \b
    kinoray sample jobs/recipes/sample.toml prompts=prompts.txt out=sets/mine
    kinoray sample prompt="a red boat" base=runs/base motion=runs/motion out=boat.mp4    (one video)
    kinoray sample export sets/mine layout=vbench out=vbench    (or layout=evalcrafter)
    kinoray sample import FOLDER model="another product" prompts=prompts.txt out=sets/theirs
    """
    if str(recipe) in {"export", "import"} and not recipe.exists():
        from jobs import command

        words, told = overrides, command.Flags(**flags)
        (command.export if str(recipe) == "export" else command.take_in)(words, told)
        return
    keys = overrides if recipe.exists() or "=" not in str(recipe) else (str(recipe), *overrides)
    if any(key.startswith("prompt=") for key in keys):
        from jobs import command

        command.video(recipe if keys is overrides else None, keys, command.Flags(**flags))
    else:
        _verb("sample", recipe, overrides, flags)


@kinoray.command()
@_recipe
@_flags
def evaluate(recipe: Path, overrides: tuple[str, ...], **flags: Any) -> None:
    """Measure an evaluation set; an incomplete one is refused with exit code 3."""
    _verb("evaluate", recipe, overrides, flags)


@kinoray.command()
@_recipe
@click.option("--json", "as_json", is_flag=True, help="One JSON line instead of a table.")
def show(recipe: Path, overrides: tuple[str, ...], *, as_json: bool) -> None:
    """Print the resolved recipe and its digest."""
    from jobs import command

    command.show(recipe, overrides, as_json=as_json)


@kinoray.command()
@click.argument("keys", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--extension",
    default="",
    metavar="PACKAGE.MODULE:CLASS",
    help="Test a stage of your own instead; keys are its constructor's.",
)
@click.option("--kind", default="", help="What it is to be (default: the kind it fits).")
@click.option(
    "--address",
    default="",
    metavar="URL",
    help="Also ask the dashboard of a running cluster, http://HOST:8265, without a token: it must refuse.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON line instead of a table.")
def doctor(
    keys: tuple[str, ...], *, extension: str, kind: str, address: str, as_json: bool
) -> None:
    """Check ffmpeg, the decoder, Ray, the accelerator, disk and tracker; each failure names the next step.

    \b
    kinoray doctor
    kinoray doctor --extension my_lab.stages:Captioner prompt="what is to be seen?"
    """
    if extension:
        from jobs import extension as own

        own.run(extension, keys, kind=kind, as_json=as_json)
    if keys or kind:
        raise click.UsageError("keys and --kind are for --extension package.module:Class")
    from jobs import doctor as checks

    checks.run(as_json=as_json, address=address)


kinoray.add_command(dataset)
for one in cli_jobs.COMMANDS:
    kinoray.add_command(one)
kinoray.add_command(cluster)


def _verb(verb: str, recipe: Path, overrides: tuple[str, ...], flags: dict[str, Any]) -> None:
    from jobs import command

    command.verb(verb, recipe, overrides, command.Flags(**flags))
