"""What an SSR is shown in training and in sampling: every draw at its own address, every argument heard."""

import pytest
import torch

from models import diffusion, noise, objective, samplers, ssr, windows
from models.conditioning import HashedText
from models.diffusion import Schedule
from models.objective import Clips, Objective
from models.samplers import Sampling

TEXT, SCHEDULE = HashedText(dim=8, length=4), Schedule()
CONFIG = ssr.Config(
    sample_px=8, scale=2, widths=(8, 16), text_dim=8, head_dim=8, precondition=False
)
X = torch.rand(3, 3, 6, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
CLIPS = Clips(
    x_BCTHW=X, captions=["one", "two", "three"], clip_ids=["a", "b", "c"], positions=[4, 5, 6]
)
STEP = 9
GAIN = 50.0  # of what a text says


class Spy(torch.nn.Module):
    """Remembers what it is shown; predicts from it and from the text."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def forward(self, x_BCTHW, timestep_B, text_BND, *, level_B=None, temporal=True):
        self.calls.append((x_BCTHW, timestep_B, text_BND, level_B, temporal))
        return 0.3 * x_BCTHW[:, :3] + text_BND.mean((1, 2)).reshape(-1, 1, 1, 1, 1)


def told(**more) -> Objective:
    settings = {"role": "ssr", "schedule": SCHEDULE, "text": TEXT, "run_seed": 2, "frames": 6}
    return Objective(**{**settings, "ssr": CONFIG, **more})


def shown(aim: Objective):
    spy = Spy()
    losses = objective.losses(aim, spy, CLIPS, step=STEP)
    return spy.calls[0], losses


def drawn(stream: str) -> torch.Tensor:
    seeds = [noise.seed_for("train", 2, name, k) for name, k in zip("abc", (4, 5, 6), strict=True)]
    frames_BT = torch.arange(6).expand(3, 6)
    said = noise.normals(seeds, stream=stream, step=STEP, frames_BT=frames_BT, shape=(3, 8, 8))
    return said.transpose(1, 2)


def test_the_condition_and_the_target_have_noises_of_their_own():
    (x, timestep_B, _, level_B, _), _ = shown(told())
    seeds = [noise.seed_for("train", 2, name, k) for name, k in zip("abc", (4, 5, 6), strict=True)]
    levels = [noise.uniform(s, stream="level", step=STEP, count=1) for s in seeds]
    assert torch.equal(level_B, (torch.cat(levels) * CONFIG.max_level).float())
    assert float(level_B.min()) > 0
    enlarged = ssr.upsample(ssr.shrink(X, 2), 2)
    assert torch.equal(x[:, 3:], ssr.augment(enlarged, level_B, drawn("augment")))
    noisy = diffusion.add_noise(X, drawn("train"), timestep_B, SCHEDULE)
    assert torch.equal(x[:, :3], noisy)


def test_dropped_text_is_the_null_prompt():
    (_, _, text, *_), _ = shown(told(caption_dropout=1.0))
    assert torch.equal(text, TEXT([""] * 3))
    (_, _, text, *_), _ = shown(told())
    assert torch.equal(text, TEXT(CLIPS.captions))


def test_min_snr_weighs_each_clip():
    (_, timestep_B, *_), plain = shown(told())
    _, weighed = shown(told(min_snr_gamma=2.0))
    weight_B = diffusion.min_snr_weight(SCHEDULE, timestep_B, 2.0).float()
    assert float((weight_B - 1).abs().max()) > 0.05
    assert torch.allclose(weighed, plain * weight_B)


class Edges(torch.nn.Module):
    """Wrong at a window's first and last frame, as a network that pads with zeros is; 0 elsewhere."""

    def forward(self, x_BCTHW, _timestep_B, text_BND, *, level_B):  # noqa: ARG002  the network's signature
        out = torch.zeros_like(x_BCTHW[:, :3])
        out[:, :, [0, -1]] = 1.0
        return out + GAIN * text_BND.mean((1, 2)).reshape(-1, 1, 1, 1, 1)


def sampled(plan: windows.Plan, *, scale: float = 1.0, text: str = "", **more) -> torch.Tensor:
    low = torch.zeros(1, 3, plan.frames, 4, 4)
    settings = Sampling(schedule=SCHEDULE, steps=1, threshold="none", guidance_scale=scale)
    return samplers.sample_ssr(
        Edges(), low, TEXT([text]), TEXT([""]), seeds=[1], scale=2, plan=plan, settings=settings,
        augment_level=0.0, precondition=False, **more,
    )  # fmt: skip


def step_of(prediction: float) -> float:
    """What one step makes of a constant prediction: x0 = -v from pure noise."""
    return -prediction


@pytest.mark.parametrize(
    ("kind", "at_cut"), [("linear", [1 / 4, 1 / 4]), ("uniform", [1 / 2, 1 / 2])]
)
def test_weights_and_trim_reach_the_windows(kind, at_cut):
    """Overlap of 3 frames, 5 to 7; the edges in it are frame 5 of the second and 7 of the first window."""
    plan = windows.Plan(frames=13, window=8, starts=(0, 5))
    video = sampled(plan, weights=kind)[0, 0, :, 0, 0]
    assert video[[5, 7]].tolist() == pytest.approx([step_of(share) for share in at_cut], abs=1e-5)
    trimmed = sampled(plan, weights=kind, trim=1)[0, 0, :, 0, 0]
    assert trimmed[1:-1].tolist() == pytest.approx([0.0] * 11, abs=1e-5)


def test_guidance_goes_from_the_null_text_to_the_given_one():
    plan = windows.even(4, 8, 0)
    given = float(TEXT(["word"]).mean()) * GAIN
    assert abs(given) > 0.05
    for scale in (1.0, 3.0):
        made = sampled(plan, scale=scale, text="word")[0, 0, 1, 0, 0]
        assert float(made) == pytest.approx(step_of(scale * given), abs=1e-5)


def test_levels_beyond_noise_are_refused():
    for level in (-0.3, 1.0, 5.0):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
            samplers.sample_ssr(
                Edges(), torch.zeros(1, 3, 4, 4, 4), TEXT([""]), TEXT([""]), seeds=[1], scale=2,
                plan=windows.even(4, 8, 0), settings=Sampling(steps=1), augment_level=level,
            )  # fmt: skip
