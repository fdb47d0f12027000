"""The table of self-attention layers, and what a row of the U-Net costs, read off the architecture without weights."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch.utils.flop_counter import FlopCounterMode

from freeprompt.contract.manifest import REPLACED_TOKENS, LayerSpec
from freeprompt.export.model.attention import RoutedCrossAttention, RoutedSelfAttention


@dataclass(frozen=True)
class Architecture:
    """What a U-Net is made of.

    Attributes:
        layers: self-attention layers in forward order.
        cross_layers: names of the cross-attention layers in forward order.
        macs: multiply-adds of one row at the native size.
        macs_before: of the part before each self-attention layer (what a graph that stops there costs).
    """

    layers: tuple[LayerSpec, ...]
    cross_layers: tuple[str, ...]
    macs: int
    macs_before: tuple[int, ...]


def unet_to_architecture(unet: UNet2DConditionModel, height: int, width: int) -> Architecture:
    """Run the architecture once on PyTorch's meta device, which computes shapes and nothing else.

    Args:
        unet: only its configuration is used.
        height, width: native size of the latents.
    """
    with torch.device("meta"):
        model = UNet2DConditionModel.from_config(unet.config).eval()
    model.set_attn_processor(AttnProcessor())
    found: list[tuple[str, Any, int, int]] = []
    cross: list[str] = []
    counter = FlopCounterMode(display=False)

    def on_self(name: str) -> Any:
        def hook(module: Any, args: tuple[torch.Tensor, ...]) -> None:
            found.append((name, module, args[0].shape[1], counter.get_total_flops() // 2))

        return hook

    def on_cross(name: str) -> Any:
        return lambda module, args: cross.append(name)

    for name, module in model.named_modules():
        if name.endswith(".attn1"):
            module.register_forward_pre_hook(on_self(name))
        elif name.endswith(".attn2"):
            module.register_forward_pre_hook(on_cross(name))
    config = model.config
    with counter, torch.no_grad(), torch.device("meta"):
        model(
            torch.empty(1, config.in_channels, height, width),
            torch.empty(1),
            torch.empty(1, 77, config.cross_attention_dim),
        )
    layers = tuple(
        LayerSpec(
            number=number,
            name=name.removesuffix(".transformer_blocks.0.attn1"),
            level=round(math.log2(height * width / tokens) / 2),
            tokens=tokens,
            heads=module.heads,
            channels=module.to_q.in_features,
            replaced=tokens <= REPLACED_TOKENS,
        )
        for number, (name, module, tokens, _) in enumerate(found, 1)
    )
    before = tuple(macs for _, _, _, macs in found)
    return Architecture(layers, tuple(cross), counter.get_total_flops() // 2, before)


def set_routed_attention(unet: UNet2DConditionModel, architecture: Architecture, upcast: Collection[str] = ()) -> None:
    """Give every attention layer of ``unet`` the processor that reads its routing from the inputs.

    Args:
        upcast: names of the layers (as modules of ``unet``) that compute their maps in float32.
    """
    processors: dict[str, Any] = {}
    suffix = ".transformer_blocks.0.attn1"
    for layer in architecture.layers:
        name = layer.name if layer.name.endswith("attn1") else layer.name + suffix
        processors[f"{name}.processor"] = RoutedSelfAttention(layer.number, name in upcast)
    for number, name in enumerate(architecture.cross_layers, 1):
        processors[f"{name}.processor"] = RoutedCrossAttention(number, name in upcast)
    unet.set_attn_processor(processors)
