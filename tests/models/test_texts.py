"""What every text model is run by: the tokens are plain tensors, one text at a time on a CPU."""

import pytest
import torch

from models import texts

WORDS = torch.nn.Embedding(8, 4)


def encode(some: list[str]) -> torch.Tensor:
    """A text model of one layer: three tokens a text, from its length."""
    return WORDS(torch.tensor([[len(text) % 8, 1, 2] for text in some]))


def tokens(some: list[str]) -> torch.Tensor:
    return texts.encoded(some, encode, device="cpu", shape=(3, 4))


def test_a_network_can_be_trained_on_the_tokens_and_the_text_model_is_not():
    layer = torch.nn.Linear(4, 1)
    layer(tokens(["a dog", ""])).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum() > 0
    assert WORDS.weight.grad is None


def test_no_texts_are_no_tokens():
    assert tokens([]).shape == (0, 3, 4)


def test_tokens_that_are_not_finite_are_refused():
    with pytest.raises(ArithmeticError, match="not finite"):
        texts.encoded(["a"], lambda some: encode(some) / 0.0, device="cpu", shape=(3, 4))
