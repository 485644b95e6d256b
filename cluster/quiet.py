"""What Ray prints on a driver's terminal, turned off; the text itself stays in the session's log folder.

Standard output belongs to results and `--json`, yet Ray prints "(raylet) ..." blocks there for every dead worker, which the
pool reports in one line of its own. These are internals of the pinned Ray 2.60: a test holds the silence.
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

from ray import _raylet
from ray._private import ray_constants
from ray._private.ray_logging import stderr_deduplicator, stdout_deduplicator

EVERYTHING = re.compile("")
LOGGERS = ("ray", "ray.train", "ray.data")


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keep Ray's lines off the terminal for the time of a with block."""
    printers = (stdout_deduplicator, stderr_deduplicator)
    patterns = [printer.skip_re for printer in printers]
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for printer in printers:
        printer.skip_re = EVERYTHING
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for printer, pattern in zip(printers, patterns, strict=True):
            printer.skip_re = pattern
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def reread_environment() -> None:
    """Make Ray look at its environment variables again: it reads them once, at its import, and caches the token."""
    # A compiled module without type stubs.
    compiled: Any = _raylet
    compiled.Config.initialize("")
    compiled.AuthenticationTokenLoader.instance().reset_cache()
    # Under `uv run` Ray would build a virtual environment for every worker (ray-and-mlflow.md 1).
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
