"""Hashed tokens: fixed for a word, different between words, zero for nothing."""

import pytest
import torch

from models.conditioning import HashedText, drop_text, words


def test_words_are_folded_and_bare():
    assert words("A RABBIT, wakes-up! Stra\u00dfe e\u0301") == [
        "a",
        "rabbit",
        "wakes",
        "up",
        "strasse",
        "\u00e9",
    ]
    assert words("...") == []


def test_tokens_belong_to_words():
    tokens = HashedText(dim=64, length=6)(
        ["a rabbit", "Rabbit a", "", "one two three four five six seven"]
    )
    assert tokens.shape == (4, 6, 64)
    assert torch.equal(tokens[0, 0], tokens[1, 1])
    assert torch.equal(tokens[0, 1], tokens[1, 0])
    assert not torch.isclose(tokens[0, 0], tokens[0, 1]).any()
    assert tokens[2].abs().max() == 0
    assert tokens[0, 2:].abs().max() == 0
    assert torch.equal(
        tokens,
        HashedText(dim=64, length=6)(["a rabbit", "Rabbit a", "", "one two three four five six"]),
    )


def test_tokens_have_unit_variance():
    tokens = HashedText(dim=512, length=1)([f"word{i}" for i in range(50)])
    assert tokens.std() == pytest.approx(1.0, abs=0.02)


def test_the_digest_tells_vocabularies_apart():
    assert HashedText(dim=8).digest() == HashedText(dim=8).digest()
    assert (
        len(
            {HashedText(dim=8).digest(), HashedText(dim=16).digest(), HashedText(length=8).digest()}
        )
        == 3
    )


def test_dropping_is_addressed_and_about_the_share():
    text, null = torch.ones(1000, 2, 3), torch.zeros(1, 2, 3)
    dropped = drop_text(text, null, seeds=range(1000), step=1, share=0.1)
    share = float((dropped[:, 0, 0] == 0).float().mean())
    assert share == pytest.approx(0.1, abs=0.03)
    one = drop_text(text[:1], null, seeds=[17], step=1, share=0.1)
    assert torch.equal(one[0], dropped[17])
    assert torch.equal(drop_text(text, null, seeds=range(1000), step=1, share=0.0), text)
