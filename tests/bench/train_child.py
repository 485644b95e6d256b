"""The training loop in a process of its own, without Ray: `python -m tests.bench.train_child JOB OUT` writes its events."""

import json
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.group import Place
from pipelines import training


def main() -> None:
    """Run the pickled job alone and write what it posts."""
    job = pickle.loads(Path(sys.argv[1]).read_bytes())  # made by the bench that started us
    events: list[dict[str, Any]] = []

    def post(event: Mapping[str, Any]) -> bool:
        events.append(dict(event))
        return False

    training.train(job, Place(rank=0, world_size=1), post)
    Path(sys.argv[2]).write_text(json.dumps(events))


if __name__ == "__main__":
    main()
