"""Hashed tokens: fixed for a word, different between words, zero for nothing."""

import json

import pytest
import torch

from models.conditioning import HashedText, drop_text, text_conditioner, words


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


def test_hashed_text_refuses_what_is_none_and_has_the_same_bits_in_every_batch():
    text = HashedText(dim=8, length=3)
    both = text(["a rabbit", ""])
    assert torch.equal(text([""])[0], both[1])
    assert torch.equal(text(["a rabbit"])[0], both[0])
    assert text([]).shape == (0, 3, 8)
    with pytest.raises(TypeError, match="text 0 is bytes"):
        text([b"a rabbit"])
    with pytest.raises(TypeError, match="must be a list of strings"):
        text("a rabbit")
    with pytest.raises(ValueError, match="dim 0 and length 16"):
        HashedText(dim=0)


def test_settings_make_the_same_conditioner_again():
    text = HashedText(dim=8, length=3)
    assert text_conditioner(json.loads(json.dumps(text.settings()))) == text
    assert text_conditioner({"dim": 8, "length": 3}) == text  # of older checkpoints
    assert text_conditioner({"kind": "hashed"}) == HashedText()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "clip"}, "unknown text conditioner 'clip': use one of hashed, open_clip, t5"),
        ({"kind": "hashed", "lenght": 3}, "hashed: unknown key 'lenght': did you mean length"),
        ({"kind": "t5", "folder": "x", "zzz": 1}, "t5: unknown key 'zzz': it takes folder, length"),
        ({"kind": "t5"}, "t5: folder is missing"),
        ({"kind": "open_clip", "tag": "openai"}, "open_clip: model is missing"),
        ({"kind": "open_clip", "model": "ViT-B-32"}, "give path and sha256, or a tag"),
        ({"kind": "hashed", "dim": "64"}, "hashed: dim must be int, not '64'"),
        ({"kind": "hashed", "dim": True}, "hashed: dim must be int, not True"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        text_conditioner(settings)
