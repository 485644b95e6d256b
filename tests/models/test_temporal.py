"""The temporal modules are identities at first, and do what their formulas say afterwards."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from models.temporal import AttnInflate, ConvInflate, TDown, TUp, from_time, positions, to_time

B, T, C, H, W, D = 2, 8, 16, 3, 4, 12


@pytest.fixture(name="h_FCHW")
def features():
    return torch.randn(B * T, C, H, W, generator=torch.Generator().manual_seed(0))


@pytest.fixture(name="e_BD")
def embedding():
    return torch.randn(B, D, generator=torch.Generator().manual_seed(1))


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(2)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return module


def blocks():
    return [
        ConvInflate(C, embed_dim=D, groups=4),
        AttnInflate(C, embed_dim=D, head_dim=8),
    ]


def test_folding_there_and_back_is_exact(h_FCHW):
    x = to_time(h_FCHW, T)
    assert x.shape == (B, C, T, H * W)
    assert torch.equal(x[1, :, 3].reshape(C, H, W), h_FCHW[T + 3])
    assert torch.equal(from_time(x, H, W), h_FCHW)


@pytest.mark.parametrize("block", blocks())
def test_inflations_start_as_identities_and_then_change(block, h_FCHW, e_BD):
    assert torch.equal(block(h_FCHW, e_BD, T), h_FCHW)
    randomise(block)
    assert not torch.allclose(block(h_FCHW, e_BD, T), h_FCHW)


@pytest.mark.parametrize("block", blocks())
def test_trained_inflations_hear_the_embedding_and_keep_samples_apart(block, h_FCHW, e_BD):
    randomise(block)
    other = e_BD.clone()
    other[1] += 1.0
    before, after = block(h_FCHW, e_BD, T), block(h_FCHW, other, T)
    assert torch.equal(before[:T], after[:T])
    assert not torch.allclose(before[T:], after[T:])


@pytest.mark.parametrize(("videos", "frames"), [(1, 1), (1, 4), (2, 4), (3, 2), (3, 1)])
def test_a_convolution_is_what_its_formula_says(videos, frames):
    """h + W_out silu(Conv1d silu(scale GN(Conv2d h) + shift)), with each video's own scale and shift."""
    generator = torch.Generator().manual_seed(5)
    block = randomise(ConvInflate(C, embed_dim=D, groups=4))
    h = torch.randn(videos * frames, C, H, W, generator=generator)
    e = torch.randn(videos, D, generator=generator)
    said = []
    for b in range(videos):
        film = block.film.linear(torch.nn.functional.silu(e[b]))[:, None, None]
        y = block.norm(block.space(h[b * frames : (b + 1) * frames])) * (1 + film[:C]) + film[C:]
        rows = torch.nn.functional.silu(y).permute(2, 3, 1, 0).flatten(0, 1)  # (H*W, C, T)
        rows = torch.nn.functional.conv1d(
            rows, block.time.weight[..., 0], block.time.bias, padding=1
        )
        y = torch.nn.functional.silu(rows.unflatten(0, (H, W)).permute(3, 2, 0, 1))
        said.append(torch.einsum("oi,tihw->tohw", block.out.weight[:, :, 0, 0], y))
    torch.testing.assert_close(block(h, e, frames), h + torch.cat(said), rtol=1e-5, atol=1e-5)


def test_a_compiled_convolution_takes_any_number_of_videos():
    """One graph for one video and one for several, not one for each number: a training has many."""
    torch._dynamo.reset()
    counter = CompileCounter()
    block = ConvInflate(C, embed_dim=D, groups=4)
    run = torch.compile(block, fullgraph=True, backend=counter)
    for videos in range(1, 12):
        run(torch.zeros(videos * T, C, H, W), torch.zeros(videos, D), T)
    torch._dynamo.reset()
    assert counter.frame_count <= 3


def test_attention_tells_frames_apart(h_FCHW, e_BD):
    block = randomise(AttnInflate(C, embed_dim=D, head_dim=8))
    flip = torch.arange(T - 1, -1, -1)
    x = h_FCHW[:T]
    assert not torch.allclose(block(x[flip], e_BD[:1], T)[flip], block(x, e_BD[:1], T), atol=1e-3)


def test_attention_is_global_and_convolution_local(h_FCHW, e_BD):
    x = h_FCHW[:T].clone()
    y = x.clone()
    y[0] += 1.0
    attn = randomise(AttnInflate(C, embed_dim=D, head_dim=8))
    conv = randomise(ConvInflate(C, embed_dim=D, groups=4))
    assert not torch.equal(attn(x, e_BD[:1], T)[-1], attn(y, e_BD[:1], T)[-1])
    changed = (conv(x, e_BD[:1], T) != conv(y, e_BD[:1], T)).flatten(1).any(1)
    assert changed.tolist() == [True, True] + [False] * (T - 2)


@pytest.mark.parametrize("factor", [2, 4])
def test_resamplers_start_as_nearest_neighbour(factor, h_FCHW):
    small = TDown(C, factor)(h_FCHW, T)
    kept = [b * T + t for b in range(B) for t in range(0, T, factor)]
    assert torch.equal(small, h_FCHW[kept])
    assert torch.equal(TUp(C, factor)(small, T // factor), small.repeat_interleave(factor, 0))


def test_tdown_is_convolution_then_stride(h_FCHW):
    down = randomise(TDown(C, 2))
    full = torch.nn.functional.conv2d(
        to_time(h_FCHW, T), down.conv.weight, down.conv.bias, padding=(1, 0)
    )
    every = from_time(full[:, :, ::2], H, W)
    assert torch.allclose(down(h_FCHW, T), every, atol=1e-5)


def test_positions_differ_for_every_frame():
    table = positions(80, 16, like=torch.zeros(1))
    distances = torch.cdist(table, table) + torch.eye(80) * 9
    assert distances.min() > 0.1


@pytest.mark.parametrize("block", blocks())
def test_bf16_is_close_to_fp32(block, h_FCHW, e_BD):
    randomise(block)
    exact = block(h_FCHW, e_BD, T)
    rough = block.to(torch.bfloat16)(h_FCHW.bfloat16(), e_BD.bfloat16(), T)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()
