"""Activation checkpointing, bf16 and torch.compile change the cost of a network and not what it says."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from models import stunet, temporal
from models.conditioning import HashedText
from tests.models import tiny_unet

T, PX = 8, 8
TIMES = torch.tensor([3, 700])
TEXT = HashedText(dim=12, length=4)(["a rabbit", "pink clouds drift"])
FAMILIES = pytest.mark.parametrize("layout", tiny_unet.FAMILIES)


def build(layout: str, **choices) -> stunet.STUNet:
    """A model whose temporal modules do something."""
    config = stunet.Config.of_image(tiny_unet.LAYOUTS[layout], **choices)
    model = stunet.build(config, seed=0)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.motion.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def noisy(model: stunet.STUNet) -> torch.Tensor:
    shape = (2, model.config.in_channels, T, PX, PX)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def learn(model: stunet.STUNet, role: stunet.Role) -> tuple[dict[str, torch.Tensor], int]:
    """Return the gradients and the bytes kept for them between forward and backward."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    parameters = stunet.trainable(model, role)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(noisy(model), TIMES, TEXT, temporal=role != "base").square().mean()
        kept_bytes = sum(kept.values())
    loss.backward()
    return {n: p.grad for n, p in parameters.items() if p.grad is not None}, kept_bytes


@FAMILIES
@pytest.mark.parametrize("role", ["base", "motion", "ssr"])
def test_checkpointing_keeps_the_gradients_and_drops_the_activations(layout, role):
    plain, plain_bytes = learn(build(layout), role)
    saving, saving_bytes = learn(build(layout, checkpointing=True), role)
    assert plain.keys() == saving.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(saving[name], gradient, rtol=1e-5, atol=1e-7)
    assert saving_bytes < 0.15 * plain_bytes


def test_without_gradients_checkpointing_is_not_there():
    model = build("deepfloyd-1", checkpointing=True)
    x = noisy(model)
    with torch.no_grad():
        assert torch.equal(model(x, TIMES, TEXT), build("deepfloyd-1")(x, TIMES, TEXT))


class Functional:
    """torch.nn.functional as the temporal modules see it, with the types their norms are given."""

    def __init__(self) -> None:
        self.seen: set[torch.dtype] = set()

    def __getattr__(self, name: str):
        found = getattr(torch.nn.functional, name)
        if not name.endswith("_norm"):
            return found
        return lambda h, *rest: self.seen.add(h.dtype) or found(h, *rest)


@FAMILIES
def test_autocast_to_bf16_is_close_and_normalises_in_fp32(layout, monkeypatch):
    model = build(layout)
    x, functional = noisy(model), Functional()
    with torch.no_grad():
        exact = model(x, TIMES, TEXT)
        monkeypatch.setattr(temporal, "functional", functional)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(x, TIMES, TEXT)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()
    assert functional.seen == {torch.float32}


def two_levels(layout: str, **choices) -> stunet.STUNet:
    """The smallest network with every kind of step: compiling costs seconds a block."""
    image = dict(tiny_unet.LAYOUTS[layout]) | {"layers_per_block": 1}
    middle = {"down_block_types": 1, "up_block_types": 1, "block_out_channels": 2}
    for name, place in middle.items():
        image[name] = tuple(v for i, v in enumerate(image[name]) if i != place)
    model = stunet.build(stunet.Config.of_image(image, known=True, **choices), seed=0)
    for parameter in model.motion.parameters():
        parameter.data += 0.05
    return model


@pytest.fixture(name="compiled")
def one_graph():
    """torch.compile without a break, by a quick backend; aot_eager traces the gradients too."""
    torch._dynamo.reset()
    yield lambda model, backend="eager": torch.compile(model, fullgraph=True, backend=backend)
    torch._dynamo.reset()


def test_stable_diffusions_layout_compiles_as_one_graph(compiled):
    model = two_levels("stable-diffusion")
    x = noisy(model)
    with torch.no_grad():
        graph, eager = compiled(model)(x, TIMES, TEXT), model(x, TIMES, TEXT)
    torch.testing.assert_close(graph, eager, rtol=1e-5, atol=1e-5)


def test_training_deepfloyds_layout_with_checkpointing_compiles_as_one_graph(compiled):
    model = two_levels("deepfloyd-1", checkpointing=True)
    x, c = noisy(model), model.config.video_channels
    known = torch.ones(2, c + 1, T, PX, PX)

    def learn_by(run) -> dict[str, torch.Tensor]:
        model.zero_grad()
        run(x, TIMES, TEXT, known_BCTHW=known).square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    eager = learn_by(model)
    for name, gradient in learn_by(compiled(model, "aot_eager")).items():
        torch.testing.assert_close(gradient, eager[name], rtol=1e-4, atol=1e-6)


def test_control_a_break_in_the_graph_is_refused(compiled):
    model = two_levels("stable-diffusion")
    model.unet.conv_in.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    with pytest.raises(torch._dynamo.exc.Unsupported), torch.no_grad():
        compiled(model)(noisy(model), TIMES, TEXT)
