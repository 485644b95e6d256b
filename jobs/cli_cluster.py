"""`kinoray cluster ...`: a cluster on this machine, and the files that start one elsewhere."""

from typing import Any

import click

JSON = click.option(
    "--json", "as_json", is_flag=True, help="End with one JSON line on standard output."
)
DEBUG = click.option("--debug", is_flag=True, help="Show tracebacks.")
DRY = click.option("--dry-run", is_flag=True, help="Say what would be done and touch nothing.")
KEYS = click.argument("keys", nargs=-1, metavar="[KEY=VALUE]...")


@click.group()
def cluster() -> None:
    """Start Ray clusters: on this machine, or by files for Kubernetes, Slurm and EC2."""


def _do(name: str, *arguments: Any, **flags: Any) -> None:
    from jobs import cluster_commands

    flags.pop("debug", None)
    getattr(cluster_commands, name)(*arguments, **flags)


@cluster.command()
@KEYS
@DRY
@JSON
@DEBUG
def up(keys: tuple[str, ...], **flags: Any) -> None:
    """Start a cluster of several nodes on this machine; where one is up already, say so.

    \b
    kinoray cluster up num_nodes=2 num_cpus=2

    Keys: num_nodes (the head included), num_cpus and object_store_bytes (of each node), folder (where its
    state and token are kept), timeout_s.
    """
    _do("up", keys, **flags)


@cluster.command()
@KEYS
@JSON
@DEBUG
def down(keys: tuple[str, ...], **flags: Any) -> None:
    """End the processes of a cluster that `up` started, whatever became of them, and no others. Key: folder."""
    _do("down", keys, **flags)


@cluster.command()
@KEYS
@JSON
@DEBUG
def status(keys: tuple[str, ...], **flags: Any) -> None:
    """Show which nodes live and whether a request without a token is refused; exit code 1 when not all is well.

    Key: folder.
    """
    _do("status", keys, **flags)


@cluster.command()
@click.argument("kind", type=click.Choice(["kuberay", "slurm", "aws"]))
@KEYS
@DRY
@JSON
@DEBUG
def render(kind: str, keys: tuple[str, ...], **flags: Any) -> None:
    """Write what starts a cluster elsewhere; a TOML file with keys may come first.

    \b
    kinoray cluster render kuberay image=lab/kinoray:1.0 queue=research out=deploy
    kinoray cluster render slurm venv=/shared/venv storage=/shared/kinoray command="train /shared/base.toml" out=deploy
    kinoray cluster render aws image=lab/kinoray:1.0 region=eu-west-1 storage=fs-0123abcd out=deploy

    Keys of all: out (the folder), name. kuberay: namespace, service_account, image, command (adds a job with a
    cluster of its own), retries, num_cpu_nodes, num_gpu_nodes, cpus_per_node, gpus_per_node, memory_gib,
    head_memory_gib, accelerator, gpu_selector, gpu_taints, spot_taints, storage (a claim), storage_class,
    storage_gib, queue (Kueue's), priority, checkpoint_s, idle_s. slurm: command, storage (a folder), venv,
    num_nodes, cpus_per_node, gpus_per_node, accelerator, partition, account, queue (a QOS), time_limit,
    checkpoint_s, port. aws: image, region, storage (an EFS file system), num_cpu_nodes, num_gpu_nodes,
    cpus_per_node, gpus_per_node, head_instance, cpu_instance, gpu_instance, accelerator, spot, disk_gib,
    ssh_user, idle_minutes.
    """
    _do("render", kind, keys, **flags)
