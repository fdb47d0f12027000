"""A small random-weight Stable Diffusion pipeline: the smallest with every kind of block, for tests of the code
around it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizerFast

WORDS = ("a", "red", "blue", "cat", "dog", "photo", "of")


def tiny_pipeline(seed: int = 0) -> StableDiffusionPipeline:
    """Four self-attention layers at two levels, latents 4 x 16 x 16, images 64 x 64, text of width 32."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=8,
        cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    # An untrained U-Net amplifies rounding errors as no trained one does: over 50 steps of inversion and 50 of
    # editing the literal reference in single precision differs from itself in double by 5.6e-5, with a quarter of
    # the output by 1.9e-5, while what replacing maps changes stays the same (a relative L2 of 0.4).
    with torch.no_grad():
        unet.conv_out.weight.mul_(0.25)
        unet.conv_out.bias.mul_(0.25)
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=0.5,
        sample_size=64,
    )
    tokenizer = tiny_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    return to_pipeline(unet, vae, text_encoder, tokenizer)


def to_pipeline(
    unet: UNet2DConditionModel, vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizerFast
) -> StableDiffusionPipeline:
    """A pipeline of these parts with Stable Diffusion 1.x's noise schedule."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_tokenizer() -> CLIPTokenizerFast:
    """Byte-level, so that any text has ids, with merges for a few words."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(c) for c in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = alphabet + [f"{c}</w>" for c in alphabet]
    merges: list[str] = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merge = f"{parts[0]} {parts[1]}"
            parts = [parts[0] + parts[1], *parts[2:]]
            if merge not in merges:
                merges.append(merge)
                tokens.append(parts[0])
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    vocab["<|startoftext|>"] = len(vocab)
    vocab["<|endoftext|>"] = len(vocab)
    # From files, as every version of transformers takes it.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
        Path(folder, "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        return CLIPTokenizerFast.from_pretrained(folder, model_max_length=77, local_files_only=True)
