"""What the dataset commands do: read the keys, call ingest, show what came out, end with the exit code."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from jobs import config, dataset_keys, render, rule_words

T = TypeVar("T")
ROWS_SHOWN = 100
LINES_SHOWN = 20
DONE, FAILED, INCOMPLETE = 0, 1, 3


def info(place: str, keys: Sequence[str], *, as_json: bool) -> None:
    """Show what a dataset is and holds."""
    from ingest import refs

    dataset = _open(place, _keys(dataset_keys.At, keys, "info").at)
    names = [tag.name for tag in refs.tags(dataset.root)]
    told = {
        "root": str(dataset.root),
        "contract": dataset.contract.describe(),
        "digest": dataset.digest(),
        **dataset.info(),
    }
    if as_json:
        _end(told | {"versions": dataset.versions(), "tags": names}, as_json=True)
    told["rules"] = rule_words.counted(told["rules"])
    rows = [(k, f"{v:.6g}" if isinstance(v, float) else str(v)) for k, v in told.items()]
    rows += [(f"version of {name}", str(version)) for name, version in dataset.versions().items()]
    render.table([*rows, ("tags", ", ".join(names) or "none")])


def query(place: str, sql: str, keys: Sequence[str], *, as_json: bool) -> None:
    """Show what one SELECT finds."""
    found = _open(place, _keys(dataset_keys.At, keys, "query").at).query(sql)
    if len(set(found.column_names)) < found.num_columns:
        raise config.ConfigError(("query: two columns have the same name; name them with AS",))
    if as_json:
        _end({"columns": found.column_names, "rows": found.to_pylist()}, as_json=True)
    shown = found.slice(0, ROWS_SHOWN).to_pylist()
    cells = [tuple(render.cell(value) for value in row.values()) for row in shown]
    render.table([tuple(found.column_names), *cells])
    if found.num_rows > ROWS_SHOWN:
        render.say(f"kinoray: {found.num_rows} rows, {ROWS_SHOWN} shown; --json gives all")


def diff(place: str, before: str, after: str, *, as_json: bool) -> None:
    """Show what changed from one version to another."""
    from ingest import compare
    from pipelines.identity import plain

    found = compare.diff(_open(place, before), _open(place, after))
    if as_json:
        _end(plain(found), as_json=True)
    kinds = (
        "added removed refated recaptioned relabelled payload_changed sources_added sources_removed"
    )
    for kind in kinds.split():
        changed = getattr(found, kind)
        render.out(f"  {kind.replace('_', ' '):<16} {changed.total}")
        for i, name in enumerate(changed.ids[:LINES_SHOWN]):
            words = [f"{c[i]!r}" for c in (changed.before, changed.after) if i < len(c)]
            render.out(f"    {name}  {' -> '.join(words)}".rstrip())
        if changed.total > LINES_SHOWN:
            render.out(f"    and {changed.total - LINES_SHOWN} more; --json gives more")


def verify(place: str, keys: Sequence[str], *, as_json: bool) -> None:
    """Read everything and tell what is damaged."""
    from ingest import verify as verifying

    asked = _keys(dataset_keys.Verify, keys, "verify")
    dataset = _open(place, asked.at)
    found = verifying.verify(
        dataset, how=asked.how, threads=asked.threads, progress=_progress("verify", "clips")
    )
    told = {
        "status": "done" if found.ok else "failed",
        "clips": found.clips,
        "shards": found.shards,
    }
    if not as_json:
        _lines(found.problems, "problems")
    code = DONE if found.ok else FAILED
    _end({**told, "problems": list(found.problems)}, as_json=as_json, code=code)


def tag(place: str, name: str, keys: Sequence[str], *, as_json: bool) -> None:
    """Set, take away or list tags."""
    from ingest import refs, versions

    asked = _keys(dataset_keys.Tag, keys, "tag")
    dataset = _open(place)
    if name and asked.remove:
        versions.untag(dataset, name)
    elif name:
        versions.tag(dataset, name)
    found = refs.tags(dataset.root)
    if as_json:
        listed = [{"name": t.name, "at": t.at, "digest": t.digest} for t in found]
        _end({"tags": listed}, as_json=True)
    render.table([("tag", "at", "digest"), *((t.name, t.at, t.digest[:12]) for t in found)])


def restore(place: str, version: str, *, dry_run: bool, as_json: bool) -> None:
    """Make an old version the newest again."""
    from ingest import versions

    done = versions.restore(_open(place), version, dry_run=dry_run)
    if not as_json:
        _lines(done.tables, "would change" if dry_run else "changed")
    _result(done, as_json=as_json)


def compact(place: str, keys: Sequence[str], *, dry_run: bool, as_json: bool) -> None:
    """Pack small shards and tables into bigger ones."""
    from ingest import compact as packing

    asked = _keys(dataset_keys.Compact, keys, "compact")
    done = packing.compact(
        _open(place),
        target_bytes=asked.target_bytes,
        dry_run=dry_run,
        progress=_progress("compact", "bytes"),
    )
    _result(done, as_json=as_json)


def gc(place: str, keys: Sequence[str], *, dry_run: bool, as_json: bool) -> None:
    """Remove files that nothing in use names."""
    from ingest import collect
    from pipelines.identity import plain

    asked = _keys(dataset_keys.Collect, keys, "gc")
    done = collect.collect(_open(place), older_than_s=asked.older_than_s, dry_run=dry_run)
    if not as_json:
        for kind in ("shards", "temporaries", "table_files"):
            _lines(getattr(done, kind), kind.replace("_", " "))
    _end(plain(done), as_json=as_json)


def delete(place: str, keys: Sequence[str], *, dry_run: bool, as_json: bool) -> None:
    """Take sources and clips down, then tell what descends from them."""
    from pipelines import takedown
    from pipelines.identity import plain

    asked = _keys(dataset_keys.Delete, keys, "delete")
    told = takedown.take_down(
        _open(place),
        sources=asked.source,
        clips=asked.clip,
        reason=asked.reason,
        dry_run=dry_run,
        tracking_uri=asked.tracking_uri,
    )
    code = DONE if told.purged.clean else FAILED
    if as_json:
        _end(
            {**plain(told.purged), "saw": plain(told.saw), "copies": told.copies},
            as_json=True,
            code=code,
        )
    for kind in ("sources", "clips", "shards", "tags", "left"):
        _lines(getattr(told.purged, kind), kind)
    _lines(
        [f"{d.verb} run {d.run_id} {d.name} made {d.made[:12] or '-'}" for d in told.saw], "saw it"
    )
    _lines(told.copies, "copies")
    if told.purged.clean and not dry_run:
        render.say(
            "kinoray: nothing of them is left below the dataset; what saw it and copies of it are listed above"
        )
    sys.exit(code)


def export(place: str, out: Path, keys: Sequence[str], *, as_json: bool) -> None:
    """Write clips for other tools."""
    from ingest import exports

    asked = _keys(dataset_keys.Export, keys, "export")
    done = exports.export(
        _open(place, asked.at),
        out,
        format=asked.format,
        selection=asked.select,
        shard_bytes=asked.shard_bytes,
        progress=_progress("export", "clips"),
    )
    try:
        # So that a takedown can name the copies; a dataset that may only be read keeps no log.
        _open(place).log_operation("export", {"out": str(out.resolve()), "view": done.view})
    except OSError as error:
        render.say(f"kinoray: the export is whole, but the dataset could not note it: {error}")
    _result(done, as_json=as_json)


def import_(place: str, source: Path, keys: Sequence[str], *, as_json: bool) -> None:
    """Bring clips in, or what is said of them."""
    asked = _keys(dataset_keys.Import, _spelled(keys), "import")
    if asked.as_ != "clips":
        _annotate(place, source, asked.as_, asked, as_json=as_json)
    from ingest import imports

    done = imports.import_clips(
        place,
        source,
        format=asked.format,
        contract=asked.contract,
        workers=asked.workers,
        progress=_progress("import", "units"),
    )
    missing = done.rejected + done.failed
    if missing:
        render.say(f"kinoray: {missing} clips were not taken; the reasons are in the ledger")
    _result(done, as_json=as_json, code=INCOMPLETE if missing else DONE)


def _annotate(
    place: str,
    source: Path,
    name: Literal["labels", "captions", "rights"],
    asked: dataset_keys.Import,
    *,
    as_json: bool,
) -> None:
    from ingest import annotate

    done = annotate.annotate_file(
        _open(place), source, name=name, producer=asked.producer, rank=asked.rank
    )
    if done.unknown:
        shown = ", ".join(done.examples)
        render.say(f"kinoray: {done.unknown} rows name nothing in this dataset: {shown}")
    _result(done, as_json=as_json, code=INCOMPLETE if done.unknown else DONE)


def sync(place: str, destination: str, keys: Sequence[str], *, as_json: bool) -> None:
    """Copy a version to another place."""
    from ingest import sync as syncing

    asked = _keys(dataset_keys.At, keys, "sync")
    done = syncing.sync(_open(place, asked.at), destination, progress=_progress("sync", "shards"))
    if done.left:
        _lines(done.left, "left there")
    _result(done, as_json=as_json, code=INCOMPLETE if done.left else DONE)


def report(place: str, out: Path, keys: Sequence[str], *, as_json: bool) -> None:
    """Write the page of a dataset."""
    from jobs import dataset_report

    dataset = _open(place, _keys(dataset_keys.At, keys, "report").at)
    _end({"report": str(dataset_report.write(dataset, out))}, as_json=as_json)


def _open(place: str, at: str = "") -> Any:
    from ingest.store import Dataset

    return Dataset.open(place, at)


def _keys(schema: type[T], texts: Sequence[str], command: str) -> T:
    return config.build(schema, config.keys(texts), name=f"dataset {command}")


def _spelled(keys: Sequence[str]) -> list[str]:
    """Return the words with `as` under a name that Python allows."""
    return [f"as_{text[2:]}" if text.startswith("as=") else text for text in keys]


def _progress(verb: str, what: str) -> Callable[[int, int], None]:
    show = render.Progress(quiet=False)

    def tell(done: int, total: int) -> None:
        show({"event": "progress", "stage": verb, "done": done, "total": total, "text": what})

    return tell


def _lines(found: Sequence[str], name: str) -> None:
    render.out(f"  {name:<12} {len(found)}")
    for line in found[:LINES_SHOWN]:
        render.out(f"    {line}")
    if len(found) > LINES_SHOWN:
        render.out(f"    and {len(found) - LINES_SHOWN} more; --json gives all")


def _result(value: Any, *, as_json: bool, code: int = DONE) -> None:
    from pipelines.identity import plain

    _end(plain(value), as_json=as_json, code=code)


def _end(values: dict[str, Any], *, as_json: bool, code: int = DONE) -> None:
    render.result(values, as_json=as_json)
    sys.exit(code)
