"""Tokens of a T5 encoder in DeepFloyd's layout: transformers' numbers, pinned by its files, offline."""

import json
import pickle
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel, T5Tokenizer
from transformers.utils import sentencepiece_model_pb2_new as spm

from models import conditioning
from models.text_t5 import T5Text

PIECES = [
    ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), ("\u2581rabbit", -3.0),
    ("\u2581a", -3.0), ("ing", -3.5), *((letter, -4.0) for letter in "abcdefghijklmnopqrstuvwxyz"),
]  # fmt: skip
TEXTS = ["a rabbit running", "", "rabbit", "many words " * 40]


def made(folder: Path, *, seed: int = 0, shards: str = "1GB") -> Path:
    """Write a small random T5 as a DeepFloyd pipeline folder has it (T5 v1.1: gated GELU)."""
    config = T5Config(
        vocab_size=len(PIECES), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = T5EncoderModel(config)
    model.save_pretrained(folder / "text_encoder", max_shard_size=shards)
    T5Tokenizer(vocab=PIECES, extra_ids=0).save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def text(folder) -> T5Text:
    return T5Text(folder=folder, length=24)


def copied(folder: Path, to: Path) -> Path:
    for path in folder.rglob("*.*"):
        there = to / path.relative_to(folder)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(path.read_bytes())
    return to


def test_tokens_are_the_encoders_last_states_as_deepfloyd_calls_it(text, folder):
    model = T5EncoderModel.from_pretrained(folder / "text_encoder")
    tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer")
    ids = tokenizer(
        TEXTS, padding="max_length", max_length=24, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(input_ids=ids.input_ids, attention_mask=ids.attention_mask)[0]
        unmasked = model(input_ids=ids.input_ids)[0]
    tokens = text(TEXTS)
    assert tokens.shape == (4, 24, 16)
    assert tokens.dtype == torch.float32
    assert text.dim == 16
    assert torch.allclose(tokens, expected, atol=1e-5)
    # control: without the attention mask padding leaks into the words
    assert not torch.allclose(tokens[2, :2], unmasked[2, :2], atol=1e-3)


def test_words_do_not_feel_the_padding(folder):
    short, long = (T5Text(folder=folder, length=n)(["a rabbit"])[0] for n in (4, 77))
    assert torch.allclose(short[:3], long[:3], atol=1e-5)
    assert T5Text(folder=folder).length == 77


def test_a_text_has_the_same_bits_in_every_batch(text):
    tokens = text(TEXTS)
    for i, one in enumerate(TEXTS):
        assert torch.equal(text([one])[0], tokens[i])
    assert text([]).shape == (0, 24, 16)


def test_texts_are_lowered_cut_and_the_empty_one_is_defined(text):
    running, null, _, long = text(TEXTS)
    assert torch.equal(text(["  A Rabbit running "])[0], running)
    assert torch.equal(text(["  "])[0], null)
    assert null.abs().max() > 0
    assert not torch.allclose(running, null, atol=1e-2)
    assert torch.equal(long, text(["many words " * 80])[0])
    assert not torch.allclose(long, text(["many words"])[0], atol=1e-3)


def test_what_is_no_text_is_refused(text):
    with pytest.raises(TypeError, match="text 0 is int, not a string"):
        text([3])
    with pytest.raises(TypeError, match="must be a list of strings"):
        text("a rabbit")


def test_the_digest_follows_the_content_not_the_place(text, folder, tmp_path):
    same = copied(folder, tmp_path / "same")
    assert T5Text(folder=same, length=24).digest() == text.digest()
    told = {text.digest(), T5Text(folder=folder).digest()}
    told.add(T5Text(folder=made(tmp_path / "seed", seed=1), length=24).digest())
    for name in ("text_encoder/config.json", "tokenizer/tokenizer.json"):
        path = copied(folder, tmp_path / name.replace("/", "-")) / name
        path.write_text(path.read_text() + "\n")
        told.add(T5Text(folder=path.parents[1], length=24).digest())
    assert len(told) == 5


def test_settings_travel_as_json(text):
    back = conditioning.text_conditioner(json.loads(json.dumps(text.settings())))
    assert back == text
    assert pickle.loads(pickle.dumps(back)).digest() == text.digest()


def test_shards_give_the_same_tokens(text, tmp_path):
    sharded = made(tmp_path, shards="2KB")
    assert len(list((sharded / "text_encoder").glob("*.safetensors"))) > 1
    ours = T5Text(folder=sharded, length=24)
    assert torch.equal(ours(TEXTS), text(TEXTS))
    assert ours.digest() != text.digest()
    missing = sorted((sharded / "text_encoder").glob("*.safetensors"))[-1]
    missing.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(FileNotFoundError, match=f"no .*{missing.name}: copy the pipeline's"):
        T5Text(folder=sharded, length=24).digest()


def test_deepfloyds_own_vocabulary_file_gives_the_same_tokens(text, folder, tmp_path):
    """DeepFloyd ships spiece.model only, which transformers reads with one more package."""
    copied(folder, tmp_path)
    for path in (tmp_path / "tokenizer").iterdir():
        path.unlink()
    proto = spm.ModelProto()
    for piece, score in PIECES:
        proto.pieces.add(piece=piece, score=score)
    (tmp_path / "tokenizer" / "spiece.model").write_bytes(proto.SerializeToString())
    assert torch.equal(T5Text(folder=tmp_path, length=24)(TEXTS), text(TEXTS))


def test_nothing_is_fetched(folder, monkeypatch, tmp_path):
    def refuse(*_given):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert T5Text(folder=copied(folder, tmp_path / "offline"))(["a rabbit"]).shape == (1, 77, 16)
    with pytest.raises(FileNotFoundError, match=r"no .*config\.json"):
        T5Text(folder=Path("google/t5-v1_1-xxl"))(["a"])


def test_weights_that_do_not_fit_are_refused(folder, tmp_path):
    place = copied(folder, tmp_path) / "text_encoder" / "model.safetensors"
    state = load_file(place)
    lost = next(name for name in state if "wi_0" in name)
    save_file({k: v for k, v in state.items() if k != lost}, place, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 tensors of its config.json: .*wi_0"):
        T5Text(folder=tmp_path, length=20)(["a"])
    save_file({**state, lost: state[lost][:3].clone()}, place, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"does not fit its config\.json"):
        T5Text(folder=tmp_path, length=21)(["a"])
    place.write_bytes(b"<html>")
    with pytest.raises(ValueError, match="copy the folder anew"):
        T5Text(folder=tmp_path, length=22)(["a"])
    place.rename(place.with_name("pytorch_model.bin"))
    with pytest.raises(FileNotFoundError, match=r"turn pytorch_model\.bin into safetensors"):
        T5Text(folder=tmp_path, length=23)(["a"])


def test_low_precision_gives_fp32_tokens_near_the_others(text, folder):
    low = T5Text(folder=folder, length=24, precision="bf16")(TEXTS)
    assert low.dtype == torch.float32
    assert not torch.equal(low, text(TEXTS))
    assert (low - text(TEXTS)).abs().max() < 0.1


def test_wrong_requests_are_named(folder):
    with pytest.raises(ValueError, match="precision 'fp16' of T5 must be fp32 or bf16"):
        T5Text(folder=folder, precision="fp16")
    with pytest.raises(ValueError, match="length 1 must be at least 2"):
        T5Text(folder=folder, length=1)
