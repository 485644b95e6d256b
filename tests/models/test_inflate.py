"""Any diffusers checkpoint folder of both block families becomes a STUNet that is its image model at first."""

import hashlib
import json
import os

import diffusers
import pytest
import torch
from torch import nn

from models import image_unet, stunet
from models.checkpoint import state_digest
from models.conditioning import HashedText
from tests.models import few_steps, tiny_unet

T, PX = 8, 8
TIMES = torch.tensor([3, 700])
TEXT = HashedText(dim=12, length=4)(["a rabbit", "pink clouds drift"])
LEVEL = torch.tensor([0.25, 0.036])
EVERY = pytest.mark.parametrize("layout", list(tiny_unet.LAYOUTS))
FAMILIES = pytest.mark.parametrize("layout", tiny_unet.FAMILIES)


@pytest.fixture(scope="module", name="folders")
def saved(tmp_path_factory):
    return {
        name: tiny_unet.save(name, tmp_path_factory.mktemp("image") / name)
        for name in tiny_unet.LAYOUTS
    }


def noisy(model: stunet.STUNet) -> torch.Tensor:
    shape = (2, model.config.in_channels, T, PX, PX)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def levels(model: stunet.STUNet) -> dict[str, torch.Tensor]:
    return {"level_B": LEVEL} if model.config.noise_level else {}


def run(model: stunet.STUNet, x: torch.Tensor, **how) -> torch.Tensor:
    with torch.no_grad():
        return model(x, TIMES, TEXT, **levels(model), **how)


def per_frame(layout: str, x: torch.Tensor) -> torch.Tensor:
    """The image model as diffusers itself runs it, frame by frame; noise levels 250 and 36 of 1000."""
    unet = tiny_unet.unet(layout)
    labels = torch.tensor([250, 36]) if unet.class_embedding is not None else None
    with torch.no_grad():
        frames = [unet(x[:, :, t], TIMES, TEXT, class_labels=labels).sample for t in range(T)]
    return torch.stack(frames, dim=2)


@EVERY
def test_temporal_off_is_the_image_model_of_the_folder(layout, folders):
    model = stunet.inflate(folders[layout], seed=0)
    x = noisy(model)
    assert (run(model, x, temporal=False) - per_frame(layout, x)).abs().max() <= 1e-5


@EVERY
def test_key_frames_and_static_clips_equal_the_image_model(layout, folders):
    model = stunet.inflate(folders[layout], seed=0)
    x = noisy(model)
    difference = (run(model, x) - per_frame(layout, x)).abs().amax((0, 1, 3, 4))
    assert model.config.frames_multiple == 4
    assert difference[::4].max() <= 1e-5
    assert difference[1:4].min() > 1e-3
    static = x[:, :, :1].expand(-1, -1, T, -1, -1)
    assert (run(model, static) - per_frame(layout, static)).abs().max() <= 1e-5


@FAMILIES
def test_control_he_initialised_resampling_is_not_exact(layout, folders):
    model = stunet.inflate(folders[layout], seed=0)
    generator = torch.Generator().manual_seed(1)
    for module in [*model.motion.tdown, *model.motion.tup]:
        nn.init.kaiming_normal_(module.conv.weight, generator=generator)
    x = noisy(model)
    static = x[:, :, :1].expand(-1, -1, T, -1, -1)
    assert (run(model, static) - per_frame(layout, static)).abs().max() > 1e-2
    assert (run(model, x) - per_frame(layout, x)).abs()[:, :, ::4].max() > 1e-2


@EVERY
def test_the_config_alone_builds_the_same_network(layout, folders):
    model = stunet.inflate(folders[layout], seed=0, attention_blocks=2)
    again = json.loads(json.dumps({f: getattr(model.config, f) for f in model.config.__slots__}))
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in again.items()}
    config = stunet.Config(**tuples)
    assert config == model.config
    other = stunet.build(config, seed=0)
    assert state_digest(stunet.motion_state(other)) == state_digest(stunet.motion_state(model))
    stunet.load_base(other, stunet.base_state(model))
    x = noisy(model)
    assert torch.equal(run(other, x), run(model, x))


def test_channels_of_the_video_itself(folders):
    found = {n: stunet.inflate(f, seed=0).config.video_channels for n, f in folders.items()}
    assert found == {
        "stable-diffusion": 4,
        "x4-upscaler": 4,
        "deepfloyd-1": 3,
        "deepfloyd-2": 3,
        "rare": 4,
    }


@EVERY
def test_shards_the_inner_folder_and_variants_hold_the_same_weights(layout, folders, tmp_path):
    whole = state_digest(image_unet.read(folders[layout])[1])
    assert state_digest(image_unet.read(folders[layout] / "unet")[1]) == whole
    tiny_unet.save(layout, tmp_path / "shards", max_shard_size="40KB")
    assert not list(tmp_path.glob("shards/unet/diffusion_pytorch_model.safetensors"))
    assert state_digest(image_unet.read(tmp_path / "shards")[1]) == whole
    tiny_unet.save(layout, tmp_path / "fp16", variant="fp16")
    assert state_digest(image_unet.read(tmp_path / "fp16", variant="fp16")[1]) == whole
    tiny_unet.save(layout, tmp_path / "both", variant="fp16", max_shard_size="40KB")
    assert state_digest(image_unet.read(tmp_path / "both", variant="fp16")[1]) == whole
    with pytest.raises(FileNotFoundError, match="name one by variant"):
        image_unet.read(tmp_path / "fp16")


def test_half_precision_weights_are_widened(tmp_path):
    tiny_unet.unet("deepfloyd-1").half().save_pretrained(tmp_path)
    model = stunet.inflate(tmp_path, seed=0)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def train(folder, role: stunet.Role, *, steps: int, known: bool = False) -> stunet.STUNet:
    return few_steps.trained(stunet.inflate(folder, seed=0, known=known), role, TEXT, steps=steps)


@FAMILIES
@pytest.mark.parametrize("known", [False, True])
def test_training_motion_changes_all_of_it_and_nothing_of_the_image_model(layout, known, folders):
    before = train(folders[layout], "motion", steps=0, known=known)
    after = train(folders[layout], "motion", steps=3, known=known)
    assert state_digest(stunet.base_state(before)) == state_digest(stunet.base_state(after))
    old, new = stunet.motion_state(before), stunet.motion_state(after)
    assert ("known_in.weight" in old) == known
    assert [name for name in old if torch.equal(old[name], new[name])] == []


def test_training_the_image_model_leaves_its_file_alone(folders):
    path = folders["deepfloyd-1"] / "unet" / "diffusion_pytorch_model.safetensors"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    first = train(folders["deepfloyd-1"], "base", steps=0)
    trained = train(folders["deepfloyd-1"], "base", steps=1)
    old, new = stunet.base_state(first), stunet.base_state(trained)
    assert not torch.equal(old["conv_in.weight"], new["conv_in.weight"])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_the_tensors_that_were_read_stay_the_callers():
    config = image_unet.arguments(tiny_unet.STABLE_DIFFUSION)
    state = tiny_unet.unet("stable-diffusion").state_dict()
    before = state_digest(state)
    with torch.no_grad():
        for parameter in image_unet.load(config, state).parameters():
            parameter.add_(1.0)
    assert state_digest(state) == before


def broken(folder, **changes) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"addition_embed_type": "text_time"}, "addition_embed_type 'text_time'.*inputs beside"),
        ({"class_embed_type": "projection"}, "class_embed_type 'projection'"),
        ({"encoder_hid_dim_type": "ip_image_proj"}, "encoder_hid_dim_type"),
        ({"mid_block_type": "MidBlock"}, "cannot inflate MidBlock: known are CrossAttnDown"),
        ({"down_block_types": ["KDownBlock2D"] * 3}, "cannot inflate KDownBlock2D"),
        ({"patch_size": 2}, "has patch_size, which this version of diffusers does not know"),
        ({"_class_name": "UNet3DConditionModel"}, "describes a UNet3DConditionModel"),
        ({"cross_attention_dim": [12, 12, 24]}, "tokens of one width"),
        ({"block_out_channels": [16, 16, 16]}, "do not fit its config"),
    ],
)
def test_what_cannot_be_inflated_is_refused_by_name(changes, message, tmp_path):
    tiny_unet.save("stable-diffusion", tmp_path)
    broken(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        stunet.inflate(tmp_path, seed=0)


def test_keys_that_say_nothing_are_let_pass(tmp_path):
    broken(tiny_unet.save("stable-diffusion", tmp_path), a_key_of_another_version=None)
    assert stunet.inflate(tmp_path, seed=0).config.widths == (8, 16, 16)


def test_no_pickle_is_read_and_the_next_step_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither unet/config.json nor"):
        stunet.inflate(tmp_path, seed=0)
    tiny_unet.save("stable-diffusion", tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot be read.*copy the file again"):
        stunet.inflate(tmp_path, seed=0)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"download the model's safetensors"):
        stunet.inflate(tmp_path, seed=0)
    # A pickle that would run a command, were it opened.
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nabort\n(tR.")
    with pytest.raises(FileNotFoundError, match=r"as a pickle .*save_pretrained where you trust"):
        stunet.inflate(tmp_path, seed=0)
    (tmp_path / "unet" / "config.json").write_text("<html>")
    with pytest.raises(ValueError, match="is no JSON object"):
        stunet.inflate(tmp_path, seed=0)


def test_an_index_can_neither_leave_its_folder_nor_name_what_is_not_there(tmp_path):
    tiny_unet.save("stable-diffusion", tmp_path, max_shard_size="40KB")
    index = tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    good = json.loads(index.read_text())
    first, name = next(iter(good["weight_map"].items()))
    os.link(tmp_path / "unet" / name, tmp_path / "outside.safetensors")
    for place in ("../outside.safetensors", "gone.safetensors", "config.json"):
        index.write_text(json.dumps({"weight_map": good["weight_map"] | {first: place}}))
        with pytest.raises(ValueError, match=r"no .safetensors file beside it"):
            image_unet.read(tmp_path)
    index.write_text(json.dumps({"weight_map": good["weight_map"] | {"conv_x.weight": name}}))
    with pytest.raises(ValueError, match=r"lacks conv_x.weight"):
        image_unet.read(tmp_path)
    index.write_text("[]")
    with pytest.raises(ValueError, match="is no index of shards"):
        image_unet.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 3}, "in_channels 3: the image model has 4"),
        ({"text_dim": 16}, "text_dim 16: the image model has 12"),
        ({"sample_px": 16}, "sample_px 16: the image model has 8"),
        ({"blocks_per_level": 1}, "blocks_per_level 1: the image model has 2"),
        ({"temporal_factor": (2,)}, "needs 2 entries"),
    ],
)
def test_choices_that_contradict_the_image_model_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        stunet.Config.of_image(tiny_unet.STABLE_DIFFUSION, **change)


def test_the_config_of_a_loaded_model_is_understood():
    unet = tiny_unet.unet("deepfloyd-2")
    assert isinstance(unet, diffusers.UNet2DConditionModel)
    assert stunet.Config.of_image(unet.config) == stunet.Config.of_image(tiny_unet.DEEPFLOYD_TWO)
