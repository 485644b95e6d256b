"""The commands for runs and Ray jobs; without --address they read run folders, and only with it they load anything of Ray."""

from pathlib import Path
from typing import Any

import click

VERBS = ("curate", "train", "sample", "evaluate", "run")


def _option(*names: str, text: str) -> Any:
    return click.option(*names, is_flag=True, help=text)


_json = _option("--json", "as_json", text="End with one JSON line on standard output.")
_debug = _option("--debug", text="Show tracebacks.")
_address = click.option(
    "--address",
    default="",
    metavar="URL",
    help="The dashboard of a running cluster, http://HOST:8265 (default: look at run folders).",
)


@click.command()
@click.argument("verb", type=click.Choice(VERBS), metavar="VERB|run")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--address", default="", metavar="URL", help="Its dashboard, http://HOST:8265.")
@_option("--follow", text="Show what the job writes, and end with its exit code.")
@_option("--dry-run", text="Show what would be submitted and ask nobody.")
@_option("--no-resume", text="A new attempt even of what has succeeded; it starts over.")
@_option("--quiet", text="No talk: results only.")
@_json
@_debug
def submit(
    verb: str, recipe: Path, overrides: tuple[str, ...], *, debug: bool, **flags: Any
) -> None:
    """Run a verb or a chain as a job of a Ray cluster; asked for twice it is one job.

    \b
    kinoray submit train jobs/recipes/base.toml dataset=s3://lab/mine out=runs/base --address http://head:8265 --follow
    """
    del debug  # looked up where errors are told
    if not flags["address"] and not flags["dry_run"]:
        raise click.UsageError(
            "--address: which cluster? next: --address http://HOST:8265, as `ray start` prints it; "
            f"or kinoray {verb} {recipe}, which runs here"
        )
    from jobs import ray_jobs

    ray_jobs.hand_over(verb, recipe, overrides, ray_jobs.Flags(**flags))


@click.command()
@click.argument("run", default="", metavar="[RUN|JOB]")
@_address
@_option("--watch", text="Show it again until it has ended.")
@_json
@_debug
def status(run: str, *, address: str, watch: bool, as_json: bool, debug: bool) -> None:
    """Show how far a run is: of a folder, or with --address a job of a cluster.

    \b
    kinoray status runs/base
    kinoray status train-0123456789ab --address http://head:8265
    """
    del debug
    if address:
        from jobs import ray_jobs

        ray_jobs.status(run, ray_jobs.Flags(address=address, watch=watch, as_json=as_json))
        return
    from jobs import run_commands

    run_commands.status(Path(run or "."), watch=watch, as_json=as_json)


@click.command()
@click.argument("run", default="", metavar="[RUN|JOB]")
@_address
@_option("--follow", text="Go on until it ends; of a job, end with its exit code.")
@_json
@_debug
def logs(run: str, *, address: str, follow: bool, as_json: bool, debug: bool) -> None:
    """Show what a run has said: of a folder, or with --address a job of a cluster."""
    del debug
    if address:
        from jobs import ray_jobs

        _named(run, "logs", address)
        ray_jobs.logs(run, ray_jobs.Flags(address=address, follow=follow, as_json=as_json))
        return
    from jobs import run_commands

    run_commands.logs(Path(run or "."), follow=follow, as_json=as_json)


@click.command()
@click.argument("run", default="", metavar="RUN|JOB")
@_address
@_json
@_debug
def stop(run: str, *, address: str, as_json: bool, debug: bool) -> None:
    """Let a run commit what is in flight and end; the same command as before continues it."""
    del debug
    _named(run, "stop", address)
    if address:
        from jobs import ray_jobs

        ray_jobs.stop(run, ray_jobs.Flags(address=address, as_json=as_json))
        return
    from jobs import run_commands

    run_commands.stop(Path(run), as_json=as_json)


@click.command("list")
@click.argument("folder", default=".", type=click.Path(path_type=Path))
@_address
@_json
@_debug
def listing(folder: Path, *, address: str, as_json: bool, debug: bool) -> None:
    """Show the runs below a folder, or with --address the jobs of a cluster."""
    del debug
    if address:
        from jobs import ray_jobs

        ray_jobs.listing(ray_jobs.Flags(address=address, as_json=as_json))
        return
    from jobs import run_commands

    run_commands.listing(folder, as_json=as_json)


COMMANDS = (submit, status, logs, stop, listing)


def _named(run: str, command: str, address: str) -> None:
    if not run:
        where = f"JOB --address {address}; kinoray list --address {address} names them"
        raise click.UsageError(
            f"{command}: of which? next: kinoray {command} {where if address else 'FOLDER'}"
        )
