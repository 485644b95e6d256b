"""Tokens of an open_clip text tower: the same numbers as open_clip's and Stable Diffusion's encoders."""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from models import clip, conditioning
from models.clip_weights import Weights
from models.text_clip import ClipText
from tests.models.tiny_clip import CLIP_CONFIG, COCA_CONFIG, untrained

TEXTS = ["a rabbit wakes up", "", "A rabbit wakes up!", "one two three " * 20]
END = 49407


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Weights:
    return untrained(tmp_path_factory.mktemp("clip"), CLIP_CONFIG)


@pytest.fixture(scope="module")
def text(weights) -> ClipText:
    return ClipText(weights=weights)


def test_the_pooled_token_projected_is_open_clips_embedding(text, weights):
    """So the sequence is that before pooling and after the final norm."""
    tokens = text(TEXTS)
    assert tokens.shape == (4, 14, 64)
    assert tokens.dtype == torch.float32
    assert text.dim == 64
    whole = clip.load(weights)
    ids = whole.tokenizer(TEXTS)
    pooled = tokens[torch.arange(4), ids.argmax(-1)] @ whole.model.text_projection
    assert torch.allclose(pooled, whole.model.encode_text(ids), atol=1e-5)


def stable_diffusion_encoder(weights: Weights) -> CLIPTextModel:
    """The same weights in transformers' model, which diffusers' Stable Diffusion pipelines use."""
    model = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=14, hidden_act="gelu", eos_token_id=END, layer_norm_eps=1e-5,
        )
    ).eval()  # fmt: skip
    state = load_file(weights.path)
    prefix = next(iter(model.state_dict())).partition("embeddings")[0]
    theirs = {
        "embeddings.token_embedding.weight": state["token_embedding.weight"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
        "final_layer_norm.weight": state["ln_final.weight"],
        "final_layer_norm.bias": state["ln_final.bias"],
    }
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
             "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}  # fmt: skip
    for i in range(2):
        ours, there = f"transformer.resblocks.{i}.", f"encoder.layers.{i}."
        for kind in ("weight", "bias"):
            for a, b in names.items():
                theirs[f"{there}{b}.{kind}"] = state[f"{ours}{a}.{kind}"]
            for part, name in zip(state[f"{ours}attn.in_proj_{kind}"].chunk(3), "qkv", strict=True):
                theirs[f"{there}self_attn.{name}_proj.{kind}"] = part
    given = {prefix + key: value for key, value in theirs.items()}
    lacking = model.load_state_dict(given, strict=False)
    assert [key for key in lacking.missing_keys if "position_ids" not in key] == []
    assert lacking.unexpected_keys == []
    return model


def test_pad_end_and_skip_are_what_stable_diffusion_takes(weights):
    """Version 1 repeats the end token; version 2 takes the last but one block, normalised."""
    encoder, tokenizer = stable_diffusion_encoder(weights), clip.load(weights).tokenizer
    ids = tokenizer(TEXTS)
    for row in ids:
        row[int(row.argmax()) :] = END
    with torch.no_grad():
        expected = encoder(input_ids=ids, output_hidden_states=True)
        norm = next(m for n, m in encoder.named_modules() if n.endswith("final_layer_norm"))
        earlier = norm(expected.hidden_states[1])
    ours = ClipText(weights=weights, pad="end")(TEXTS)
    assert torch.allclose(ours, expected.last_hidden_state, atol=1e-5)
    assert torch.allclose(ClipText(weights=weights, pad="end", skip=1)(TEXTS), earlier, atol=1e-5)
    # controls: the other padding and the other block are other numbers, after the end only
    zero = ClipText(weights=weights)(TEXTS)
    first_end = int((ids[0] == END).int().argmax())
    assert torch.allclose(zero[0, : first_end + 1], ours[0, : first_end + 1], atol=1e-5)
    assert not torch.allclose(zero[0, first_end + 1 :], ours[0, first_end + 1 :], atol=1e-2)


def test_a_text_has_the_same_bits_in_every_batch(text):
    tokens = text(TEXTS)
    for i, one in enumerate(TEXTS):
        assert torch.equal(text([one])[0], tokens[i])
    assert torch.equal(text(TEXTS[::-1] * 2)[3], tokens[0])
    assert text([]).shape == (0, 14, 64)


def test_texts_are_told_apart_and_the_empty_one_is_defined(text):
    same, null, louder, long = text(TEXTS)
    assert null.isfinite().all()
    assert null.abs().max() > 0
    assert not torch.allclose(same, null, atol=1e-2)
    assert not torch.allclose(same, louder, atol=1e-2)
    # cut at the context: start, 12 words, end
    assert torch.equal(long, text(["one two three " * 4])[0])
    assert not torch.allclose(long, text(["one two three " * 3])[0], atol=1e-2)


def test_a_tower_with_a_class_token_gives_its_words_only(tmp_path):
    weights = untrained(tmp_path, COCA_CONFIG)
    tokens = ClipText(weights=weights)(["a rabbit", ""])
    whole = clip.load(weights)
    _, before_norm = whole.model.text(whole.tokenizer(["a rabbit", ""]))
    assert torch.allclose(tokens, whole.model.text.ln_final(before_norm), atol=1e-5)
    assert tokens.shape == (2, whole.tokenizer.context_length, 64)


def test_what_is_no_text_is_refused(text):
    with pytest.raises(TypeError, match="text 1 is NoneType, not a string"):
        text(["a", None])
    with pytest.raises(TypeError, match="must be a list of strings"):
        text("a rabbit")


def test_settings_travel_as_json_and_the_digest_follows_the_content(text, weights, tmp_path):
    back = conditioning.text_conditioner(text.settings())
    assert back == text
    assert back.digest() == text.digest()
    assert pickle.loads(pickle.dumps(back)) == text
    other = {text.digest()}
    for change in ({"pad": "end"}, {"skip": 1}):
        other.add(replace(text, **change).digest())
    again = untrained(tmp_path / "..", CLIP_CONFIG, seed=1)
    other.add(ClipText(weights=again).digest())
    assert len(other) == 4
    moved = tmp_path / "moved"
    shutil.copytree(Path(weights.model).parent, moved)
    named = replace(
        weights, model=str(moved / "untrained.json"), path=moved / "untrained.safetensors"
    )
    assert ClipText(weights=named).digest() == text.digest()


def test_low_precision_gives_fp32_tokens_near_the_others(text):
    low = replace(text, precision="bf16")(TEXTS)
    assert low.dtype == torch.float32
    assert not torch.equal(low, text(TEXTS))
    assert (low - text(TEXTS)).abs().max() < 0.1


def test_wrong_requests_are_named(weights):
    with pytest.raises(ValueError, match="pad 'start' of a text tower"):
        ClipText(weights=weights, pad="start")
    with pytest.raises(ValueError, match="skip 2 must be less than the 2 blocks"):
        ClipText(weights=weights, skip=2)(["a"])
    with pytest.raises(ValueError, match="skip -1"):
        ClipText(weights=weights, skip=-1)
    with pytest.raises(ValueError, match="is not the file that was pinned"):
        ClipText(weights=replace(weights, sha256="0" * 64))(["a"])
