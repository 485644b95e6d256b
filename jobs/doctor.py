"""Checks of the machine, each by doing the thing itself; a failure names the next step."""

import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jobs import demo_videos, render

MIN_DISK_BYTES = 2 << 30
MIN_SHM_BYTES = 512 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check found; `following` is the next step of a failure."""

    name: str
    status: str
    text: str
    following: str = ""
    details: tuple[dict[str, Any], ...] = field(default=())


def run(*, as_json: bool, address: str = "") -> None:
    """Run every check, of a running cluster at `address` too, and exit 1 if one failed."""
    checks = dict(CHECKS)
    if address:
        checks["token"] = partial(_token, address)
    findings = [_checked(name, check) for name, check in checks.items()]
    if as_json:
        values = [
            {
                "check": f.name,
                "status": f.status,
                "text": f.text,
                "next": f.following,
                "details": list(f.details),
            }
            for f in findings
        ]
        render.result({"checks": values}, as_json=True)
    else:
        render.table([(f.status, f.name, f.text) for f in findings])
        for finding in findings:
            if finding.following:
                render.out(f"next for {finding.name}: {finding.following}")
    sys.exit(1 if any(f.status == "failed" for f in findings) else 0)


def _checked(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # noqa: BLE001  a check that breaks is a finding, not the end of the others
        return Finding(
            name=name,
            status="failed",
            text=str(error),
            following="kinoray doctor --json, and report it",
        )


def _video() -> Finding:
    """Encode a clip and decode it again: both the ffmpeg binary and decord, by doing it."""
    import numpy as np

    from ingest.decode import payload_frames
    from ingest.encode import encode_video

    frames = np.zeros((80, 32, 32, 3), dtype=np.uint8)
    frames[40:] = 200
    back = payload_frames(encode_video(frames, 16, lossless=True))
    if not np.array_equal(back, frames):
        return Finding(
            name="video",
            status="failed",
            text="a lossless clip did not come back equal",
            following="make setup, to restore the bundled ffmpeg and decoder",
        )
    return Finding(name="video", status="ok", text="80 frames encoded and decoded without loss")


def _ray() -> Finding:
    from cluster.session import Cluster, session
    from cluster.sockets import listening

    with session(Cluster()):
        import ray

        cpus = ray.cluster_resources().get("CPU", 0.0)
        sockets = listening()
    open_ = sum(one.reach == "the network" for one in sockets)
    text = (
        f"embedded cluster started with {cpus:.0f} CPUs; it listened on {len(sockets)} ports, {open_} of them on all "
        "interfaces, where Ray asks for the token (--json names them)"
    )
    details = tuple(asdict(one) for one in sockets)
    return Finding(name="ray", status="ok", text=text, details=details)


def _token(address: str) -> Finding:
    """Ask a cluster without a token: whoever is answered can run code there."""
    from cluster.ray_node import answer

    status, _ = answer(address.rstrip("/"), "/api/version")
    if status == 401:
        return Finding(name="token", status="ok", text=f"{address} refuses who has no token (401)")
    if not status:
        return Finding(
            name="token",
            status="failed",
            text=f"no Ray dashboard answers at {address}",
            following="the address of a dashboard, http://HOST:8265",
        )
    if status != 200:
        return Finding(
            name="token",
            status="failed",
            text=f"{address} is no Ray dashboard: it answers {status}",
            following="the address of a dashboard, http://HOST:8265",
        )
    return Finding(
        name="token",
        status="failed",
        text=f"{address} answers without a token ({status}): whoever reaches it can run code there",
        following="start the cluster with RAY_AUTH_MODE=token, or by kinoray cluster up",
    )


def _accelerator() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding(name="gpu", status="ok", text=torch.cuda.get_device_name(0))
    return Finding(name="gpu", status="none", text="no GPU: everything runs on CPUs")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    if free < MIN_DISK_BYTES:
        text = f"{free / 2**30:.1f} GiB free here"
        return Finding(
            name="disk", status="failed", text=text, following="free 2 GiB, or work elsewhere"
        )
    return Finding(name="disk", status="ok", text=f"{free / 2**30:.0f} GiB free here")


def _shared_memory() -> Finding:
    if not Path("/dev/shm").exists():
        return Finding(
            name="shm", status="none", text="no /dev/shm: Ray's object store falls back to disk"
        )
    free = shutil.disk_usage("/dev/shm").free
    status = "ok" if free >= MIN_SHM_BYTES else "failed"
    following = "" if status == "ok" else "enlarge /dev/shm to 512 MiB (docker: --shm-size=1g)"
    return Finding(
        name="shm", status=status, text=f"{free / 2**20:.0f} MiB free", following=following
    )


def _tracker() -> Finding:
    from cluster.tracking import Tracker, embedded_uri

    with tempfile.TemporaryDirectory() as folder:
        tracker = Tracker(embedded_uri(Path(folder)), spool=Path(folder) / "spool")
        run = tracker.start("doctor", experiment="doctor", tags={}, params={})
        run.log_metrics({"ok": 1.0}, 0)
        run.end("FINISHED")
        if run.id.startswith("local-"):
            return Finding(
                name="tracker",
                status="failed",
                text="an embedded MLflow store could not be written",
                following="kinoray doctor with TMPDIR set to a folder that can be written",
            )
    return Finding(name="tracker", status="ok", text="an embedded MLflow store was written")


def _demo() -> Finding:
    try:
        demo_videos.unpack()
    except ValueError as error:
        cause, _, following = str(error).partition("; next: ")
        return Finding(name="demo", status="none", text=cause, following=following)
    return Finding(name="demo", status="ok", text="the demo's videos are here")


CHECKS: dict[str, Callable[[], Finding]] = {
    "video": _video,
    "ray": _ray,
    "gpu": _accelerator,
    "disk": _disk,
    "shm": _shared_memory,
    "tracker": _tracker,
    "demo": _demo,
}
