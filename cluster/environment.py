"""What every Ray process of ours gets as environment, without importing Ray: whoever only looks at a cluster starts at once."""

import os
import secrets
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
NO_GPU_UNASKED = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_COLOR_PREFIX": "0",
    # Who asked for no GPU sees none: otherwise each worker may take memory of GPUs that others were given.
    NO_GPU_UNASKED: "1",
    "RAY_raylet_start_wait_time_s": "150",
    # Ray Train hands these on to its controller and workers: it looks twice a second, not every two, and does not
    # watch itself through the dashboard that we do not start.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
# How long a node that gets SIGTERM waits for its work, as one that will be taken away; Ray's default is 30 s.
DRAIN_S = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def python_path() -> str:
    """Return the workers' module path: our packages are found in a plain checkout from any current directory."""
    before = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join(path for path in (str(CHECKOUT), before) if path)


def make_token(path: Path) -> str:
    """Write a new token that only its owner may read, and return it; FileExistsError when there is one."""
    path.touch(mode=0o600, exist_ok=False)
    token = secrets.token_hex(32)
    path.write_text(token)
    return token
