"""Recipes: one TOML file plus `key=value` overrides become a frozen dataclass, or a list of every problem at once.

The dataclasses live beside what they configure (pipelines, ingest, models) and know nothing of this reader; unknown keys are
found here, because pydantic cannot forbid them on plain dataclasses, and each is reported with the nearest known key.
"""

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
Table = dict[str, Any]
VERBS = ("curate", "train", "sample", "evaluate")


class ConfigError(Exception):
    """Every problem of a recipe, one line each; the command line prints them and exits 2."""

    exit_code = 2

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        """Return the problems as lines."""
        return "\n".join(self.problems)


def read(path: Path, overrides: Sequence[str] = ()) -> Table:
    """Return the recipe at `path` with each `a.b=value` of `overrides` set; ConfigError names file and line."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError((f"{path}: no such recipe{_near_file(path)}",)) from None
    except IsADirectoryError:
        raise ConfigError((f"{path}: is a folder, not a recipe",)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError((f"{path}: not TOML: {error}",)) from None
    return _overridden(table, overrides)


def keys(texts: Sequence[str]) -> Table:
    """Return `a.b=value` words as a table, for commands that need no recipe."""
    return _overridden({}, texts)


def build(schema: type[T], table: Table, *, name: str, prefix: str = "") -> T:
    """Return `table` as a `schema`; ConfigError holds one line per unknown, missing or ill-typed key."""
    problems = [f"{name}: {problem}" for problem in _unknown(schema, table, prefix)]
    known = _without_unknown(schema, table)
    try:
        value = TypeAdapter(schema).validate_python(known)
    except ValidationError as error:
        problems += [f"{name}: {_line(item, prefix)}" for item in error.errors()]
        raise ConfigError(tuple(problems)) from None
    if problems:
        raise ConfigError(tuple(problems))
    return value


def verb_of(table: Table, recipe: Path, *, prefix: str = "") -> str:
    """Return the verb a table names; ConfigError where it names none or an unknown one."""
    found = table.get("verb")
    if found is None:
        raise ConfigError((f"{recipe}: {prefix}verb: Field required",))
    if found not in VERBS:
        raise ConfigError((f"{recipe}: {prefix}verb: unknown verb{nearest(str(found), VERBS)}",))
    return found


def flat(table: Any, prefix: str = "") -> Table:
    """Return nested tables as one, keys joined by dots."""
    if not isinstance(table, dict):
        return {prefix: table}
    joined: Table = {}
    for key, value in table.items():
        joined |= flat(value, f"{prefix}.{key}" if prefix else key)
    return joined


def nearest(word: str, known: Sequence[str]) -> str:
    """Return "; did you mean X?" for the closest known word, or nothing."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def _near_file(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    return nearest(path.name, [p.name for p in path.parent.glob("*.toml")])


def _overridden(table: Table, overrides: Sequence[str]) -> Table:
    problems = [problem for text in overrides if (problem := _override(table, text))]
    if problems:
        raise ConfigError(tuple(problems))
    return table


def _override(table: Table, text: str) -> str:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        return f"{text}: an override is written key=value"
    *parents, last = key.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            return f"{text}: {parent} is a value, not a table"
    table[last] = _value(value.strip())
    return ""


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string, so that nobody has to quote twice for the shell


def _line(item: Any, prefix: str) -> str:
    path = prefix + ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    return f"{path}: {message}" if path else message


def _dataclass_of(hint: object) -> type | None:
    for option in (hint, *typing.get_args(hint)) if _is_union(hint) else (hint,):
        if isinstance(option, type) and dataclasses.is_dataclass(option):
            return option
    return None


def _item_of(hint: object) -> type | None:
    """Return the dataclass of which a tuple holds any number."""
    return _dataclass_of(typing.get_args(hint)[0]) if typing.get_origin(hint) is tuple else None


def _is_union(hint: object) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _hints(schema: type) -> dict[str, object]:
    names = {f.name for f in dataclasses.fields(schema) if f.init}
    return {k: v for k, v in typing.get_type_hints(schema).items() if k in names}


def _unknown(schema: type, table: Table, prefix: str) -> Iterator[str]:
    hints = _hints(schema)
    for key, value in table.items():
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=1, cutoff=0.6)
            hint = (
                f"; did you mean {prefix}{close[0]}?" if close else f" (known: {', '.join(hints)})"
            )
            yield f"{prefix}{key}: unknown key{hint}"
        elif isinstance(value, dict) and (inner := _dataclass_of(hints[key])):
            yield from _unknown(inner, value, f"{prefix}{key}.")
        elif isinstance(value, list) and (inner := _item_of(hints[key])):
            for number, one in enumerate(value):
                if isinstance(one, dict):
                    yield from _unknown(inner, one, f"{prefix}{key}.{number}.")


def _without_unknown(schema: type, table: Table) -> Table:
    hints = _hints(schema)
    return {key: _fitting(hints[key], value) for key, value in table.items() if key in hints}


def _fitting(hint: object, value: Any) -> Any:
    inner = _dataclass_of(hint)
    if inner and isinstance(value, dict):
        return _without_unknown(inner, value)
    if typing.get_origin(hint) is tuple and isinstance(value, (str, int, float)):
        return [value]  # source=my_videos: one is a list of one
    if hint is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # at=12: a number can be a name
    return value
