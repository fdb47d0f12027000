"""Stable Diffusion 1.5's sizes with random weights, so that nothing needs to be downloaded.

Latency, memory and export do not depend on what the weights are, only on how many there are.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from freeprompt.export.checkpoint.load import quiet
from tests.tiny import tiny_tokenizer, to_pipeline

UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}


def fill_randomly(module: nn.Module, seed: int = 0) -> None:
    """Weights of variance 1 / fan-in, norms of one, no bias: activations keep their size and half precision holds."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def random_unet(seed: int = 0) -> UNet2DConditionModel:
    """A U-Net of Stable Diffusion 1.5's architecture in float32, 860 million random parameters."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET)
    unet = unet.to_empty(device="cpu").eval()
    fill_randomly(unet, seed)
    return unet


def save_random_checkpoint(folder: Path, seed: int = 0, whole: bool = False) -> None:
    """Write a diffusers folder in float16: the U-Net at full size, an autoencoder and a text encoder around it.

    Args:
        whole: these two at full size as well, but for the vocabulary; else small, since most measurements are of the
            U-Net.
    """
    tokenizer = tiny_tokenizer()
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512) if whole else (16, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2 if whole else 1,
        norm_num_groups=32 if whole else 8,
        sample_size=512,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=768,
            intermediate_size=3072 if whole else 768,
            num_hidden_layers=12 if whole else 1,
            num_attention_heads=12,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    with quiet():
        to_pipeline(random_unet(seed).half(), vae.half(), text_encoder.half(), tokenizer).save_pretrained(folder)
