"""The house rules that no linter knows: sizes, names, exceptions that travel, no registry address."""

import ast
import importlib
import inspect
import pickle
import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGES = ("cluster", "ingest", "models", "pipelines", "jobs")
FILES = sorted(
    p for name in PACKAGES for p in (CHECKOUT / name).rglob("*.py") if p.name != "__init__.py"
)
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 45
WORDS_FOR_NOTHING = re.compile(r"util|common|helper|manager|misc|handler|processor")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CHECKOUT)))
def test_sizes(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < MAX_FUNCTION_LINES, node.name


def test_names():
    assert not [path for path in FILES if WORDS_FOR_NOTHING.search(path.stem)]


def exceptions():
    for path in FILES:
        name = ".".join(path.relative_to(CHECKOUT).with_suffix("").parts)
        if name.endswith("__main__"):
            continue
        module = importlib.import_module(name)
        for _, found in inspect.getmembers(module, inspect.isclass):
            if issubclass(found, BaseException) and found.__module__ == name:
                yield found


def test_exceptions_travel_between_processes():
    """One that does not pickle hides the real error of a worker."""
    found = list(exceptions())
    assert len(found) >= 8
    for kind in found:
        own = kind.__init__ is not Exception.__init__ and "__init__" in vars(kind)
        count = len(inspect.signature(kind.__init__).parameters) - 1 if own else 1
        error = kind(*(str(i) for i in range(count)))
        back = pickle.loads(pickle.dumps(error))
        assert type(back) is kind
        assert str(back) == str(error)


def test_the_lock_names_no_address_and_no_local_build():
    lock = (CHECKOUT / "requirements.lock").read_text()
    assert "+cpu" not in lock
    assert "://" not in lock
    assert lock.count("--hash=sha256:") > 1000
