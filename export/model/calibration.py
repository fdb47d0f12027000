"""Inputs on which the ranges of a model are measured: like those it is made for, seeded, and made without data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from freeprompt.contract.graphs import TEXT_ENCODER, VAE_DECODER, VAE_ENCODER
from freeprompt.contract.manifest import LatentSpec, SchedulerSpec, TextSpec
from freeprompt.export.checkpoint.load import Checkpoint
from freeprompt.export.model.cases import SEED
from freeprompt.export.model.modules import TextEncoderGraph, VaeEncoderGraph

# Shares of the training schedule: 1, 327, 654 and 981 of 1000, from the last step of an edit to its first.
TIMES = (0.001, 0.327, 0.654, 0.981)
# Height and width in blocks of the latents, not square: 128 x 192 pixels for Stable Diffusion.
BLOCKS = (2, 3)


@dataclass(frozen=True)
class Calibration:
    """Four cases for each graph.

    Attributes:
        images: [4, 3, H, W] in [-1, 1]: noise, a gradient, black and white.
        codes: [8, C, h, w]: those images encoded, then latents of unit variance.
        ids: [4, tokens] int32: the empty prompt, then random ones of several lengths.
        texts: [4, tokens, channels]: those encoded.
        samples: [4, C, h, w]: the encoded images with the noise of ``timesteps``.
        timesteps: [4] int64.
    """

    images: Tensor
    codes: Tensor
    ids: Tensor
    texts: Tensor
    samples: Tensor
    timesteps: Tensor

    def stage_args(self, stage: str) -> tuple[Any, ...]:
        """Arguments of a stage's module."""
        return {TEXT_ENCODER: (self.ids,), VAE_ENCODER: (self.images,), VAE_DECODER: (self.codes,)}[stage]


def checkpoint_to_calibration(
    checkpoint: Checkpoint, latents: LatentSpec, text: TextSpec, scheduler: SchedulerSpec
) -> Calibration:
    """Computed with the checkpoint's own autoencoder and text encoder, in float32."""
    generator = torch.Generator().manual_seed(SEED)
    height, width = (blocks * latents.multiple for blocks in BLOCKS)
    images = _images(height * latents.scale, width * latents.scale, generator)
    ids = _ids(text, checkpoint.text_encoder.config.vocab_size, generator)
    with torch.no_grad():
        clean = VaeEncoderGraph(checkpoint.vae)(images)
        texts = TextEncoderGraph(checkpoint.text_encoder)(ids)
    last = len(scheduler.alphas_cumprod)
    timesteps = torch.tensor([round(share * last) for share in TIMES])
    alphas = torch.tensor(scheduler.alphas_cumprod)[timesteps, None, None, None]
    samples = alphas.sqrt() * clean + (1 - alphas).sqrt() * torch.randn(clean.shape, generator=generator)
    codes = torch.cat([clean, torch.randn(clean.shape, generator=generator)])
    return Calibration(images, codes, ids, texts, samples, timesteps)


def _images(height: int, width: int, generator: torch.Generator) -> Tensor:
    noise = torch.rand(3, height, width, generator=generator) * 2 - 1
    gradient = torch.linspace(-1, 1, width).expand(3, height, width)
    black, white = torch.full_like(noise, -1.0), torch.ones_like(noise)
    return torch.stack([noise, gradient, black, white])


def _ids(text: TextSpec, vocabulary: int, generator: torch.Generator) -> Tensor:
    rows = torch.full((4, text.tokens), text.pad_token_id)
    for row, words in zip(rows, (0, 1, text.tokens // 4, text.tokens - 2), strict=True):
        row[0] = text.bos_token_id
        row[1 : 1 + words] = torch.randint(vocabulary, (words,), generator=generator)
        row[1 + words] = text.eos_token_id
    return rows.int()
