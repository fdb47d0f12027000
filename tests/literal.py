"""The published method, literally: the oracle of the exactness tests.

Independent of freeprompt: diffusers' own U-Net, scheduler and text encoder; attention maps are materialised, N x N, for
every row; the batch layout is the reference implementation's (two rows a step to invert, four to denoise); nothing is
left out because it cannot matter. Quirks of the reference that define its result are kept, those that are bugs are not
(shared/design.md, 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor


@dataclass
class Control:
    """Which rows take whose maps at the current step; read by every attention layer."""

    pairs: list[tuple[int, int]] = field(default_factory=list)  # (source row, target row)
    self_layers: frozenset[int] = frozenset()
    cross_layers: frozenset[int] = frozenset()


class MaterialisingProcessor:
    """Softmax maps as a tensor [rows, heads, N, M]; in controlled layers some rows' maps are overwritten by others'."""

    def __init__(self, control: Control, number: int, cross: bool) -> None:
        self.control, self.number, self.cross = control, number, cross

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        rows = hidden_states.shape[0]
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(context))
        value = attn.head_to_batch_dim(attn.to_v(context))
        maps = attn.get_attention_scores(query, key)
        layers = self.control.cross_layers if self.cross else self.control.self_layers
        if self.number in layers:
            maps = maps.reshape(rows, attn.heads, *maps.shape[1:]).clone()
            for source, target in self.control.pairs:
                maps[target] = maps[source]
            maps = maps.flatten(0, 1)
        out = attn.batch_to_head_dim(torch.bmm(maps, value))
        projected: Tensor = attn.to_out[1](attn.to_out[0](out))
        return projected


class LiteralReference:
    """Free-Prompt-Editing on a diffusers pipeline, with maps.

    Args:
        pipe: its scheduler must be a DDIMScheduler with the reference's settings.
    """

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        self.pipe, self.control = pipe, Control()
        assert isinstance(pipe.scheduler, DDIMScheduler)
        order: list[str] = []
        handles = [
            module.register_forward_hook(lambda m, i, o, name=name: order.append(name))
            for name, module in pipe.unet.named_modules()
            if name.endswith((".attn1", ".attn2"))
        ]
        size = pipe.unet.config.sample_size
        pipe.unet.set_attn_processor(AttnProcessor())
        with torch.no_grad():
            text = torch.zeros(1, 77, pipe.unet.config.cross_attention_dim)
            pipe.unet(torch.zeros(1, 4, size, size), 1, text)
        for handle in handles:
            handle.remove()
        processors: dict[str, MaterialisingProcessor] = {}
        for cross, suffix in ((False, ".attn1"), (True, ".attn2")):
            names = [name for name in order if name.endswith(suffix)]
            for number, name in enumerate(names, 1):
                processors[f"{name}.processor"] = MaterialisingProcessor(self.control, number, cross)
        pipe.unet.set_attn_processor(processors)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        ids = self.pipe.tokenizer(
            list(prompts), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        embeddings: Tensor = self.pipe.text_encoder(ids)[0]
        return embeddings

    @torch.no_grad()
    def encode(self, image: np.ndarray[Any, Any]) -> Tensor:
        """Image [1, 3, H, W] in [-1, 1] to the posterior's mean times the scaling factor."""
        # Contiguous: PyTorch's channels-last kernels, which a transposed array would get all the way through, differ
        # from double precision by 7.6e-6 where the standard ones differ by 6e-7.
        pixels = torch.from_numpy(np.ascontiguousarray(image))
        mean = self.pipe.vae.encode(pixels).latent_dist.mean
        latents: Tensor = mean * self.pipe.vae.config.scaling_factor
        return latents

    @torch.no_grad()
    def invert(self, latents: Tensor, steps: int) -> list[Tensor]:
        """All latents, cleanest first. Two rows at guidance 1, as the reference evaluates them."""
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(steps)
        stride = scheduler.config.num_train_timesteps // steps
        text = self.embed(["", ""])
        levels = [latents]
        for timestep in reversed(scheduler.timesteps.tolist()):
            lower = min(timestep - stride, 999)
            alpha = scheduler.alphas_cumprod[lower] if lower >= 0 else scheduler.final_alpha_cumprod
            above = scheduler.alphas_cumprod[timestep]
            uncond, cond = self.pipe.unet(torch.cat([latents] * 2), timestep, text).sample.chunk(2)
            noise = uncond + 1.0 * (cond - uncond)
            clean = (latents - (1 - alpha) ** 0.5 * noise) / alpha**0.5
            latents = above**0.5 * clean + (1 - above) ** 0.5 * noise
            levels.append(latents)
        return levels

    @torch.no_grad()
    def edit(
        self,
        levels: list[Tensor],
        targets: Sequence[str],
        *,
        guidance: float = 7.5,
        fraction: float = 0.8,
        negative: str = "",
        layers: Sequence[int] = (),
        cross_layers: Sequence[int] = (),
    ) -> Tensor:
        """Final latents of each target, each computed in a run of its own (the reference breaks with more than one)."""
        return torch.cat(
            [
                self._denoise(
                    levels[-1], "", target, len(levels) - 1, guidance, fraction, negative, layers, cross_layers, levels
                )[1:]
                for target in targets
            ]
        )

    @torch.no_grad()
    def synthesize(
        self,
        noise: Tensor,
        source: str,
        target: str,
        steps: int,
        *,
        guidance: float = 7.5,
        fraction: float = 0.4,
        negative: str = "",
        layers: Sequence[int] = (),
    ) -> Tensor:
        """Final latents of source and target."""
        return self._denoise(noise, source, target, steps, guidance, fraction, negative, layers, (), None)

    def _denoise(
        self,
        start: Tensor,
        source: str,
        target: str,
        steps: int,
        guidance: float,
        fraction: float,
        negative: str,
        layers: Sequence[int],
        cross_layers: Sequence[int],
        levels: list[Tensor] | None,
    ) -> Tensor:
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(steps)
        # [uncond_src, uncond_tgt, cond_src, cond_tgt]; the negative prompt is the target's.
        uncond_src = "" if levels is not None else negative
        text = self.embed([uncond_src, negative, source, target])
        latents = torch.cat([start, start])
        for number, timestep in enumerate(scheduler.timesteps):
            if levels is not None:
                latents[:1] = levels[steps - number]
            replaced = number < int(steps * fraction)
            self.control.pairs = [(2, 3)] if replaced else []
            self.control.self_layers = frozenset(layers)
            self.control.cross_layers = frozenset(cross_layers)
            uncond, cond = self.pipe.unet(torch.cat([latents] * 2), timestep, text).sample.chunk(2)
            noise = uncond + guidance * (cond - uncond)
            latents = scheduler.step(noise, timestep, latents).prev_sample
        self.control.pairs = []
        return latents
