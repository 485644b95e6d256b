"""Stages as workers make them."""

import socket
from collections.abc import Mapping
from typing import Any

from ingest import stage


class NotHere(stage.NotAStage):
    """A stage that the driver has cannot be had where a worker runs, so that each clip would fail there."""

    retryable = False
    fatal = True


def made(use: str, settings: Mapping[str, Any], kind: stage.Kind) -> Any:
    """Return a stage that the driver has loaded before; raises NotHere."""
    try:
        return stage.load(use, settings, kind)
    except stage.NotAStage as error:
        raise NotHere(f"on {socket.gethostname()}: {error}") from error
