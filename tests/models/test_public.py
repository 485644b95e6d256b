"""Public pipelines: a video depends on its text and seed only; folders that are not safe or whole are refused."""

import contextlib
import json
import shutil
import socket
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import sentencepiece_model_pb2_new as spm

from models import noise, public, public_noise, public_parts, public_pipeline
from models.public_pipeline import Pipeline
from tests.models import tiny_pipelines

NAMES = list(tiny_pipelines.MAKERS)
TEXTS, SEEDS = ["a rabbit", "ab", "a rabbit " * 4], [1, 2, 2**64 - 1]
SD = "TextToVideoSDPipeline"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, found = tmp_path_factory.mktemp("public"), {}

    def folder(name: str) -> Path:
        if name not in found:
            found[name] = tiny_pipelines.make(name, root / name)
        return found[name]

    return folder


@pytest.fixture(scope="module")
def pipelines(folders):
    found = {}

    def pipeline(name: str) -> Pipeline:
        if name not in found:
            found[name] = Pipeline(public.read(folders(name)))
        return found[name]

    return pipeline


def make(pipeline, texts=TEXTS[:1], seeds=SEEDS[:1], **settings):
    frames, size_px = tiny_pipelines.SHAPES[pipeline.public.pipeline]
    told = {"frames": frames, "size_px": size_px, "steps": 2, "guidance_scale": 3.0} | settings
    return pipeline.make(texts, [""] * len(texts), seeds, **told)


def same(videos, others) -> bool:
    return len(videos) == len(others) and all(map(np.array_equal, videos, others))


@pytest.mark.parametrize("name", NAMES)
def test_a_video_depends_on_its_text_and_seed_only(name, pipelines):
    pipeline = pipelines(name)
    frames, size_px = tiny_pipelines.SHAPES[name]
    torch.manual_seed(0)
    videos = make(pipeline, TEXTS, SEEDS, micro_batch=2)
    assert [v.shape for v in videos] == [(frames, *size_px, 3)] * 3
    assert videos[0].dtype == np.uint8
    assert videos[0].std() > 1
    torch.manual_seed(1)
    order = [2, 0, 1]
    turned = make(pipeline, [TEXTS[i] for i in order], [SEEDS[i] for i in order], micro_batch=2)
    assert same([videos[i] for i in order], turned)
    for i in range(3):
        assert same(make(pipeline, [TEXTS[i]], [SEEDS[i]], micro_batch=2), [videos[i]])
    assert not same(make(pipeline, TEXTS[:1], [3], micro_batch=2), videos[:1])
    if name != "HunyuanVideoPipeline":  # its long template leaves no room for letters as words
        assert not same(make(pipeline, TEXTS[2:], SEEDS[:1], micro_batch=2), videos[:1])


@pytest.mark.parametrize("name", NAMES)
def test_the_programs_own_generators_are_neither_read_nor_moved(name, folders, pipelines):
    told = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        told.append(make(Pipeline(public.read(folders(name)))))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])
    assert same(*told)
    assert same(told[0], make(pipelines(name)))


@pytest.mark.parametrize("name", NAMES)
def test_without_our_noise_a_pipeline_is_caught_drawing(name, pipelines, monkeypatch):
    monkeypatch.setattr(public_pipeline, "Drawn", lambda *_, **__: contextlib.nullcontext())
    with pytest.raises(ValueError, match=f"{name}: draws numbers that no sample's seed"):
        make(pipelines(name))


@pytest.mark.parametrize("name", [SD, "LattePipeline"])
def test_frames_are_diffusers_own_for_our_latents(name, folders, pipelines):
    """Loading and running as the library does it, told the noise by its `latents`."""
    frames, (height, width) = tiny_pipelines.SHAPES[name]
    with public_parts.quiet():
        theirs = diffusers.DiffusionPipeline.from_pretrained(folders(name), local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    drawn = noise.normal(
        5, stream="initial", step=0, frames=range(frames), shape=(4, height // 2, width // 2)
    )
    made = theirs(
        ["a rabbit"],
        negative_prompt=["ab"],
        height=height,
        width=width,
        num_inference_steps=3,
        guidance_scale=3.0,
        latents=drawn.transpose(0, 1)[None],
        output_type="np",
        **{pipelines(name).public.frames_argument: frames},
    ).frames
    found = pipelines(name).make(
        ["a rabbit"], ["ab"], [5],
        frames=frames, size_px=(height, width), steps=3, guidance_scale=3.0,
    )  # fmt: skip
    assert np.abs(found[0] - np.rint(made[0] * 255)).max() <= 1


def test_noise_of_every_step_belongs_to_its_sample(tmp_path):
    """This pipeline steps its scheduler on frames of all samples at once, as (B*T, C, H, W)."""
    scheduler = diffusers.DDPMScheduler()
    folder = tiny_pipelines.make(SD, tmp_path / "sd", scheduler=scheduler)
    pipeline = Pipeline(public.read(folder))
    videos = make(pipeline, TEXTS, SEEDS, micro_batch=3, steps=3)
    turned = make(pipeline, TEXTS[::-1], SEEDS[::-1], micro_batch=3, steps=3)
    assert same(videos, turned[::-1])
    assert same(make(pipeline, TEXTS[1:2], SEEDS[1:2], micro_batch=3, steps=3), videos[1:2])


@pytest.mark.parametrize("name", ["LattePipeline", "HunyuanVideoPipeline", SD])
def test_a_text_is_encoded_by_itself(name, pipelines):
    """Of texts that fill the tokens' length transformers drops the mask: then batches differ in kernel."""
    model = pipelines(name)._pipe.text_encoder
    ids = torch.randint(3, 30, (2, 12), generator=torch.Generator().manual_seed(0))
    padded = torch.ones_like(ids)
    padded[1, 5:] = 0
    with torch.no_grad():
        told = [
            model(ids, attention_mask=mask, output_hidden_states=True)
            for mask in (padded, torch.ones_like(ids))
        ]
        alone = model(ids[:1], attention_mask=padded[:1], output_hidden_states=True)
        theirs = type(model).forward(model, input_ids=ids, attention_mask=padded)
    for both, one in zip(told[0].hidden_states, alone.hidden_states, strict=True):
        assert torch.equal(both[:1], one)
    assert torch.equal(told[0][0][0], told[1][0][0])
    assert not torch.equal(told[0][0][1], told[1][0][1])  # control: the mask is heard
    assert type(told[0]) is type(theirs)
    assert torch.allclose(told[0][0], theirs[0], atol=1e-5)


def test_draws_are_addressed_by_seed_stream_step_and_frame():
    with public_noise.Drawn([7, 9], frames_at=2):
        first = torch.randn((2, 4, 3, 2, 5))
        second = torch.randn_like(first[:, 0, 0], dtype=torch.float64)
        rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
        with pytest.raises(ValueError, match="use micro_batch 1"):
            torch.randn((3, 4))
        with pytest.raises(ValueError, match="draws with rand"):
            torch.rand(2)
        with pytest.raises(ValueError, match="draws with normal_"):
            torch.empty(2).normal_()
    for b, seed in enumerate((7, 9)):
        wanted = noise.normal(seed, stream="initial", step=0, frames=range(3), shape=(4, 2, 5))
        assert torch.equal(first[b], wanted.transpose(0, 1))
        wanted = noise.normal(seed, stream="step", step=1, frames=[0], shape=(2, 5))
        assert torch.equal(second[b], wanted[0].double())
        wanted = noise.normal(seed, stream="step", step=2, frames=range(3), shape=(4,))
        assert torch.equal(rows[3 * b : 3 * b + 3], wanted)
    with public_noise.Drawn([7], frames_at=1):
        assert torch.equal(torch.randn(1, 3, 4, 2, 5)[0], first[0].transpose(0, 1))


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def changed(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_digest_is_of_the_files_that_decide_pixels_wherever_they_lie(folders, tmp_path):
    here, there = public.read(folders(SD)), public.read(copied(folders(SD), tmp_path / "there"))
    digest = here.digest()
    assert there.digest() == digest
    (there.folder / "README.md").write_text("words")
    (there.folder / "unet" / "other.bin").write_bytes(b"pickle")
    assert public.read(there.folder).digest() == digest
    seen = {digest}
    weights = there.folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1e-3}, weights, metadata={"format": "pt"})
    for path in (there.folder / "scheduler" / "scheduler_config.json", None):
        seen.add(public.read(there.folder).digest())
        if path:
            changed(path, beta_start=0.002)
    assert len(seen) == 3


def test_nothing_is_fetched_shown_or_warned_of(folders, monkeypatch, capfd):
    def refuse(*_, **__):
        raise AssertionError("a connection")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("LattePipeline", "MochiPipeline"):
        make(Pipeline(public.read(folders(name))))
    assert capfd.readouterr() == ("", "")


def test_weights_in_shards_are_the_same_weights(folders, pipelines, tmp_path):
    with public_parts.quiet():
        theirs = diffusers.DiffusionPipeline.from_pretrained(folders("LattePipeline"))
        theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    index = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    assert index.is_file()
    assert same(make(Pipeline(public.read(tmp_path))), make(pipelines("LattePipeline")))
    shard = next(index.parent.glob("*-00002-of-*.safetensors"))
    assert {index, shard} <= set(public.read(tmp_path).files)
    shard.unlink()
    with pytest.raises(ValueError, match="names files that are not beside it"):
        public.read(tmp_path)


def test_a_lower_precision_spares_what_the_library_keeps_exact(folders):
    pipeline = Pipeline(public.read(folders("WanPipeline")), dtype=torch.bfloat16)
    told = {n: p.dtype for n, p in pipeline._pipe.transformer.named_parameters()}
    assert told["patch_embedding.weight"] == torch.bfloat16
    assert told["condition_embedder.time_embedder.linear_1.weight"] == torch.float32
    assert pipeline._pipe.text_encoder.dtype == torch.bfloat16
    assert make(pipeline)[0].std() > 1


def test_a_vocabulary_of_sentence_pieces_gives_the_same_words(folders, pipelines, tmp_path):
    folder = copied(folders("LattePipeline"), tmp_path / "pieces")
    (folder / "tokenizer" / "tokenizer.json").unlink()
    proto = spm.ModelProto()
    for piece, score in tiny_pipelines.PIECES:
        proto.pieces.add(piece=piece, score=score)
    (folder / "tokenizer" / "spiece.model").write_bytes(proto.SerializeToString())
    assert same(make(Pipeline(public.read(folder))), make(pipelines("LattePipeline")))


def index(**values):
    return lambda folder: changed(folder / public.INDEX, **values)


def pickled(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(
        folder / "unet" / "diffusion_pytorch_model.bin"
    )


def named_fp16(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(
        folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    )


def cut(folder):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda folder: (folder / public.INDEX).unlink(), "no .*model_index.json: name the folder"),
        (lambda folder: (folder / public.INDEX).write_text("[1"), "cannot be read as a JSON object"),
        (index(_class_name="StableDiffusionPipeline"), "does not make videos of a text alone: use"),
        (index(_class_name="WanImageToVideoPipeline"), "does not make videos of a text alone: use"),
        (index(_class_name="MyPipeline"), "is no pipeline of diffusers .* code of others is not run"),
        (index(_class_name=["mine", "Mine"]), "wants code of its own, which is not run"),
        (index(_custom_pipeline="mine"), "wants code of its own, which is not run"),
        (index(unet=["mine", "UNet"]), "unet is a mine.UNet, which is not run"),
        (index(unet=["diffusers", "no_such_class"]), "which is not run"),
        (index(unet=["diffusers", "DiffusionPipeline"]), "which is not run"),
        (index(tokenizer=["transformers", "AutoTokenizer"]), "which is not run"),
        (index(unet="here"), "lacks unet: save or download"),
        (index(unet=[None, None]), "lacks unet: save or download"),
        (index(extra=["diffusers", "AutoencoderKL"]), "has extra, which .* does not take"),
        (lambda folder: shutil.rmtree(folder / "vae"), "no .*vae, a part of the pipeline"),
        (lambda folder: (folder / "vae" / "config.json").unlink(), "no .*vae/config.json: save or"),
        (pickled, "as a pickle .*, which is not read: save the pipeline with safe_serialization"),
        (named_fp16, "it has diffusion_pytorch_model.fp16.safetensors; save .* without a variant"),
        (cut, "vae/diffusion_pytorch_model.safetensors is damaged .*: copy the file again"),
        (lambda folder: changed(folder / "text_encoder" / "config.json", auto_map={}), "auto_map"),
        (lambda folder: (folder / "tokenizer" / "x.pkl").write_bytes(b""), "is a pickle"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_whole_or_not_safe_is_refused(broken, words, folders, tmp_path):
    folder = copied(folders(SD), tmp_path / "broken")
    broken(folder)
    with pytest.raises(ValueError, match=words) as refused:
        public.read(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("part", "stem"), [("unet", "diffusion_pytorch_model"), ("text_encoder", "model")]
)
def test_weights_that_do_not_fit_are_never_made_up(part, stem, folders, tmp_path):
    folder = copied(folders(SD), tmp_path / "lacking")
    path = folder / part / f"{stem}.safetensors"
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{part} (cannot be built|lacks)") as refused:
        Pipeline(public.read(folder))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "frames", "size_px", "words"),
    [
        (SD, 3, (16, 20), "multiples of 8 px, not 16 and 20"),
        (SD, 0, (16, 16), "not 0: take 1"),
        ("AnimateDiffPipeline", 9, (16, 16), "at most 8 frames, not 9"),
        ("LattePipeline", 5, (16, 16), "makes 4 frames, not 5"),
        ("CogVideoXPipeline", 5, (16, 16), "multiple of 8 and 1 more frames, not 5: take 1 or 9"),
        ("LTXPipeline", 10, (32, 32), "multiple of 8 and 1 more frames, not 10: take 9 or 17"),
        ("LTXPipeline", 9, (32, 48), "multiples of 32 px, not 32 and 48"),
        ("WanPipeline", 4, (16, 16), "take 1 or 5"),
        ("WanPipeline", 5, (8, 16), "multiples of 16 px"),
        ("HunyuanVideoPipeline", 6, (16, 16), "take 5 or 9"),
        ("MochiPipeline", 8, (16, 16), "multiple of 6 and 1 more frames, not 8: take 7 or 13"),
    ],
)  # fmt: skip
def test_frames_and_sizes_are_checked_before_weights_are_read(
    name, frames, size_px, words, folders
):
    found = public.read(folders(name))
    with pytest.raises(ValueError, match=words):
        found.check(frames=frames, size_px=size_px)
    usual = tiny_pipelines.SHAPES[name]
    found.check(frames=usual[0], size_px=usual[1])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"frames": 5}, "makes 4 frames, not 5"),
        ({"seeds": [1, 2]}, "1 texts, 1 negatives and 2 seeds"),
        ({"micro_batch": 0}, "micro_batch 0 and steps 2: at least 1"),
        ({"more": {"latents": 1}}, "more.latents cannot be set"),
        ({"more": {"prompt_embeds": 1}}, "more.prompt_embeds cannot be set"),
        ({"more": {"etta": 1.0}}, "more.etta cannot be set: did you mean eta"),
        ({"more": {"eta": float("nan")}}, "more must be plain JSON"),
    ],
)
def test_wrong_arguments_are_refused_in_words(settings, words, pipelines):
    with pytest.raises(ValueError, match=words):
        make(pipelines("LattePipeline"), **settings)


def test_more_reaches_the_pipeline_and_decides_pixels(pipelines):
    plain = make(pipelines("LTXPipeline"))
    assert not same(plain, make(pipelines("LTXPipeline"), more={"frame_rate": 2}))
    noisy = [make(pipelines("LTXPipeline"), more={"decode_timestep": t}) for t in (0.3, 0.3, 0.0)]
    assert same(*noisy[:2])
    assert same(noisy[2], plain)
    assert not same(noisy[0], plain)
    assert pipelines("LTXPipeline").public.fps({"frame_rate": 2}) == 2.0


def test_an_unread_pipeline_makes_one_video_a_pass(pipelines, monkeypatch):
    monkeypatch.setattr(public_pipeline, "BATCHED", frozenset())
    with pytest.raises(ValueError, match="one video a pass here: use micro_batch 1"):
        make(pipelines("LattePipeline"), TEXTS, SEEDS, micro_batch=2)
    assert len(make(pipelines("LattePipeline"), TEXTS, SEEDS)) == 3


def test_every_pipeline_that_is_named_is_one_of_diffusers():
    assert public.FPS.keys() >= public_pipeline.BATCHED
    for name in public.FPS:
        found = public.Public(
            folder=Path(), made=getattr(diffusers, name), parts=(), settings={}, files=()
        )
        told = found.arguments
        assert {"prompt", "height", "width", "output_type", found.frames_argument} <= told.keys()
        assert found.fps() > 0
        assert found.defaults()["frames"] != 0
