"""Loading, preparing and embedding with open_clip on random weights: laws only, never a score."""

import hashlib
import json
import logging
import pickle
import time
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional

from models.clip import Clip, Weights, identity, load
from models.clip_pixels import Pixels, picked
from tests.models.tiny_clip import CLIP_CONFIG, COCA_CONFIG, SCENES, render, untrained

A_HASH = "0" * 64


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Weights:
    return untrained(tmp_path_factory.mktemp("clip"), CLIP_CONFIG)


@pytest.fixture(scope="module")
def clip(weights) -> Clip:
    return load(weights)


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    return [
        render(SCENES[0], 1),
        render(SCENES[20], 1, px=40, frames=5),
        render(SCENES[40], 1, px=64, frames=24)[:, 10:50],
    ]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x * a + y * b) for a, b in rng.uniform(0.02, 0.5, (3, 2))]
    return (127 + 90 * np.stack(waves, -1) + rng.normal(0, 8, (height, width, 3))).clip(0, 255)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    "size", [(32, 32), (48, 48), (120, 67), (67, 121), (31, 90), (33, 47), (20, 20)]
)
def test_images_are_prepared_as_open_clip_does(resize_mode, interpolation, size):
    config = PreprocessCfg(size=32, resize_mode=resize_mode, interpolation=interpolation)
    image_HWC = picture(*size).astype(np.uint8)
    theirs = image_transform_v2(config, is_train=False)(Image.fromarray(image_HWC))
    ours = Pixels.from_config(vars(config))(torch.from_numpy(image_HWC).permute(2, 0, 1)[None])[0]
    deviation = torch.tensor(config.std)[:, None, None]
    levels = ((ours - theirs) * deviation * 255).abs()
    assert ours.shape == theirs.shape == (3, 32, 32)
    assert levels.max() < 3  # PIL rounds between its two passes
    assert levels.mean() < 0.5


def test_a_tower_that_is_not_square_is_prepared_as_open_clip_does():
    config = PreprocessCfg(size=(24, 40))
    image_HWC = picture(70, 90).astype(np.uint8)
    theirs = image_transform_v2(config, is_train=False)(Image.fromarray(image_HWC))
    ours = Pixels.from_config(vars(config))(torch.from_numpy(image_HWC).permute(2, 0, 1)[None])[0]
    assert ours.shape == theirs.shape
    deviation = torch.tensor(config.std)[:, None, None]
    assert ((ours - theirs) * deviation * 255).abs().mean() < 0.5


@given(st.integers(1, 200), st.integers(1, 40))
def test_picked_frames_are_the_middles_of_equal_parts(total, num_frames):
    frames = np.zeros((total, 1, 1, 3), np.uint8)
    frames[:, 0, 0, 0] = np.arange(total)
    found = picked(frames, num_frames)[:, 0, 0, 0].tolist()
    count = min(total, num_frames)
    assert len(set(found)) == len(found) == count
    for part, frame in enumerate(found):
        assert abs(frame + 0.5 - (part + 0.5) * total / count) <= 0.5


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
    ],
)
def test_other_frames_are_refused(clip, frames):
    with pytest.raises(ValueError, match="uint8 THWC"):
        clip.embed_frames(frames)


def test_an_embedding_is_the_normalised_mean_of_frames_by_open_clip_itself(weights, clip, clips):
    transform = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    model = open_clip.CLIP(**CLIP_CONFIG)
    model.load_state_dict(load_file(weights.path))
    model.eval()
    frames = picked(clips[2], 8)
    images = torch.stack([transform(Image.fromarray(frame)) for frame in frames])
    with torch.no_grad():
        mean = model.encode_image(images, normalize=True).mean(0)
        text = model.encode_text(
            open_clip.SimpleTokenizer(context_length=14)(["A dog runs."]), normalize=True
        )
    theirs = functional.normalize(mean, dim=0).numpy()
    assert clip.embed_frames(clips[2]) @ theirs > 0.9999
    assert np.allclose(clip.embed_texts(["A dog runs."]), text.numpy(), atol=1e-6)


def test_numbers_do_not_depend_on_neighbours_order_or_repetition(clip, clips):
    before = [frames.copy() for frames in clips]
    for frames in clips:
        frames.setflags(write=False)
    together = clip.embed_clips(clips)
    assert together.dtype == np.float32
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    alone = np.stack([clip.embed_frames(frames) for frames in clips])
    assert np.array_equal(together, alone)
    assert np.array_equal(clip.embed_clips(clips[::-1])[::-1], together)
    texts = ["a", "a red circle", "something else that is longer"]
    assert np.array_equal(
        clip.embed_texts(texts), np.concatenate([clip.embed_texts([t]) for t in texts])
    )
    assert all(np.array_equal(a, b) for a, b in zip(before, clips, strict=True))


def test_batches_say_the_same_but_for_rounding(clip, clips):
    large = replace(clip, batch=11)
    assert np.allclose(large.embed_clips(clips, 4), clip.embed_clips(clips, 4), atol=1e-5)
    texts = [scene.caption for scene in SCENES]
    assert np.allclose(large.embed_texts(texts), clip.embed_texts(texts), atol=1e-5)


def test_nothing_asked_nothing_given(clip):
    assert clip.embed_clips([]).shape == clip.embed_texts([]).shape == (0, 64)


def test_half_precision_says_nearly_the_same(weights, clip, clips):
    half = load(weights, precision="bf16")
    cosines = (half.embed_clips(clips) * clip.embed_clips(clips)).sum(1)
    assert cosines.min() > 0.999
    assert half.digest == clip.digest


def test_tags_are_ordered_by_cosine(clip, clips):
    embedding = clip.embed_frames(clips[0])
    words = ["sky", "sea", "road", "forest"]
    found = clip.tags(embedding, words, k=3, template="a film of {}")
    cosines = dict(
        zip(words, clip.embed_texts([f"a film of {w}" for w in words]) @ embedding, strict=True)
    )
    assert [word for word, _ in found] == sorted(words, key=lambda w: -cosines[w])[:3]
    assert found[0][1] == pytest.approx(cosines[found[0][0]], abs=1e-6)
    assert len(clip.tags(embedding, words, k=9)) == 4
    for bad in ({"template": "no place"}, {"vocabulary": []}, {"vocabulary": ["a", "a"]}):
        with pytest.raises(ValueError, match=r"template|vocabulary"):
            clip.tags(embedding, **({"vocabulary": words} | bad))


def test_damaged_weights_give_an_error_not_a_number(tmp_path, weights, clips):
    state = load_file(weights.path) | {"visual.proj": torch.full((64, 64), float("nan"))}
    save_file(state, tmp_path / "nan.safetensors")
    broken = load(pinned(weights.model, tmp_path / "nan.safetensors"))
    with pytest.raises(ArithmeticError, match="not finite"):
        broken.embed_frames(clips[0])


def pinned(model: str, path: Path, **more) -> Weights:
    return Weights(
        model=model, path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), **more
    )


def test_a_state_dict_of_torch_is_read_like_safetensors(tmp_path, weights, clip, clips):
    torch.save({"state_dict": load_file(weights.path)}, tmp_path / "epoch.pt")
    again = load(pinned(weights.model, tmp_path / "epoch.pt"))
    assert np.array_equal(again.embed_frames(clips[0]), clip.embed_frames(clips[0]))


class Bomb:
    def __reduce__(self):
        return Path.write_text, (Path("never-written"), "boom")


def test_a_pickle_of_objects_is_refused_and_not_run(tmp_path, weights, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb(), 2))
    (tmp_path / "page.pt").write_text("<html>not found</html>")
    (tmp_path / "page.safetensors").write_text("<html>not found</html>")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("bomb.pt", "plain.pt", "page.pt", "page.safetensors", "empty.pt"):
        with pytest.raises(ValueError, match="no file of tensors"):
            load(pinned(weights.model, tmp_path / name))
    assert not (tmp_path / "never-written").exists()


def test_a_file_is_what_was_pinned_and_fits_or_is_refused(tmp_path, weights):
    with pytest.raises(ValueError, match=f"its sha256 is {weights.sha256}"):
        load(Weights(model=weights.model, path=weights.path, sha256=A_HASH))
    with pytest.raises(FileNotFoundError, match=r"no weights at .*gone\.pt"):
        load(Weights(model=weights.model, path=tmp_path / "gone.pt", sha256=A_HASH))
    (tmp_path / "model.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="must be one of"):
        load(Weights(model=weights.model, path=tmp_path / "model.npz", sha256=A_HASH))
    wide = CLIP_CONFIG | {"embed_dim": 32}
    (tmp_path / "wide.json").write_text(json.dumps(wide))
    with pytest.raises(ValueError, match="does not fit"):
        load(Weights(model=str(tmp_path / "wide.json"), path=weights.path, sha256=weights.sha256))


@pytest.mark.parametrize("given", [{}, {"path": Path("x.pt")}, {"tag": "t", "sha256": "abc"}])
def test_weights_must_be_named_and_pinned(given):
    with pytest.raises(ValueError, match="sha256"):
        Weights(model="ViT-B-32", **given)


def test_the_digest_is_known_before_loading_and_names_all_that_matters(tmp_path, weights, clip):
    assert identity(weights) == clip.digest
    other = untrained(tmp_path, CLIP_CONFIG, seed=1)
    assert identity(other) != clip.digest
    config = json.loads(Path(weights.model).read_text())
    whole = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "prepared.json").write_text(json.dumps(whole))
    kept = {"path": weights.path, "sha256": weights.sha256}
    grey = Weights(model=str(tmp_path / "prepared.json"), **kept)
    assert identity(grey) != clip.digest
    assert load(grey).pixels.mean == (0.5, 0.5, 0.5)
    (tmp_path / "moved.json").write_text(json.dumps(config, indent=1))
    assert identity(Weights(model=str(tmp_path / "moved.json"), **kept)) == clip.digest


def test_two_configs_of_one_file_name_stay_apart(tmp_path):
    made = []
    for dim in (64, 32):
        (tmp_path / str(dim)).mkdir()
        made.append(untrained(tmp_path / str(dim), CLIP_CONFIG | {"embed_dim": dim}))
    both = [load(one) for one in made]
    assert [one.embed_texts(["x"]).shape[1] for one in both] == [64, 32]
    assert load(made[0]).embed_texts(["x"]).shape[1] == 64


@pytest.mark.parametrize("text", ["", "[1]", '"a"', '{"embed_dim": 3}', "{"])
def test_a_config_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match=r"c\.json is no open_clip model config"):
        identity(Weights(model=str(tmp_path / "c.json"), path=tmp_path / "x.pt", sha256=A_HASH))


def test_names_that_do_not_exist_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="ViT-B-32"):
        identity(Weights(model="ViT-B32", tag="openai"))
    with pytest.raises(ValueError, match="laion2b_s34b_b79k"):
        identity(Weights(model="ViT-B-32", tag="laion3b"))
    with pytest.raises(ValueError, match="open_clip has no model 'hf-hub:a/b'"):
        identity(Weights(model="hf-hub:a/b", tag="x"))
    with pytest.raises(ValueError, match="nobody's tag"):
        identity(Weights(model="mine.json", tag="x"))
    with pytest.raises(ValueError, match="ViT-B-32-quickgelu"):
        identity(Weights(model="ViT-B-32", tag="openai"))


def test_a_file_of_a_model_with_several_preparations_needs_its_tag(weights):
    kept = {"path": weights.path, "sha256": weights.sha256}
    with pytest.raises(ValueError, match="differ in how they prepare"):
        identity(Weights(model="ViT-L-14", **kept))
    first = identity(Weights(model="ViT-L-14", tag="laion2b_s32b_b82k", **kept))
    assert first != identity(Weights(model="ViT-L-14", tag="datacomp_xl_s13b_b90k", **kept))
    siglip = identity(Weights(model="ViT-B-16-SigLIP", **kept))
    assert siglip == identity(Weights(model="ViT-B-16-SigLIP", tag="webli", **kept))


def test_a_tag_that_is_not_in_the_cache_is_one_clear_error_at_once(tmp_path):
    begun = time.monotonic()
    for command in (identity, load):
        with pytest.raises(FileNotFoundError, match=r"`hf download laion/CLIP-ViT-B-32\S+ --inc"):
            command(Weights(model="ViT-B-32", tag="laion2b_s34b_b79k"), cache_dir=tmp_path)
    assert time.monotonic() - begun < 1


def test_a_tag_is_found_in_the_cache_and_checked(tmp_path):
    folder = tmp_path / "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K"
    kept = folder / "snapshots" / ("a" * 40) / "open_clip_model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"weights")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    named = {"model": "ViT-B-32", "tag": "laion2b_s34b_b79k"}
    sha256 = hashlib.sha256(b"weights").hexdigest()
    found = identity(Weights(**named), cache_dir=tmp_path)
    assert found == identity(Weights(**named, sha256=sha256), cache_dir=tmp_path)
    with pytest.raises(ValueError, match=f"its sha256 is {sha256}"):
        identity(Weights(**named, sha256=A_HASH), cache_dir=tmp_path)


def test_a_text_side_that_would_be_fetched_is_one_clear_error(tmp_path, weights):
    text = {"hf_model_name": "nobody/nothing", "hf_tokenizer_name": "nobody/nothing"}
    config = CLIP_CONFIG | {"text_cfg": text, "custom_text": True}
    (tmp_path / "hub.json").write_text(json.dumps(config))
    begun = time.monotonic()
    with pytest.raises(FileNotFoundError, match="`hf download nobody/nothing`"):
        load(Weights(model=str(tmp_path / "hub.json"), path=weights.path, sha256=weights.sha256))
    assert time.monotonic() - begun < 10


def test_loading_leaves_logs_and_the_network_switch_as_they_were(weights, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    load(weights)
    assert logging.getLogger().handlers == []
    assert before == huggingface_hub.constants.HF_HUB_OFFLINE


def test_a_coca_of_any_weights_says_one_line_a_clip_and_a_clip_model_refuses(tmp_path, clip, clips):
    with pytest.raises(ValueError, match="name a CoCa model"):
        clip.caption(clips)
    coca = load(untrained(tmp_path, COCA_CONFIG))
    assert coca.captions
    assert coca.embed_clips(clips).shape == coca.embed_texts(["a", "b", "c"]).shape
    said = coca.caption(clips, num_frames=2)
    assert [type(text) for text in said] == [str] * 3
    assert said == [coca.caption([frames], num_frames=2)[0] for frames in clips]
    assert coca.caption([]) == []
    assert [bool(text) for text in replace(coca, batch=16).caption(clips)] == [True] * 3
