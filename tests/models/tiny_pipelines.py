"""Random tiny text-to-video pipelines of diffusers, made of their configs and saved as folders; no network.

Widths are multiples of a CPU's 16 lanes where rows of a batch are activated, as they are in real models:
of what is left over at the end of a tensor torch computes exponentials in another way.
"""

import json
from pathlib import Path

import diffusers
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from models.public_parts import quiet

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = [
    ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), ("\u2581rabbit", -3.0),
    ("\u2581a", -3.0), *((letter, -4.0) for letter in LETTERS),
]  # fmt: skip

# What each makes in a moment: frames, (height, width).
SHAPES = {
    "TextToVideoSDPipeline": (3, (16, 24)),
    "AnimateDiffPipeline": (4, (16, 24)),
    "LattePipeline": (4, (16, 16)),
    "CogVideoXPipeline": (9, (16, 32)),
    "LTXPipeline": (9, (32, 64)),
    "WanPipeline": (5, (16, 32)),
    "HunyuanVideoPipeline": (5, (16, 32)),
    "MochiPipeline": (7, (16, 32)),
}


def make(name: str, folder: Path, *, seed: int = 0, **parts) -> Path:
    """Write a pipeline by its class's name; `parts` take the place of its own."""
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = MAKERS[name](folder) | parts
        getattr(diffusers, name)(**made).save_pretrained(folder)
    return folder


def clip(folder: Path) -> dict:
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{c}</w>" for c in LETTERS), "ab</w>"]
    place = folder.with_name(f"{folder.name}-words")
    place.mkdir(parents=True, exist_ok=True)
    (place / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (place / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=77, bos_token_id=0, eos_token_id=1,
        projection_dim=16,
    )  # fmt: skip
    tokenizer = CLIPTokenizer.from_pretrained(place, model_max_length=77)
    return {"tokenizer": tokenizer, "text_encoder": CLIPTextModel(config)}


def t5() -> dict:
    config = T5Config(
        vocab_size=len(PIECES), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    return {
        "tokenizer": T5Tokenizer(vocab=PIECES, extra_ids=0),
        "text_encoder": T5EncoderModel(config),
    }


def image_vae() -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def text_to_video_sd(folder: Path) -> dict:
    unet = diffusers.UNet3DConditionModel(
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
        attention_head_dim=4, sample_size=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler()
    return clip(folder) | {"unet": unet, "vae": image_vae(), "scheduler": scheduler}


def animatediff(folder: Path) -> dict:
    image = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
        attention_head_dim=4, sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    motion = diffusers.MotionAdapter(
        block_out_channels=(8, 8), motion_layers_per_block=1, motion_norm_num_groups=4,
        motion_num_attention_heads=2, motion_max_seq_length=8, use_motion_mid_block=False,
    )  # fmt: skip
    return clip(folder) | {
        "unet": diffusers.UNetMotionModel.from_unet2d(image, motion),
        "motion_adapter": motion,
        "vae": image_vae(),
        "scheduler": diffusers.EulerAncestralDiscreteScheduler(),
    }


def latte(_: Path) -> dict:
    transformer = diffusers.LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1,
        sample_size=8, patch_size=2, norm_type="ada_norm_single", caption_channels=16,
        cross_attention_dim=16, attention_bias=True, norm_elementwise_affine=False,
        num_embeds_ada_norm=1000, activation_fn="gelu-approximate", video_length=4,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler()
    return t5() | {"transformer": transformer, "vae": image_vae(), "scheduler": scheduler}


def cogvideox(_: Path) -> dict:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=1,
        time_embed_dim=8, text_embed_dim=16, sample_width=8, sample_height=8, sample_frames=9,
        patch_size=2, temporal_compression_ratio=4, max_text_seq_length=226,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2, latent_channels=4,
        temporal_compression_ratio=4,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
    )  # fmt: skip
    scheduler = diffusers.CogVideoXDPMScheduler()
    return t5() | {"transformer": transformer, "vae": vae, "scheduler": scheduler}


def ltx(_: Path) -> dict:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, num_layers=1,
        cross_attention_dim=16, caption_channels=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
        timestep_conditioning=True, decoder_inject_noise=(False,) * 5,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return t5() | {"transformer": transformer, "vae": vae, "scheduler": scheduler}


def wan(_: Path) -> dict:
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=16, out_channels=16, num_layers=1,
        text_dim=16, freq_dim=16, ffn_dim=16, cross_attn_norm=True, rope_max_seq_len=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    return t5() | {"transformer": transformer, "vae": vae, "scheduler": scheduler}


def hunyuan(folder: Path) -> dict:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=1, text_embed_dim=16,
        pooled_projection_dim=16, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo(
        block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4, latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
    )  # fmt: skip
    llama = LlamaConfig(
        vocab_size=len(PIECES), hidden_size=16, intermediate_size=16, num_hidden_layers=4,
        num_attention_heads=2, max_position_embeddings=512, pad_token_id=0,
    )  # fmt: skip
    short = clip(folder)
    return {
        "tokenizer": T5Tokenizer(vocab=PIECES, extra_ids=0),
        "text_encoder": LlamaModel(llama),
        "tokenizer_2": short["tokenizer"],
        "text_encoder_2": short["text_encoder"],
        "transformer": transformer,
        "vae": vae,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    }


def mochi(_: Path) -> dict:
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16,
        in_channels=12, text_embed_dim=16, time_embed_dim=4, max_sequence_length=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12, encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return t5() | {"transformer": transformer, "vae": vae, "scheduler": scheduler}


MAKERS = {
    "TextToVideoSDPipeline": text_to_video_sd,
    "AnimateDiffPipeline": animatediff,
    "LattePipeline": latte,
    "CogVideoXPipeline": cogvideox,
    "LTXPipeline": ltx,
    "WanPipeline": wan,
    "HunyuanVideoPipeline": hunyuan,
    "MochiPipeline": mochi,
}
