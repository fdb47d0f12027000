"""The modules that are traced into graphs. Floating inputs and outputs are float32 whatever the weights are."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from freeprompt.export.model.attention import Routing


class TextEncoderGraph(nn.Module):
    """input_ids [B, tokens] int32 -> encoder_hidden_states [B, tokens, channels] float32."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.text_encoder(input_ids.long()).last_hidden_state
        return hidden.float()


class VaeEncoderGraph(nn.Module):
    """image [B, 3, H, W] in [-1, 1] -> latents: the posterior's mean times the scaling factor."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae
        self.scaling_factor = float(vae.config.scaling_factor)

    def forward(self, image: Tensor) -> Tensor:
        mean: Tensor = self.vae.encode(image.to(self.vae.dtype)).latent_dist.mean
        return mean.float() * self.scaling_factor


class VaeDecoderGraph(nn.Module):
    """latents [B, C, h, w] -> image [B, 3, H, W], about [-1, 1]."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae
        self.scaling_factor = float(vae.config.scaling_factor)

    def forward(self, latents: Tensor) -> Tensor:
        scaled = (latents / self.scaling_factor).to(self.vae.dtype)
        image: Tensor = self.vae.decode(scaled, return_dict=False)[0]
        return image.float()


class StepGraph(nn.Module):
    """One whole step: rows gathered, U-Net with routed attention, guidance, scheduler.

    Shapes and meanings of the inputs are in ``freeprompt.contract.graphs``.

    Args:
        unet: with routed attention processors.
        recordable: numbers of the layers that take recorded rows and whose hidden states are outputs.

    Attributes:
        record_dtype: of those hidden states.
    """

    def __init__(self, unet: UNet2DConditionModel, recordable: tuple[int, ...]) -> None:
        super().__init__()
        self.unet = unet
        self.recordable = recordable
        self.record_dtype = torch.float32

    def forward(
        self,
        latents: Tensor,
        pinned_latents: Tensor,
        encoder_hidden_states: Tensor,
        row_latent: Tensor,
        row_text: Tensor,
        timestep: Tensor,
        map_row: Tensor,
        cross_map_row: Tensor,
        row_weight: Tensor,
        latent_scale: Tensor,
        noise_scale: Tensor,
        records: tuple[Tensor, ...] = (),
    ) -> tuple[Tensor, ...]:
        # As reference for a half-precision graph the module is float32 and the recorded rows are not.
        dtype = self.unet.dtype
        typed = [record.to(dtype) for record in records]
        by_layer = dict(zip(self.recordable, typed, strict=True))
        routing = Routing(row_text, map_row, cross_map_row, by_layer)
        sample = torch.cat([latents, pinned_latents]).index_select(0, row_latent)
        output: Any = self.unet(
            sample.to(dtype),
            timestep,
            encoder_hidden_states.to(dtype),
            cross_attention_kwargs={"routing": routing},
            return_dict=False,
        )[0]
        rows = output.float()
        noise_pred = torch.matmul(row_weight, rows.flatten(1)).view_as(latents)
        scale = latent_scale[:, None, None, None]
        next_latents = scale * latents + noise_scale[:, None, None, None] * noise_pred
        taps = (routing.taps[layer] for layer in self.recordable)
        return (next_latents, *(tap if tap.dtype == self.record_dtype else tap.to(self.record_dtype) for tap in taps))
