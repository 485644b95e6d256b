"""Training with masks: what the network is shown, what the loss sees, and that the base is left alone."""

import pytest
import torch

from models import known, noise, objective, ssr
from models.conditioning import HashedText
from models.diffusion import Schedule
from models.known import Mixture
from models.objective import Clips, Objective

TEXT = HashedText(dim=8, length=4)
X = torch.rand(4, 3, 6, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
ALL_KNOWN_BUT_LITTLE = Mixture(
    first_frame=0, tube=0, border=0, cinemagraph=0, nothing=0, first_last=0, prediction=1
)


def clips(rows: slice = slice(None)) -> Clips:
    return Clips(
        x_BCTHW=X[rows],
        captions=[f"clip {k}" for k in range(4)][rows],
        clip_ids=list("abcd")[rows],
        positions=list(range(4))[rows],
    )


def told(role: str, masks: Mixture | None, **more) -> Objective:
    return Objective(role=role, schedule=Schedule(), text=TEXT, run_seed=1, masks=masks, **more)


class Network(torch.nn.Module):
    """Predicts from what is known alone, and remembers how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def forward(self, x_BCTHW, timestep_B, text_BND, **more):
        self.calls.append((x_BCTHW, timestep_B, more))
        shift = text_BND.mean((1, 2)).reshape(-1, 1, 1, 1, 1)
        shown = more["known_BCTHW"][:, :3] if "known_BCTHW" in more else 0.0
        return 0.5 * x_BCTHW[:, :3] + shown + shift


def run(aim: Objective, rows: slice = slice(None), step: int = 5):
    network = Network()
    return objective.losses(aim, network, clips(rows), step=step), network.calls


def seeds() -> list[int]:
    return [noise.seed_for("train", 1, name, k) for k, name in enumerate("abcd")]


def expected_masks(step: int, mixture: Mixture) -> torch.Tensor:
    masks = [
        known.drawn_mask(seed, step=step, frames=6, size_px=(8, 8), mixture=mixture)[1]
        for seed in seeds()
    ]
    return torch.stack(masks).unsqueeze(1)


def test_motion_sees_the_clean_pixels_of_its_mask_and_nothing_else():
    _, [(_, _, more)] = run(told("motion", Mixture()))
    mask = expected_masks(5, Mixture())
    assert torch.equal(more["known_BCTHW"], torch.cat((X * mask, mask), dim=1))
    assert more["temporal"]
    _, [(_, _, later)] = run(told("motion", Mixture()), step=6)
    assert not torch.equal(later["known_BCTHW"], more["known_BCTHW"])


def test_noise_timesteps_and_text_do_not_hang_on_masks():
    loss, [(x, at, more)] = run(told("motion", None))
    masked, [(x_masked, at_masked, _)] = run(told("motion", Mixture()))
    assert "known_BCTHW" not in more
    assert torch.equal(x, x_masked)
    assert torch.equal(at, at_masked)
    assert not torch.equal(loss, masked)


def test_the_loss_stays_on_all_frames():
    """Known frames are noised and scored like the others: else nothing would teach copying."""
    aim = told("motion", ALL_KNOWN_BUT_LITTLE)
    loss, [(x_t, _, more)] = run(aim)
    prefix = more["known_BCTHW"][:, 3:].mean((1, 3, 4)).sum(1).tolist()
    assert all(1 <= p <= 5 for p in prefix)

    class Wrong(Network):
        def forward(self, x_BCTHW, timestep_B, text_BND, **told_):
            out = super().forward(x_BCTHW, timestep_B, text_BND, **told_)
            out[:, :, 0] += 3.0  # frame 0 is known in every item
            return out

    worse = objective.losses(aim, Wrong(), clips(), step=5)
    assert not torch.allclose(worse, loss, atol=0.1)
    assert not torch.equal(x_t[:, :, 0], X[:, :, 0])


@pytest.mark.parametrize("role", ["motion", "ssr"])
def test_neither_rank_nor_batch_changes_a_loss(role, plain_denoiser):  # noqa: ARG001
    aim = told(role, Mixture(), **SSR if role == "ssr" else {})
    whole, _ = run(aim)
    parts = torch.cat([run(aim, slice(k, k + 1))[0] for k in range(4)])
    assert torch.allclose(whole, parts, atol=1e-6)


def test_the_base_is_left_as_it_is():
    for frames in (1, 3):
        plain, calls = run(told("base", None, frames=frames))
        masked, masked_calls = run(told("base", Mixture(), frames=frames))
        assert torch.equal(plain, masked)
        assert calls[0][2] == masked_calls[0][2] == {"temporal": False}


SSR = {"frames": 3, "ssr": ssr.Config(sample_px=8)}


@pytest.fixture
def plain_denoiser(monkeypatch):
    """The SSR's form of a denoiser, by its interface: known pixels are handed through."""

    def denoiser(model, condition, text, level_B, *, schedule, known_BCTHW=None, **_form):
        assert schedule == Schedule()
        more = {} if known_BCTHW is None else {"known_BCTHW": known_BCTHW}
        return lambda x, t: model(x + condition, t, text, level_B=level_B, **more)

    monkeypatch.setattr(objective.ssr, "denoiser", denoiser)


@pytest.mark.usefixtures("plain_denoiser")
def test_a_window_of_the_ssr_sees_its_part_of_the_clips_mask():
    starts = set()
    for step in range(6):
        _, [(_, _, more)] = run(told("ssr", Mixture(), **SSR), step=step)
        mask = expected_masks(step, Mixture())
        for row in range(4):
            u = float(noise.uniform(seeds()[row], stream="crop", step=step, count=1))
            first = int(u * 4)
            starts.add(first)
            part = slice(first, first + 3)
            expected = torch.cat((X[row] * mask[row], mask[row]))[:, part]
            assert torch.equal(more["known_BCTHW"][row], expected)
    assert starts == {0, 1, 2, 3}
    _, [(_, _, more)] = run(told("ssr", None, **SSR))
    assert "known_BCTHW" not in more


def test_the_probe_is_masked_and_repeats_itself():
    aim = told("motion", Mixture())
    first, again, free = Network(), Network(), Network()
    batches = [clips(slice(k, k + 1)) for k in range(4)]
    loss = objective.probe(aim, first, batches)
    assert objective.probe(aim, again, batches) == loss
    assert objective.probe(told("motion", None), free, batches) != loss
    assert all("known_BCTHW" in more for _, _, more in first.calls)


def test_a_network_learns_to_copy_what_is_known():
    """Trained, the known frame is read off; the control is the same network without masks."""

    class Copier(torch.nn.Module):
        """x0 = a * known + b * x_t, two numbers to learn."""

        def __init__(self) -> None:
            super().__init__()
            self.gains = torch.nn.Parameter(torch.zeros(2))

        def forward(self, x_BCTHW, timestep_B, text_BND, *, temporal, known_BCTHW=None):
            del timestep_B, text_BND, temporal
            shown = torch.zeros_like(x_BCTHW) if known_BCTHW is None else known_BCTHW[:, :3]
            return self.gains[0] * shown + self.gains[1] * x_BCTHW

    def learnt(masks: Mixture | None) -> float:
        network = Copier()
        optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
        aim = Objective(
            role="motion", schedule=Schedule(prediction="x0"), text=TEXT, run_seed=1, masks=masks
        )
        for step in range(100):
            optimizer.zero_grad()
            objective.losses(aim, network, clips(), step=step).mean().backward()
            optimizer.step()
        return float(network.gains.detach()[0])

    assert learnt(Mixture()) > 0.5
    assert learnt(None) == 0.0
