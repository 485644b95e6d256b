"""A few training steps of a role on one small batch: for what training changes and leaves alone, not for what it learns."""

import torch

from models import diffusion, stunet


def trained(
    model: stunet.STUNet,
    role: stunet.Role,
    text_BND: torch.Tensor,
    *,
    steps: int,
    learning_rate: float = 1e-2,
) -> stunet.STUNet:
    """Return the model after `steps` steps on two clips of 4 frames of 8 px, frame 0 known where it takes that."""
    optimizer = torch.optim.AdamW(stunet.trainable(model, role).values(), lr=learning_rate)
    schedule, c = diffusion.Schedule(), model.config.video_channels
    x0 = torch.linspace(-1, 1, 2 * c * 4 * 64).reshape(2, c, 4, 8, 8)
    mask = torch.zeros(2, 1, 4, 8, 8)
    mask[:, :, :1] = 1.0
    how = {"known_BCTHW": torch.cat((mask * x0, mask), dim=1)} if model.config.known else {}
    frames_BT = torch.arange(4).expand(2, 4)
    for step in range(steps):
        drawn = diffusion.draw(schedule, [1, 2], step=step, frames_BT=frames_BT, shape=(c, 8, 8))
        loss_B = diffusion.loss(
            lambda x_t, t: model(x_t, t, text_BND, temporal=role != "base", **how)[:, :c],
            x0,
            schedule=schedule,
            timestep_B=drawn.timestep_B,
            noise_BCTHW=drawn.noise_BCTHW,
        )
        optimizer.zero_grad()
        loss_B.mean().backward()
        optimizer.step()
    return model
