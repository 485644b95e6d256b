"""What a STUNet costs beside its peers: `python -m tests.bench.models` measures and writes tests/bench/models.md.

Time and peak memory of a training step of the motion role and of a short sampling run, on the same image U-Net: ours, ours
without temporal resampling, the image model alone frame by frame, and lucidrains' lumiere-pytorch. Each in a process of its
own, in turns; the least time of all turns counts.

The share outside the kernels is compared with that of the image model's blocks at the frames they see in a STUNet ("without
inflations"). On every frame alike they do more of their work at the coarse levels, where channels are many and kernels
large; temporal resampling takes work away just there, so that the fine levels weigh more, whatever is put between the blocks.
"""

import json
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from models import cost, stunet
from tests.bench.machine import cores, cpu_name
from tests.bench.storage import cache
from tests.models.test_cost import DEEPFLOYD_XL, STABLE_DIFFUSION_15

LOCK = Path(__file__).with_name("lumiere.lock")
TABLE = Path(__file__).with_name("models.md")
OURS, FLAT, INNER, IMAGE, PEER = (
    "STUNet",
    "without temporal resampling",
    "without inflations",
    "image model alone",
    "lumiere-pytorch",
)
NETWORKS = (OURS, FLAT, INNER, IMAGE, PEER)
TASKS = {"train": "forward and backward", "sample": "sampling, 4 DDIM steps"}
# The first is tiny: what is no kernel weighs most there. Real image models begin at 320 channels.
SHAPES = (
    {"frames": 16, "px": 64, "widths": (32, 64, 96, 128), "blocks": 2},
    {"frames": 16, "px": 32, "widths": (128, 256, 384), "blocks": 1},
)
GPU_SHAPES = ({"frames": 80, "px": 64, "widths": (128, 256, 384, 512), "blocks": 2},)
TURNS, REPEATS = 2, 2
GLUE_POINTS = 5
PUBLIC = {"DeepFloyd IF-I-XL": DEEPFLOYD_XL, "Stable Diffusion 1.5": STABLE_DIFFUSION_15}


def main() -> None:
    """Measure every shape and task, and write the table."""
    gpu = torch.cuda.is_available()
    where = [{"device": "cpu"}]
    if gpu:
        where = [
            {"device": "cuda", "bf16": True},
            {"device": "cuda", "bf16": True, "compiled": True},
        ]
    peers = peers_folder()
    rows = [
        row
        for place in where
        for shape in (GPU_SHAPES if gpu else SHAPES)
        for task in TASKS
        for row in compared({**shape, **place, "task": task, "peers": str(peers), "threads": 1})
    ]
    machine = (
        torch.cuda.get_device_name() if gpu else f"one core of {cpu_name()} ({cores()} in all)"
    )
    text = table(rows, machine) + work()
    TABLE.with_name("models-gpu.md" if gpu else TABLE.name).write_text(text)
    sys.stdout.write(text)


def peers_folder() -> Path:
    """Install lumiere-pytorch beside our environment, from its lock, and return where it lies."""
    folder = cache() / "lumiere"
    if not folder.exists():
        uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
        part = folder.with_name("lumiere.part")
        shutil.rmtree(part, ignore_errors=True)
        command = [uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
        command += ["--python", sys.executable, "--target", str(part), "-r", str(LOCK)]
        subprocess.run(command, check=True)
        part.rename(folder)
    return folder


def compared(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure the networks in turns and return a row for each."""
    best: dict[str, dict[str, Any]] = {}
    for _ in range(TURNS):
        for network in NETWORKS:
            if network == PEER and job.get("compiled"):
                continue  # hooks that clear themselves cannot be compiled in one graph
            found = measured({**job, "network": network, "repeats": REPEATS})
            if network not in best or found["s"] < best[network]["s"]:
                best[network] = found
    return [
        {**job, "network": network, **found, "ours": best[OURS]} for network, found in best.items()
    ]


def measured(job: dict[str, Any]) -> dict[str, Any]:
    """Run one process and return what it printed last."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.models_child", json.dumps(job)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict[str, Any]], machine: str) -> str:
    """Return the rows as Markdown."""
    head = (
        "| frames x px, widths | step | network | s | ours is faster by | MiB | ours takes | outside conv, matmul, "
        "attention |"
    )
    lines = [
        (
            f"Measured {time.strftime('%Y-%m-%d')} by `python -m tests.bench.models` on {machine}, torch "
            f"{torch.__version__}, Python {platform.python_version()}. Goals: faster than without temporal resampling "
            f"and than lumiere-pytorch; outside the kernels at most {GLUE_POINTS} points more than the image model's blocks at "
            f"the same frames (without inflations)."
        ),
        "",
        head,
        "| --- " * (head.count("|") - 1) + "|",
    ]
    for r in rows:
        widths = " ".join(map(str, r["widths"]))
        lines.append(
            f"| {r['frames']} x {r['px']}, {widths} | {kind(r)} | {r['network']} | {r['s']:.3f} | "
            f"{r['s'] / r['ours']['s']:.2f} | {r['mib']:.0f} | {r['ours']['mib'] / max(r['mib'], 1):.2f} | "
            f"{100 * r['glue']:.0f} % |"
        )
    return "\n".join([*lines, "", *missed(rows)]) + "\n"


def kind(row: dict[str, Any]) -> str:
    """Name the step of a row."""
    more = [word for word in ("bf16", "compiled") if row.get(word)]
    return ", ".join([TASKS[row["task"]], *more])


def missed(rows: list[dict[str, Any]]) -> list[str]:
    """Say which goals were not reached, row by row."""
    found = []
    for r in rows:
        ours = r["ours"]
        where = f"widths {' '.join(map(str, r['widths']))}, {kind(r)}"
        if r["network"] in {FLAT, PEER} and r["s"] <= ours["s"]:
            found.append(f"- Missed: {where}: {r['network']} is faster.")
        if r["network"] == INNER and (points := 100 * (ours["glue"] - r["glue"])) > GLUE_POINTS:
            found.append(f"- Missed: {where}: {points:.0f} points more outside the kernels.")
    return found or ["All goals were met."]


def work() -> str:
    """Return what a step takes at the shapes of public image models, counted and not measured, as Markdown."""
    lines = [
        "",
        "Forward pass for 80 frames of 64 x 64 px or latents, 2 FLOP a multiply-add, counted (models/cost.py):",
        "",
        "| shape of | temporal parameters, M (FiLM of it) | TFLOP | without temporal resampling | image model on each frame |",
        "| --- | --- | --- | --- | --- |",
    ]
    size = {"frames": 80, "height": 64, "width": 64}
    for name, image in PUBLIC.items():
        config = stunet.Config.of_image(image)
        counted = cost.temporal_parameters(config)
        tera = [
            cost.flops(config, **size, **kind) / 1e12
            for kind in ({}, {"temporal_resampling": False}, {"temporal": False})
        ]
        parameters = f"{counted.total / 1e6:.1f} ({counted.film / 1e6:.1f})"
        lines.append(f"| {name} | {parameters} | {' | '.join(f'{t:.1f}' for t in tera)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
