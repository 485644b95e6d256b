"""What comes before a training's first step: the settings of its process, and the role's network."""

import torch

from cluster.group import Place
from models import objective
from models.freed import keep_freed
from pipelines import weights
from pipelines.trainee import Trainee, start_from
from pipelines.training_job import Job


def settle(device: torch.device, threads: int) -> None:
    """Have this process compute with so many threads, the same way each time, and keep its memory."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=True, warn_only=device.type != "cpu")
    keep_freed()


def fresh(job: Job, base: weights.Loaded | None, place: Place) -> Trainee:
    """Return the network with what it is trained for, on this worker; `base` is the frozen one under a motion model."""
    spec = job.spec
    told = objective.Objective(
        role=spec.role,
        schedule=spec.schedule,
        text=spec.text,
        run_seed=job.seed,
        frames=job.frames,
        caption_dropout=job.caption_dropout,
        min_snr_gamma=job.min_snr_gamma,
        ssr=spec.ssr,
        masks=job.masks,
        image_share=job.image_share,
    )
    return Trainee(
        told,
        spec,
        form=job.form,
        precision=job.precision,
        optimizer=job.optimizer,
        seed=job.seed,
        start=start_from(spec, base=base, image=job.image, start=job.start),
        place=place,
    )
