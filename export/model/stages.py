"""The graphs around the U-Net: what is traced, on which inputs, with which sizes left open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from freeprompt.contract.graphs import (
    TEXT_ENCODER,
    VAE_DECODER,
    VAE_ENCODER,
    GraphSignature,
    text_encoder_signature,
    vae_decoder_signature,
    vae_encoder_signature,
)
from freeprompt.contract.manifest import LatentSpec, TextSpec
from freeprompt.export.checkpoint.load import Checkpoint
from freeprompt.export.model.cases import SEED
from freeprompt.export.model.modules import TextEncoderGraph, VaeDecoderGraph, VaeEncoderGraph


@dataclass(frozen=True)
class Stage:
    """A graph with weights of its own.

    Attributes:
        name: of the graph.
        module: what is traced; in float32.
        cases: (description of the shapes, arguments); the first is traced, the others are compared, and the last of
            them, a small one, is the bundle's known answer.
        dynamic_shapes: as ``torch.export`` takes them.
        signature: of the graph.
    """

    name: str
    module: nn.Module
    cases: tuple[tuple[str, tuple[Any, ...]], ...]
    dynamic_shapes: tuple[Any, ...]
    signature: GraphSignature


def checkpoint_to_stages(checkpoint: Checkpoint, latents: LatentSpec, text: TextSpec) -> tuple[Stage, ...]:
    """Text encoder, and both halves of the autoencoder."""
    return (_text_encoder(checkpoint, text), *_autoencoder(checkpoint, latents))


def _text_encoder(checkpoint: Checkpoint, text: TextSpec) -> Stage:
    generator = torch.Generator().manual_seed(SEED)
    vocabulary = checkpoint.text_encoder.config.vocab_size

    def case(texts: int) -> tuple[str, tuple[Any, ...]]:
        ids = torch.randint(vocabulary, (texts, text.tokens), generator=generator)
        return f"texts={texts}", (ids.int(),)

    return Stage(
        TEXT_ENCODER,
        TextEncoderGraph(checkpoint.text_encoder),
        (case(2), case(1), case(3), case(2)),
        ({0: torch.export.Dim("texts", min=1, max=1024)},),
        text_encoder_signature(text),
    )


def _autoencoder(checkpoint: Checkpoint, spec: LatentSpec) -> tuple[Stage, Stage]:
    generator = torch.Generator().manual_seed(SEED)
    block, scale = spec.multiple, spec.scale
    dim = torch.export.Dim
    count, h, w = dim("images", min=1, max=64), dim("h", min=1, max=4096), dim("w", min=1, max=4096)
    pixels, codes = [], []
    # images, and blocks of height and width
    for images, high, wide in ((2, 2, 3), (1, 2, 2), (3, 3, 2), (1, 1, 2)):
        height, width = high * block, wide * block
        shapes = f"images={images} latents {height}x{width}"
        image = torch.rand(images, 3, height * scale, width * scale, generator=generator)
        code = torch.randn(images, spec.channels, height, width, generator=generator)
        pixels.append((shapes, (image * 2 - 1,)))
        codes.append((shapes, (code,)))
    encoder = Stage(
        VAE_ENCODER,
        VaeEncoderGraph(checkpoint.vae),
        tuple(pixels),
        ({0: count, 2: scale * h, 3: scale * w},),
        vae_encoder_signature(spec),
    )
    decoder = Stage(
        VAE_DECODER,
        VaeDecoderGraph(checkpoint.vae),
        tuple(codes),
        ({0: count, 2: h, 3: w},),
        vae_decoder_signature(spec),
    )
    return encoder, decoder
