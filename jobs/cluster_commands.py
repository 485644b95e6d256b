"""What the cluster commands do: read the keys, call the cluster package, show what came out."""

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import local_cluster, shapes
from cluster import render as rendering
from cluster.environment import make_token
from jobs import config
from jobs import render as showing

FAILED = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """The folder of a local cluster."""

    folder: Path = local_cluster.Local().folder


def up(keys: Sequence[str], *, dry_run: bool, as_json: bool) -> None:
    """Start a local cluster, or tell of the one that is up."""
    asked = _keys(local_cluster.Local, config.keys(keys), "cluster up")
    if dry_run:
        plan = {
            "num_nodes": asked.num_nodes,
            "num_cpus": asked.num_cpus,
            "folder": str(asked.folder),
        }
        showing.result({"plan": "cluster up", **plan}, as_json=as_json)
        return
    if not as_json:
        showing.say("kinoray: a start takes some 10 seconds")
    found, already = local_cluster.up(asked)
    told = {"status": "already up" if already else "up", **_told(found)}
    showing.result(told, as_json=as_json)
    if not as_json:
        token = shlex.quote(found.state.token)
        showing.say(
            f"kinoray: next: RAY_AUTH_TOKEN_PATH={token} kinoray curate RECIPE --address {found.state.address}"
        )
        showing.say(
            f"kinoray: to end it: kinoray cluster down {_folder_key(asked.folder)}".rstrip()
        )


def down(keys: Sequence[str], *, as_json: bool) -> None:
    """End a local cluster; to end what is not there is no failure."""
    folder = _keys(Where, config.keys(keys), "cluster down").folder
    count = local_cluster.down(folder)
    showing.result(
        {"status": "ended" if count else "nothing was up", "nodes": count, "folder": str(folder)},
        as_json=as_json,
    )


def status(keys: Sequence[str], *, as_json: bool) -> None:
    """Show a local cluster; exit 1 when there is none, or not all of it is well."""
    folder = _keys(Where, config.keys(keys), "cluster status").folder
    found = local_cluster.status(folder)
    if found is None:
        following = f"kinoray cluster up {_folder_key(folder)}".rstrip()
        raise local_cluster.LocalClusterError(f"no cluster in {folder}; next: {following}")
    told = {"status": "up" if found.well else "broken", **_told(found)}
    showing.result(told, as_json=as_json)
    if not as_json:
        rows = [(n.name, "alive" if n.alive else "dead", str(_pid(n) or "")) for n in found.nodes]
        showing.table([("node", "state", "process"), *rows])
    if not found.well:
        showing.say(
            f"kinoray: next: kinoray cluster down {_folder_key(folder)}, then up".replace(" ,", ",")
        )
        sys.exit(FAILED)


def render(kind: str, words: Sequence[str], *, dry_run: bool, as_json: bool) -> None:
    """Write the files of a cluster into `out`; files that are there and say something else are not touched."""
    recipe = [word for word in words if word.endswith(".toml") and "=" not in word]
    keys = [word for word in words if word not in recipe]
    with _one_line(kind):
        if len(recipe) > 1:
            raise config.ConfigError(("one TOML file with keys, not several",))
        table = config.read(Path(recipe[0]), keys) if recipe else config.keys(keys)
        out = Path(str(table.pop("out", ""))) if table.get("out") else None
        problems = () if out else ("out: name the folder for the files",)
        made = _rendered(kind, table, out or Path(), problems)
    if out is None:
        return
    written = _planned(made, out) if dry_run else _written(made, out)
    showing.result(
        {"kind": kind, "out": str(out), "files": written, "next": f"cd {out} && {made.following}"},
        as_json=as_json,
    )
    if not as_json:
        for name in written:
            showing.out(f"  {out / name}")


def _rendered(
    kind: str, table: dict[str, Any], out: Path, problems: tuple[str, ...]
) -> rendering.Rendered:
    schema = {"kuberay": shapes.KubeRay, "slurm": shapes.Slurm, "aws": shapes.Aws}[kind]
    try:
        shape = config.build(schema, table, name=kind)
    except config.ConfigError as error:
        raise config.ConfigError((*problems, *error.problems)) from None
    if problems:
        raise config.ConfigError(problems)
    if isinstance(shape, shapes.KubeRay):
        return rendering.kuberay(shape)
    if isinstance(shape, shapes.Slurm):
        return rendering.slurm(shape)
    return rendering.aws(shape, token=str(out.resolve() / rendering.TOKEN))


def _planned(made: rendering.Rendered, out: Path) -> list[str]:
    """Return the names of the files; FileExistsError when one of them is there and another's."""
    for name, text in made.files.items():
        path = out / name
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise FileExistsError(
                f"{path} is there and says something else; next: another out, or take it away"
            )
    return [*made.files, *([rendering.TOKEN] if made.token else [])]


def _written(made: rendering.Rendered, out: Path) -> list[str]:
    """Write the files, all or none of them."""
    names = _planned(made, out)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in made.files.items():
        (out / name).write_text(text, encoding="utf-8")
    if made.token:
        # A token that is there stays: a cluster may run with it.
        with contextlib.suppress(FileExistsError):
            make_token(out / rendering.TOKEN)
    return names


@contextlib.contextmanager
def _one_line(kind: str) -> Iterator[None]:
    try:
        yield
    except config.ConfigError as error:
        cause = "; ".join(problem.removeprefix(f"{kind}: ") for problem in error.problems)
        line = f"{kind}: {cause}; next: kinoray cluster render --help"
        raise config.ConfigError((line,)) from None


def _keys(schema: type, table: dict[str, Any], name: str) -> Any:
    return config.build(schema, table, name=name)


def _told(found: local_cluster.Found) -> dict[str, Any]:
    state = found.state
    return {
        "address": state.address,
        "dashboard": state.dashboard,
        "token": state.token,
        "num_nodes": state.num_nodes,
        "num_cpus": state.num_cpus,
        "without_token": found.without_token,
        "counted": found.counted,
        "nodes": [{"name": n.name, "alive": n.alive, "pid": _pid(n)} for n in found.nodes],
    }


def _pid(node: Any) -> int | None:
    return node.leader.pid if node.leader else None


def _folder_key(folder: Path) -> str:
    return "" if folder == Where().folder else f"folder={shlex.quote(str(folder))}"
