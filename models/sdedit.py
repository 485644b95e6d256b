"""SDEdit (Meng et al. 2022), video to video: begin from a noised video, not from pure noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from models import diffusion
from models.diffusion import Schedule
from models.known import check_floating


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Start:
    """Of N steps the last round(strength * N) are run, from video_BCTHW noised to the first of them.

    Strength 0 returns the video as it is; 1 forgets it wholly at zero terminal SNR, and only there.
    """

    video_BCTHW: torch.Tensor
    strength: float

    def __post_init__(self) -> None:
        check_floating("start video", self.video_BCTHW, "BCTHW")
        if not 0.0 <= self.strength <= 1.0:
            raise ValueError(f"strength {self.strength} must lie in [0, 1]: 0 changes nothing")

    def first_step(self, steps: int) -> int:
        """Return the number of the first step that is run, `steps` when there is none."""
        return steps - round(self.strength * steps)

    def noised(
        self, noise_BCTHW: torch.Tensor, timesteps: Sequence[int], schedule: Schedule
    ) -> torch.Tensor:
        """Return the video at the first of the timesteps left, itself when none is left."""
        video = self.video_BCTHW.to(noise_BCTHW)
        if not timesteps:
            return video
        timestep_B = torch.full((video.shape[0],), timesteps[0])
        return diffusion.add_noise(video, noise_BCTHW, timestep_B, schedule)
