"""What each role learns from a clip: base from single frames, motion from whole clips, SSR from windows of pairs.

All three end in the one loss of models/diffusion.py. Every draw (frames, windows, timesteps, noise, augmentation, masks,
caption dropout) is addressed by (run seed, clip, place in the stream, step), so that neither rank nor batch can change it.
Letters: B clips, I items (clips or frames), C channels, T frames, H height, W width, N tokens, D width of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from models import diffusion, known, modes, noise, ssr
from models.conditioning import TextConditioner, drop_text
from models.diffusion import Denoise, Schedule
from models.ssr import Config as SsrConfig
from models.stunet import Role


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """A role's training objective; `frames` is images a clip (base) or window length (SSR), unused by motion.

    `masks` mixes conditioned generation into motion and SSR, whose networks must take known_BCTHW then; the base, which
    learns single frames, is left as it is. The loss stays on all frames: what is known must be copied, not left out.
    `image_share` of an SSR's steps enlarge each frame by itself, without the temporal modules and masks (joint
    image-video training, Ho et al. 2022, as whole steps).
    """

    role: Role
    schedule: Schedule
    text: TextConditioner
    run_seed: int
    frames: int = 1
    caption_dropout: float = 0.0
    min_snr_gamma: float = float("inf")
    ssr: SsrConfig | None = None
    masks: known.Mixture | None = None
    image_share: float = 0.0

    def temporal(self, step: int) -> bool:
        """Return whether the temporal modules take part in this step, of all clips alike."""
        if self.role != "ssr" or self.image_share <= 0.0:
            return self.role != "base"
        seed = noise.seed_for("joint", self.run_seed)
        return float(noise.uniform(seed, stream="crop", step=step, count=1)) >= self.image_share


@dataclass(frozen=True, kw_only=True, slots=True)
class Clips:
    """Clips of a step: x_BCTHW in [-1, 1] with their captions, ids and places in the stream."""

    x_BCTHW: torch.Tensor
    captions: Sequence[str]
    clip_ids: Sequence[str]
    positions: Sequence[int]

    def rows(self, rows: slice) -> "Clips":
        """Return some of the clips."""
        return Clips(
            x_BCTHW=self.x_BCTHW[rows],
            captions=self.captions[rows],
            clip_ids=self.clip_ids[rows],
            positions=self.positions[rows],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Items:
    """What the loss sees: one row an item, with its own seed and absolute frame numbers."""

    x_ICTHW: torch.Tensor
    frames_IT: torch.Tensor
    seeds: list[int]
    clip_of: list[int]
    clip_frames: int


def losses(
    objective: Objective, model: torch.nn.Module, clips: Clips, *, step: int
) -> torch.Tensor:
    """Return the loss of each clip, loss_B; ValueError when a clip is shorter than the window."""
    items = _items(objective, clips, step)
    drawn = diffusion.draw(
        objective.schedule,
        items.seeds,
        step=step,
        frames_BT=items.frames_IT,
        shape=_chw(items.x_ICTHW),
    )
    device = clips.x_BCTHW.device
    loss_I = diffusion.loss(
        _denoiser(objective, model, items, clips.captions, step),
        items.x_ICTHW,
        schedule=objective.schedule,
        timestep_B=drawn.timestep_B.to(device),
        noise_BCTHW=drawn.noise_BCTHW.to(device),
        min_snr_gamma=objective.min_snr_gamma,
    )
    return loss_I.reshape(len(clips.clip_ids), -1).mean(1)


@torch.no_grad()
def probe(objective: Objective, model: torch.nn.Module, clips: Sequence[Clips]) -> float:
    """Return the mean loss over one fixed (timestep, noise) draw for each entry; timesteps evenly spread.

    The same numbers whenever it is called, so that two calls compare weights and nothing else.
    """
    total = 0.0
    for number, entry in enumerate(clips):
        items = _items(objective, entry, 0)
        timestep = int((number + 0.5) / len(clips) * objective.schedule.num_timesteps)
        drawn = diffusion.draw(
            objective.schedule,
            items.seeds,
            step=0,
            frames_BT=items.frames_IT,
            shape=_chw(items.x_ICTHW),
        )
        device = entry.x_BCTHW.device
        with modes.evaluating(model):
            loss_I = diffusion.loss(
                _denoiser(objective, model, items, entry.captions, 0, dropout=False),
                items.x_ICTHW,
                schedule=objective.schedule,
                timestep_B=torch.full((len(items.seeds),), timestep, device=device),
                noise_BCTHW=drawn.noise_BCTHW.to(device),
            )
        total += float(loss_I.mean())
    return total / len(clips)


def _items(objective: Objective, clips: Clips, step: int) -> _Items:
    keys = list(zip(clips.clip_ids, clips.positions, strict=True))
    seeds = [noise.seed_for("train", objective.run_seed, *key) for key in keys]
    total = clips.x_BCTHW.shape[2]
    if objective.role == "motion":
        frames = torch.arange(total).expand(len(seeds), total)
        return _Items(
            x_ICTHW=clips.x_BCTHW,
            frames_IT=frames,
            seeds=seeds,
            clip_of=list(range(len(seeds))),
            clip_frames=total,
        )
    if objective.role == "ssr":
        return _windows(objective, clips, seeds, step)
    each = objective.frames
    picked = [_floor(seed, "crop", step, count=each, limit=total) for seed in seeds]
    x = torch.stack([clips.x_BCTHW[b, :, t] for b, row in enumerate(picked) for t in row])
    return _Items(
        x_ICTHW=x.unsqueeze(2),
        frames_IT=torch.tensor([[t] for row in picked for t in row]),
        # The same frame can be picked twice; the item's number keeps its timestep and noise its own.
        seeds=[noise.seed_for("item", seed, j) for seed in seeds for j in range(each)],
        clip_of=[b for b in range(len(seeds)) for _ in range(each)],
        clip_frames=total,
    )


def _windows(objective: Objective, clips: Clips, seeds: list[int], step: int) -> _Items:
    total, window = clips.x_BCTHW.shape[2], objective.frames
    if window > total:
        raise ValueError(f"a window of {window} frames does not fit into clips of {total}")
    starts = [_floor(s, "crop", step, count=1, limit=total - window + 1)[0] for s in seeds]
    x = torch.stack([clips.x_BCTHW[b, :, s : s + window] for b, s in enumerate(starts)])
    frames = torch.stack([torch.arange(s, s + window) for s in starts])
    return _Items(
        x_ICTHW=x,
        frames_IT=frames,
        seeds=seeds,
        clip_of=list(range(len(seeds))),
        clip_frames=total,
    )


def _denoiser(
    objective: Objective,
    model: torch.nn.Module,
    items: _Items,
    captions: Sequence[str],
    step: int,
    *,
    dropout: bool = True,
) -> Denoise:
    """Return the model as a function of noisy items; without `dropout` (of captions, of time) as it is validated."""
    device = items.x_ICTHW.device
    text_IND = objective.text([captions[b] for b in items.clip_of])
    if dropout and objective.caption_dropout > 0.0:
        null_IND = objective.text([""]).expand_as(text_IND)
        share = objective.caption_dropout
        text_IND = drop_text(text_IND, null_IND, seeds=items.seeds, step=step, share=share)
    text_IND = text_IND.to(device)
    temporal = objective.temporal(step) if dropout else objective.role != "base"
    more = _known(objective, items, step) if temporal else {}
    if objective.ssr is not None:
        condition, level_I = _low_resolution(objective.ssr, items, step)
        return ssr.denoiser(
            model,
            condition,
            text_IND,
            level_I,
            schedule=objective.schedule,
            precondition=objective.ssr.precondition,
            temporal=temporal,
            **more,
        )
    # what follows the video's channels is a learned variance, which this loss does not train
    return lambda x, timestep_B: model(x, timestep_B, text_IND, temporal=temporal, **more)[
        :, : x.shape[1]
    ]


def _known(objective: Objective, items: _Items, step: int) -> dict[str, Any]:
    """Return what a network with known channels is given besides, nothing for one without."""
    if objective.masks is None or objective.role == "base":
        return {}
    drawn = known.training(
        items.x_ICTHW,
        seeds=items.seeds,
        step=step,
        mixture=objective.masks,
        frames_BT=items.frames_IT,
        total=items.clip_frames,
    )
    return {"known_BCTHW": drawn.channels}


def _low_resolution(
    config: SsrConfig, items: _Items, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    high = items.x_ICTHW
    uniforms = [noise.uniform(s, stream="level", step=step, count=1) for s in items.seeds]
    level_I = (torch.cat(uniforms) * config.max_level).float().to(high.device)
    enlarged = ssr.upsample(ssr.shrink(high, config.scale), config.scale)
    drawn = noise.normals(
        items.seeds,
        stream="augment",
        step=step,
        frames_BT=items.frames_IT,
        shape=_chw(high),
    )
    return ssr.augment(enlarged, level_I, drawn.transpose(1, 2).to(enlarged)), level_I


def _floor(seed: int, stream: str, step: int, *, count: int, limit: int) -> list[int]:
    drawn = noise.uniform(seed, stream=stream, step=step, count=count)
    return [min(limit - 1, int(value * limit)) for value in drawn]


def _chw(x_ICTHW: torch.Tensor) -> tuple[int, int, int]:
    _, channels, _, height, width = x_ICTHW.shape
    return channels, height, width
