"""The training loop in a process of its own, without Ray.

`python -m tests.bench.train_child JOB OUT` writes its events to OUT, a line each. With RANK, WORLD_SIZE and
PORT behind it, the process is one of a gloo group.
"""

import json
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import distributed

from cluster.group import Place
from pipelines import training


def main() -> None:
    """Run the pickled job alone and write what it posts."""
    job = pickle.loads(Path(sys.argv[1]).read_bytes())  # made by the bench that started us
    rank, size, port = (int(word) for word in sys.argv[3:] or ("0", "1", "0"))
    if size > 1:
        address = f"tcp://127.0.0.1:{port}"
        distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    with Path(sys.argv[2]).open("w", encoding="utf-8", buffering=1) as log:

        def post(event: Mapping[str, Any]) -> bool:
            log.write(json.dumps(dict(event)) + "\n")
            return False

        training.train(job, Place(rank=rank, world_size=size), post)
    if size > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
