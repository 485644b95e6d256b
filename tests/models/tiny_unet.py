"""Tiny image U-Nets in the layouts of public checkpoints, with random weights, saved as diffusers saves them."""

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

STABLE_DIFFUSION = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
}
UPSCALER = STABLE_DIFFUSION | {
    "in_channels": 7,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "only_cross_attention": (True, True, False),
    "use_linear_projection": True,
    "num_class_embeds": 1000,
}
DEEPFLOYD = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 6,
    "act_fn": "gelu",
    "down_block_types": ("ResnetDownsampleBlock2D",) + ("SimpleCrossAttnDownBlock2D",) * 2,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D",) * 2 + ("ResnetUpsampleBlock2D",),
    "block_out_channels": (8, 16, 24),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "cross_attention_dim": 32,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": 12,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 4,
    "resnet_time_scale_shift": "scale_shift",
}
DEEPFLOYD_TWO = DEEPFLOYD | {"in_channels": 6, "class_embed_type": "timestep"}
# What only rare checkpoints have, all at once: uneven levels, no middle, a centred input and so on.
RARE = STABLE_DIFFUSION | {
    "in_channels": 8,
    "layers_per_block": (1, 2, 1),
    "mid_block_type": None,
    "center_input_sample": True,
    "class_embed_type": "timestep",
    "class_embeddings_concat": True,
    "time_embedding_act_fn": "silu",
    "transformer_layers_per_block": 2,
    "conv_in_kernel": 5,
    "resnet_skip_time_act": True,
}
LAYOUTS = {
    "stable-diffusion": STABLE_DIFFUSION,
    "x4-upscaler": UPSCALER,
    "deepfloyd-1": DEEPFLOYD,
    "deepfloyd-2": DEEPFLOYD_TWO,
    "rare": RARE,
}
# The two block families, for the laws that take longer.
FAMILIES = ["stable-diffusion", "deepfloyd-1"]


def unet(layout: str) -> UNet2DConditionModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return UNet2DConditionModel(**LAYOUTS[layout]).eval()


def save(layout: str, folder, **how):
    """Save the U-Net into a pipeline's folder and return that folder."""
    unet(layout).save_pretrained(folder / "unet", **how)
    return folder
