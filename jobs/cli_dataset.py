"""`kinoray dataset ...`: what a person does with a dataset besides curating into it and training from it."""

from pathlib import Path
from typing import Any

import click

JSON = click.option(
    "--json", "as_json", is_flag=True, help="End with one JSON line on standard output."
)
DEBUG = click.option("--debug", is_flag=True, help="Show tracebacks.")
DRY = click.option("--dry-run", is_flag=True, help="Say what would be done and touch nothing.")
KEYS = click.argument("keys", nargs=-1, metavar="[KEY=VALUE]...")
PLACE = click.argument("place", metavar="DATASET")


@click.group()
def dataset() -> None:
    """Look into a dataset and take care of it.

    DATASET is a folder or s3://bucket/prefix. A version is a tag or a number; empty means the newest.
    """


def _command(name: str, *decorators: Any) -> Any:
    def made(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return dataset.command(name)(JSON(DEBUG(function)))

    return made


def _do(name: str, *arguments: Any, **flags: Any) -> None:
    from jobs import dataset as commands

    flags.pop("debug", None)
    getattr(commands, name)(*arguments, **flags)


@_command("info", PLACE, KEYS)
def info(place: str, keys: tuple[str, ...], **flags: Any) -> None:
    """Contract, version, tags, counts and sizes. Key: at (a version)."""
    _do("info", place, keys, **flags)


@_command("query", PLACE, click.argument("sql"), KEYS)
def query(place: str, sql: str, keys: tuple[str, ...], **flags: Any) -> None:
    """Ask with one SQL SELECT over ledger, captions, labels, rights, latents, log and clips.

    \b
    kinoray dataset query datasets/mine "SELECT rule, count(*) FROM ledger GROUP BY rule"
    kinoray dataset query datasets/mine "SELECT clip_id, caption FROM clips WHERE motion > 0.1"

    `clips` is one row a kept clip with its scores, caption, label, licence and consent. Key: at.
    """
    _do("query", place, sql, keys, **flags)


@_command("diff", PLACE, click.argument("before"), click.argument("after", default=""))
def diff(place: str, before: str, after: str, **flags: Any) -> None:
    """Compare two versions: clips added, removed, with another fate, caption or label; scores."""
    _do("diff", place, before, after, **flags)


@_command("verify", PLACE, KEYS)
def verify(place: str, keys: tuple[str, ...], **flags: Any) -> None:
    """Read everything and tell what is damaged or missing; exit code 1 when anything is.

    Keys: at, how = crc (payload bytes), sha256 (whole shards too) or decode (every frame too).
    """
    _do("verify", place, keys, **flags)


@_command("tag", PLACE, click.argument("name", default=""), KEYS)
def tag(place: str, name: str, keys: tuple[str, ...], **flags: Any) -> None:
    """Name the newest version; without NAME, list the tags. Key: remove=true takes a tag away."""
    _do("tag", place, name, keys, **flags)


@_command("restore", PLACE, click.argument("version"), DRY)
def restore(place: str, version: str, **flags: Any) -> None:
    """Make an old version the newest again; nothing is deleted by it."""
    _do("restore", place, version, **flags)


@_command("compact", PLACE, KEYS, DRY)
def compact(place: str, keys: tuple[str, ...], **flags: Any) -> None:
    """Pack small shards and tables into bigger ones; no clip and no order changes. Key: target_bytes."""
    _do("compact", place, keys, **flags)


@_command("gc", PLACE, KEYS, DRY)
def gc(place: str, keys: tuple[str, ...], **flags: Any) -> None:
    """Remove files that no version in use names: the newest, tags, and views. Key: older_than_s."""
    _do("gc", place, keys, **flags)


@_command("delete", PLACE, KEYS, DRY)
def delete(place: str, keys: tuple[str, ...], **flags: Any) -> None:
    """Take clips or whole sources down, for good: bytes, captions and old versions of them go.

    \b
    kinoray dataset delete datasets/mine source=SHA256 reason="asked by the owner"
    kinoray dataset delete datasets/mine clip=ID reason="a face"

    Ends with the runs, checkpoints and evaluation sets that descend from what was taken down.
    Keys: source, clip, reason (needed), tracking_uri.
    """
    _do("delete", place, keys, **flags)


@_command("export", PLACE, click.argument("out", type=click.Path(path_type=Path)), KEYS)
def export(place: str, out: Path, keys: tuple[str, ...], **flags: Any) -> None:
    """Write clips for other tools: format = webdataset, folder or lance.

    Keys: at, format, shard_bytes, select.where (an SQL condition over clips), select.split,
    select.val_share, select.licences, select.consents.
    """
    _do("export", place, out, keys, **flags)


@_command(
    "import", PLACE, click.argument("source", metavar="FROM", type=click.Path(path_type=Path)), KEYS
)
def import_(place: str, source: Path, keys: tuple[str, ...], **flags: Any) -> None:
    """Bring encoded clips in, or labels, captions and rights for clips that are there.

    FROM is an export of ours, WebDataset tars, a folder with a table, or a Lance dataset; or, with
    as=labels, captions or rights, a CSV, JSONL or Parquet file. Raw videos are cut by `curate`.
    Keys: format, as, producer, contract.frames, contract.fps, contract.interval.
    """
    _do("import_", place, source, keys, **flags)


@_command("sync", PLACE, click.argument("destination"), KEYS)
def sync(place: str, destination: str, keys: tuple[str, ...], **flags: Any) -> None:
    """Copy a version to another folder or store, verified; run again, it copies what is new. Key: at."""
    _do("sync", place, destination, keys, **flags)


@_command(
    "report",
    PLACE,
    click.argument("out", type=click.Path(path_type=Path), default=Path("dataset.html")),
    KEYS,
)
def report(place: str, out: Path, keys: tuple[str, ...], **flags: Any) -> None:
    """Write one page: what became of every input, scores, clips to play, tags and log. Key: at."""
    _do("report", place, out, keys, **flags)
